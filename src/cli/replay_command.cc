// `lockstep replay`: judges one implementation by its own trace, without a reference.
#include <memory>

#include "cli/command.h"
#include "cli/compare_output.h"

namespace lockstep::cli {

void AddReplay(CLI::App& app, int& exit_code) {
  struct Options : ExportOptions {
    std::vector<std::string> traces;
    std::string model, points, layers;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "replay", "Recompute every op of a trace in float64 and say which one is wrong and why; needs no reference");
  command->add_option("traces", options->traces, "The trace; several: parts of a batch, or the ranks of one run")
      ->required();
  command->add_option("--model", options->model, "The checkpoint that was run")->required();
  command->add_option("--points", options->points, "Judge only these points: attn_*,logits");
  command->add_option("--layers", options->layers, "Judge only these layers: 0,2-4");
  options->AddTo(*command);
  command->callback([options, &exit_code] {
    const ReplayOptions replay{.points = options->points,
                               .layers = options->layers,
                               .details = !options->html.empty(),
                               .progress = ProgressOf("replay")};
    exit_code = Print(Diagnose(options->traces, options->model, replay), *options);
  });
}

}  // namespace lockstep::cli
