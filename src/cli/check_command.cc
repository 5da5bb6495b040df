// `lockstep check`: a trace against a golden that `record` wrote.
#include <memory>

#include "cli/command.h"
#include "cli/compare_output.h"
#include "lockstep/golden.h"

namespace lockstep::cli {

void AddCheck(CLI::App& app, int& exit_code) {
  struct Options : CheckOptions {
    std::string golden, json;
    std::vector<std::string> traces;
    bool all = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("check", "Check a trace against a golden: GOLDEN TRACE");
  command->add_option("golden", options->golden, "What lockstep record wrote")->required();
  command->add_option("traces", options->traces, "The trace; several: parts of a batch, or the ranks of one run")
      ->required();
  CLI::Option* rtol =
      command->add_option("--rtol", options->rtol, "Your own bound of every block's relative L2, for every point")
          ->check(CLI::NonNegativeNumber);
  command->add_flag("--exact", options->exact, "Every bit must be the same")->excludes(rtol);
  command->add_option("--json", options->json, "Write everything that was found to this file");
  command->add_flag("--all", options->all, "Show every point");
  command->callback([options, &exit_code] {
    options->progress = ProgressOf("check");
    exit_code = Print(Check(options->golden, options->traces, *options), options->json, options->all);
  });
}

}  // namespace lockstep::cli
