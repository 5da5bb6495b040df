#include <memory>

#include "cli/command.h"
#include "cli/run_engine.h"
#include "lockstep/error.h"

namespace lockstep::cli {

void AddCapture(CLI::App& app, int& exit_code) {
  struct Options {
    InputOptions input;
    EngineRun run;
    std::string from;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("capture", "Run the built-in C++ engine and write a trace");
  options->run.out = "cpp.trace";
  options->run.options.AddTo(*command);
  options->input.AddTo(*command);
  command->add_option("--from", options->from, "Feed exactly the sequences of this trace, decode steps included");
  command->add_option("--chunk", options->run.chunk, "Prefill in chunks of this many tokens")
      ->check(CLI::PositiveNumber);
  command->add_option("--out", options->run.out, "The trace to write (default: cpp.trace)");
  command->callback([options, &exit_code] {
    EngineRun run = options->run;
    run.embeddings = options->input.embeddings;
    run.decode = options->input.decode;
    if (!options->from.empty()) {
      if (!options->input.texts.empty() || !options->input.file.empty() || !options->input.tokens.empty()) {
        throw Error("--from brings its own tokens; leave out --input, --input-file and --tokens");
      }
      run.sequences = SequencesOf(options->from);
    } else {
      for (std::vector<int32_t>& prompt : PromptTokens(options->input, run.options.model)) {
        run.sequences.push_back({std::move(prompt), {}, {}});
      }
    }
    CaptureEngine(std::move(run));
    exit_code = kSame;
  });
}

}  // namespace lockstep::cli
