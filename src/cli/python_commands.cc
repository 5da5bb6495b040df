// Commands whose work is done in Python: the reference, and the converters (numpy reads and writes .npy and .npz).
#include "cli/command.h"
#include "cli/python.h"

namespace lockstep::cli {
namespace {

// Everything but --python goes on to the module as it is; `python -m module --help` documents it.
void AddPassing(CLI::App& app, int& exit_code, const std::string& name, const std::string& description,
                const std::string& module, const std::vector<std::string>& before) {
  CLI::App* command = app.add_subcommand(name, description);
  command->set_help_flag();  // --help is the module's
  command->allow_extras();
  command->prefix_command();
  command->callback([=, &exit_code] {
    std::vector<std::string> arguments = before;
    std::string python;
    const std::vector<std::string> rest = command->remaining();
    for (size_t i = 0; i < rest.size(); ++i) {
      if (rest[i] == "--python" && i + 1 < rest.size()) {
        python = rest[++i];
      } else {
        arguments.push_back(rest[i]);
      }
    }
    exit_code = RunPython(FindPython(python), module, arguments) == 0 ? kSame : kCannotTell;
  });
}

}  // namespace

void AddReference(CLI::App& app, int& exit_code) {
  AddPassing(app, exit_code, "reference", "Run the PyTorch reference and write a trace", "lockstep.reference", {});
}

void AddImport(CLI::App& app, int& exit_code) {
  AddPassing(app, exit_code, "import", "Make a trace of text files (py_NAME.txt), .npy files or an .npz",
             "lockstep.convert", {"import"});
}

void AddExport(CLI::App& app, int& exit_code) {
  AddPassing(app, exit_code, "export", "Write a trace as text files, .npy files or an .npz", "lockstep.convert",
             {"export"});
}

}  // namespace lockstep::cli
