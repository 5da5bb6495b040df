#include <unistd.h>

#include <cstdio>
#include <memory>

#include "cli/bench_output.h"
#include "cli/command.h"
#include "cli/compare_output.h"
#include "cli/live_output.h"
#include "lockstep/bench.h"
#include "lockstep/error.h"

namespace lockstep::cli {
namespace {

void ShowProgress(const std::string& what) {
  if (isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r\033[Kbench: %s ", what.c_str());
}

void ClearProgress() {
  if (isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r\033[K");
}

}  // namespace

void AddBench(CLI::App& app, int& exit_code) {
  struct Options {
    BenchOptions bench;
    std::string dtype = "bf16";
    std::string json;
  };
  auto options = std::make_shared<Options>();
  BenchOptions& bench = options->bench;
  CLI::App* command = app.add_subcommand("bench", "Measure the engine's speed as shares of what the machine can do");
  command->add_option("model", bench.model, "A Hugging Face Qwen3 checkpoint (or --shape)");
  std::string shapes;
  for (const std::string& name : BenchShapes()) shapes += (shapes.empty() ? "" : ", ") + name;
  command->add_option("--shape", bench.shape, "Random weights in a published shape: " + shapes);
  command->add_option("--dtype", options->dtype, "f32, bf16 or f16 (default: bf16)")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  command->add_option("--prefill", bench.prefill, "Lengths of the prompts (default: 128,512,2048)")->delimiter(',');
  command->add_option("--decode", bench.decode, "Lengths of the contexts that decoding starts from (default: 128,2048)")
      ->delimiter(',');
  command->add_option("--repeat", bench.repeat, "Rounds, of which the medians are shown (default: 5)")
      ->check(CLI::PositiveNumber);
  command->add_option("--threads", bench.threads, "Threads (default: as OpenMP decides)")->check(CLI::PositiveNumber);
  command->add_option("--json", options->json, "Write everything that was measured to this file");
  command->callback([options, &exit_code] {
    options->bench.dtype = *ParseDType(options->dtype);
    options->bench.progress = ShowProgress;
    options->bench.live_tap = MakeSilentLiveTap;
    const BenchResult result = Bench(options->bench);
    ClearProgress();
    std::fputs(BenchText(result).c_str(), stdout);
    if (!options->json.empty()) WriteFile(options->json, BenchJson(result));
    exit_code = kSame;
  });
}

}  // namespace lockstep::cli
