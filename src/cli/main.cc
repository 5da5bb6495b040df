// The `lockstep` command: one subcommand a file.
#include <cstdio>

#include "cli/command.h"
#include "lockstep/report.h"
#include "lockstep/version.h"

namespace lockstep::cli {
namespace {

constexpr AddCommand kCommands[] = {
#ifdef LOCKSTEP_ENGINE
    AddDebug,     AddCapture, AddGenerate, AddBench,
#endif
    AddReference, AddCompare, AddReplay,   AddRecord, AddCheck, AddShow, AddImport, AddExport, AddDoctor,
};

int Main(int argc, char** argv) {
  CLI::App app("Compares a C++ Qwen3 engine with PyTorch, layer by layer, and names the op that is wrong.");
  app.set_version_flag("--version", LOCKSTEP_VERSION);
  app.require_subcommand(1);
  app.footer("Exit codes: 0 the same, 1 different or faulty, 2 could not tell (usage, bad input, missing data).");
  int exit_code = kCannotTell;
  for (const AddCommand add : kCommands) add(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    // --help and --version come here with 0; everything else is a usage error.
    return app.exit(e) == 0 ? kSame : kCannotTell;
  }
  return exit_code;
}

}  // namespace
}  // namespace lockstep::cli

int main(int argc, char** argv) {
  try {
    return lockstep::cli::Main(argc, argv);
  } catch (const std::exception& e) {
    // Messages name tensors and files, which are not trusted.
    std::fprintf(stderr, "lockstep: %s\n", lockstep::Escaped(e.what()).c_str());
    return lockstep::cli::kCannotTell;
  }
}
