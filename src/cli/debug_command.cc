// The main job: the reference in PyTorch, then the engine on exactly the same tokens, then the comparison, then the
// replay of both.
#include <cstdio>
#include <filesystem>
#include <memory>

#include "cli/command.h"
#include "cli/compare_output.h"
#include "cli/live_output.h"
#include "cli/python.h"
#include "cli/run_engine.h"
#include "lockstep/error.h"

namespace lockstep::cli {
namespace {

struct DebugOptions {
  ModelRunOptions run;
  InputOptions input;
  ComparisonOptions comparison;
  std::string reference_dtype;  // empty: as --dtype
  std::string implementation = "pure";
  std::string python;
  std::string out = "lockstep-debug";
  int chunk = 0;
  bool skip_python = false;
  bool skip_cpp = false;
  bool live = false;
  bool keep_failing = false;
};

void MakeDirectory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw Error(path + ": cannot be created: " + error.message());
}

void MustExist(const std::string& trace, const char* option) {
  if (!std::filesystem::exists(std::filesystem::path(trace) / "trace.json")) {
    throw Error(std::string(option) + ": expected a trace that is already there, found none at " + trace +
                "; run once without " + option);
  }
}

void RunReference(const DebugOptions& options, const std::vector<std::vector<int32_t>>& prompts,
                  const std::string& trace) {
  std::vector<std::string> arguments = {options.run.model, "--out", trace, "--implementation", options.implementation};
  const auto add = [&](const char* name, const std::string& value) {
    if (!value.empty()) arguments.insert(arguments.end(), {name, value});
  };
  add("--dtype", options.reference_dtype.empty() ? options.run.dtype : options.reference_dtype);
  add("--points", options.run.points);
  add("--layers", options.run.layers);
  add("--steps", options.run.steps);
  add("--rows", options.run.rows);
  if (options.run.num_layers > 0) add("--num-layers", std::to_string(options.run.num_layers));
  for (std::string& argument : options.input.ForPython(prompts)) arguments.push_back(std::move(argument));
  if (RunPython(FindPython(options.python), "lockstep.reference", arguments) != 0) {
    throw Error("the Python reference failed (its message stands above); `lockstep doctor` tells what is missing");
  }
}

EngineRun RunOf(const DebugOptions& options, const std::string& reference, const std::string& out) {
  EngineRun run;
  run.options = options.run;
  run.sequences = SequencesOf(reference);
  run.embeddings = options.input.embeddings;
  run.chunk = options.chunk;
  run.out = out;
  return run;
}

// The engine is compared while it runs; `failing` is a trace of what differs, or empty.
int DebugLive(const DebugOptions& options, const std::string& reference, const std::string& failing) {
  LiveOutput output(reference, failing, options.comparison);
  RunEngine(RunOf(options, reference, "live"), output);
  const int exit_code = Print(Judged{output.Finish()}, options.comparison, options.run.model);
  if (options.comparison.markdown == "-") return exit_code;
  std::printf("no op was replayed: --live keeps no trace of the engine; leave it out to have every op judged\n");
  std::printf("traces: %s%s%s\n", reference.c_str(), failing.empty() ? "" : " ", failing.c_str());
  return exit_code;
}

// A trace that cannot be replayed (one of few points, say) can still be compared.
std::optional<Diagnosis> TryDiagnose(Side side, const std::string& trace, const DebugOptions& options,
                                     std::vector<std::string>* notes) {
  try {
    return DiagnoseSide(side, {trace}, options.run.model, options.comparison);
  } catch (const Error& e) {
    notes->push_back("the " + std::string(SideName(side)) + " was not replayed: " + e.what());
    return std::nullopt;
  }
}

void CheckLiveOptions(const DebugOptions& options) {
  if (options.live && options.skip_cpp) {
    throw Error("--live compares the engine while it runs and --skip-cpp does not run it; leave one of them out");
  }
  if (options.keep_failing && !options.live)
    throw Error("--keep-failing belongs to --live; without it everything is kept");
}

int Debug(const DebugOptions& options) {
  CheckLiveOptions(options);
  const std::filesystem::path out = options.out;
  const std::string reference = out / "py.trace";
  const std::string candidate = out / "cpp.trace";

  if (options.skip_python) {
    MustExist(reference, "--skip-python");
  } else {
    const std::vector<std::vector<int32_t>> prompts = PromptTokens(options.input, options.run.model);
    MakeDirectory(options.out);
    RunReference(options, prompts, reference);
  }
  // From here on the reference's trace says which tokens are fed, whoever wrote it.

  if (options.live) return DebugLive(options, reference, options.keep_failing ? candidate : "");
  if (options.skip_cpp) {
    MustExist(candidate, "--skip-cpp");
  } else {
    CaptureEngine(RunOf(options, reference, candidate));
  }

  Judged judged{Compare({reference}, {candidate}, OptionsOf(options.comparison))};
  judged.reference = TryDiagnose(Side::kReference, reference, options, &judged.compare.notes);
  judged.candidate = TryDiagnose(Side::kCandidate, candidate, options, &judged.compare.notes);
  const int exit_code = Print(judged, options.comparison, options.run.model);
  if (options.comparison.markdown != "-") std::printf("traces: %s %s\n", reference.c_str(), candidate.c_str());
  return exit_code;
}

}  // namespace

void AddDebug(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<DebugOptions>();
  CLI::App* command = app.add_subcommand(
      "debug", "Run PyTorch and the C++ engine on the same input, compare every point, judge every op");
  options->run.AddTo(*command);
  options->input.AddTo(*command);
  options->comparison.AddTo(*command);
  command->add_option("--reference-dtype", options->reference_dtype, "Storage of the reference, if it is to differ")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  command->add_option("--reference", options->implementation, "pure (Lockstep's own PyTorch model) or transformers")
      ->check(CLI::IsMember({"pure", "transformers"}));
  command->add_option("--chunk", options->chunk, "Let the C++ engine prefill in chunks of this many tokens")
      ->check(CLI::PositiveNumber);
  command->add_flag("--skip-python", options->skip_python, "Use the reference trace that is already there");
  command->add_flag("--skip-cpp", options->skip_cpp, "Use the C++ trace that is already there");
  command->add_flag("--live", options->live, "Compare while the C++ engine runs; write no trace of it");
  command->add_flag("--keep-failing", options->keep_failing, "With --live: write the C++ tensors that differ");
  command->add_option("--out", options->out, "Directory for py.trace and cpp.trace (default: lockstep-debug)");
  command->add_option("--python", options->python, "Python interpreter to use");
  command->callback([options, &exit_code] { exit_code = Debug(*options); });
}

}  // namespace lockstep::cli
