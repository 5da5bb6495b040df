#include "lockstep/bench.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "base/clock.h"
#include "base/parallel.h"
#include "bench/memory.h"
#include "bench/runs.h"
#include "bench/shapes.h"
#include "lockstep/engine.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

// Removed with all that is in it at the end.
class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "lockstep-bench-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw Error(pattern + ": no temporary directory can be made");
    path_ = pattern;
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

void CheckOptions(const BenchOptions& options) {
  if (options.model.empty() == options.shape.empty()) {
    throw Error("bench: expected a checkpoint's directory or a shape, found " +
                std::string(options.model.empty() ? "neither" : "both"));
  }
  if (options.repeat < 1) throw Error("bench: expected at least one round, found " + std::to_string(options.repeat));
  if (options.threads < 0) throw Error("bench: expected threads above 0, found " + std::to_string(options.threads));
  for (const std::vector<int64_t>* lengths : {&options.prefill, &options.decode}) {
    if (lengths->empty()) throw Error("bench: expected at least one length for prefill and for decode, found none");
  }
}

std::set<int64_t> Lengths(const BenchOptions& options) {
  std::set<int64_t> lengths(options.prefill.begin(), options.prefill.end());
  lengths.insert(options.decode.begin(), options.decode.end());
  return lengths;
}

void CheckLengths(const BenchOptions& options, const Config& config) {
  const std::set<int64_t> lengths = Lengths(options);
  if (*lengths.begin() < 1) throw Error("bench: expected lengths above 0, found " + std::to_string(*lengths.begin()));
  const int64_t longest = config.max_position_embeddings - Capacity(0);
  if (*lengths.rbegin() > longest) {
    throw Error("bench: expected lengths up to " + std::to_string(longest) + " (max_position_embeddings " +
                std::to_string(config.max_position_embeddings) + ", less what is decoded), found " +
                std::to_string(*lengths.rbegin()));
  }
}

// Of the prompts that taps are measured with.
int64_t CaptureLength(const BenchOptions& options) {
  const std::set<int64_t> lengths(options.prefill.begin(), options.prefill.end());
  return *std::next(lengths.begin(), static_cast<std::ptrdiff_t>(lengths.size() / 2));
}

void CheckMemory(const BenchOptions& options, const Config& config) {
  const int64_t capacity = Capacity(*Lengths(options).rbegin());
  const int64_t rows = CaptureLength(options);
  RequireMemory((options.model.empty() ? options.shape : options.model) + " in " + DTypeName(options.dtype),
                EngineMemory(config, options.dtype, capacity, rows) + ReadBandwidth::BufferBytes(), AvailableMemory());
}

Model LoadModel(const BenchOptions& options, const Config& config) {
  if (!options.model.empty()) return Model::Load(options.model, {.dtype = options.dtype});
  return Model::Random(config, {.dtype = options.dtype});
}

// Speeds and costs with nothing measured yet.
void Prepare(const BenchOptions& options, BenchResult& result) {
  for (const int64_t tokens : std::set<int64_t>(options.prefill.begin(), options.prefill.end())) {
    result.prefill.push_back({.tokens = tokens});
  }
  for (const int64_t tokens : std::set<int64_t>(options.decode.begin(), options.decode.end())) {
    result.decode.push_back({.tokens = tokens});
  }
  const int64_t tokens = CaptureLength(options);
  result.capture.push_back({.mode = "off", .phase = "prefill", .tokens = tokens});
  result.capture.push_back({.mode = "off", .phase = "decode", .tokens = result.decode.front().tokens});
  result.capture.push_back({.mode = "disk", .phase = "prefill", .tokens = tokens});
  if (options.live_tap) result.capture.push_back({.mode = "live", .phase = "prefill", .tokens = tokens});
}

Speed* Find(std::vector<Speed>& speeds, int64_t tokens) {
  const auto found = std::find_if(speeds.begin(), speeds.end(), [&](const Speed& s) { return s.tokens == tokens; });
  return found == speeds.end() ? nullptr : &*found;
}

// A context is prefilled once, and that is measured too where it was asked for.
void MeasureLength(const Model& model, int64_t tokens, Limits& limits, BenchResult& result) {
  Sequence sequence(model, tokens);
  Speed* prefill = Find(result.prefill, tokens);
  if (prefill != nullptr) {
    MeasurePrefill(sequence, model.config(), limits, *prefill);
  } else {
    sequence.Prefill(LogitsRows::kLast, nullptr);
  }
  Speed* decode = Find(result.decode, tokens);
  if (decode != nullptr) MeasureDecode(sequence, model.config(), model.dtype(), limits, *decode);
}

void MeasureRound(const Model& model, const BenchOptions& options, const std::string& trace, int round, Limits& limits,
                  BenchResult& result, const std::function<void(const std::string&)>& progress) {
  std::set<int64_t> lengths;
  for (const Speed& speed : result.prefill) lengths.insert(speed.tokens);
  for (const Speed& speed : result.decode) lengths.insert(speed.tokens);
  const std::string prefix = "round " + std::to_string(round + 1) + ", ";
  for (const int64_t tokens : lengths) {
    progress(prefix + std::to_string(tokens) + " tokens");
    MeasureLength(model, tokens, limits, result);
  }
  progress(prefix + "capture");
  MeasureTapOffPrefill(model, round, result.capture[0]);
  MeasureTapOffDecode(model, result.capture[1]);
  MeasureTrace(model, trace, round, result.capture[2]);
  if (options.live_tap) {
    MeasureLive(model, [&] { return options.live_tap(model, trace); }, round, result.capture[3]);
  }
}

// Also warms everything up. Before the buffers of the measurements exist, so that the peak is the engine's own.
void MeasureLoadAndMemory(const Model& model, int64_t longest, BenchResult& result) {
  result.loaded_memory_bytes = PeakMemory();
  Sequence sequence(model, longest);
  sequence.Prefill(LogitsRows::kLast, nullptr);
  sequence.DecodeStep(nullptr);
  result.peak_memory_bytes = PeakMemory();
}

}  // namespace

double Samples::Median() const {
  if (values.empty()) return 0;
  std::vector<double> sorted = values;
  std::sort(sorted.begin(), sorted.end());
  const size_t middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

double Samples::Best() const { return values.empty() ? 0 : *std::max_element(values.begin(), values.end()); }

BenchResult Bench(const BenchOptions& options) {
  CheckOptions(options);
  const Config config = options.model.empty() ? ConfigOfShape(options.shape) : ReadConfig(options.model);
  CheckLengths(options, config);
  CheckMemory(options, config);
  // From here on the run is possible.
  const auto progress = [&](const std::string& what) {
    if (options.progress) options.progress(what);
  };
  if (options.threads > 0) SetMaxThreads(options.threads);

  BenchResult result;
  result.model = options.model.empty() ? options.shape : options.model;
  result.is_random = options.model.empty();
  result.config = config;
  result.dtype = options.dtype;
  result.threads = MaxThreads();
  result.engine = MatmulDescription();
  Prepare(options, result);

  progress("loading");
  const auto start = Clock::now();
  const Model model = LoadModel(options, config);
  result.load_seconds = SecondsSince(start);
  progress("warming up");
  MeasureLoadAndMemory(model, *Lengths(options).rbegin(), result);

  Limits limits(options.dtype);
  const ScratchDirectory scratch;
  for (int round = 0; round < options.repeat; ++round) {
    MeasureRound(model, options, scratch.path() + "/bench.trace", round, limits, result, progress);
  }
  result.peak_loop = limits.peak.loop();
  result.read_bandwidth = limits.read_samples;
  result.peak_flops = limits.peak_samples;
  if (HasTiles(options.dtype)) {
    result.notes.emplace_back(
        "the processor has AMX tiles, which the peak FLOP/s does not measure: shares above 1 are possible");
  }
  return result;
}

}  // namespace lockstep
