// `lockstep record`: a golden of a few kilobytes, to be committed and checked against.
#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "cli/compare_output.h"
#include "lockstep/golden.h"

namespace lockstep::cli {

void AddRecord(CLI::App& app, int& exit_code) {
  struct Options : RecordOptions {
    std::vector<std::string> traces;
    std::string out;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("record", "Keep of a trace, in kilobytes, what `check` needs: a golden for CI");
  command->add_option("traces", options->traces, "The trace; several: parts of a batch, or the ranks of one run")
      ->required();
  command->add_option("--out", options->out, "The golden to write: golden.json")->required();
  command->add_option("--points", options->points, "Keep these points; '*' is all of them")->capture_default_str();
  command->add_option("--layers", options->layers, "Keep only these layers: 0,2-4");
  command->add_option("--rows", options->rows, "Keep only these tokens of a sequence: last:16, or positions 0-3,100");
  command->callback([options, &exit_code] {
    options->progress = ProgressOf("record");
    const Golden golden = Record(options->traces, *options);
    const std::string text = GoldenText(golden);
    WriteFile(options->out, text);
    std::fprintf(stderr, "%s: %zu points, %zu tokens, %zu weights, %zu bytes\n", options->out.c_str(),
                 golden.points.size(), golden.tokens.size(), golden.meta.weights.size(), text.size());
    exit_code = kSame;
  });
}

}  // namespace lockstep::cli
