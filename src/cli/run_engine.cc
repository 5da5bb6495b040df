#include "cli/run_engine.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "cli/command.h"
#include "lockstep/error.h"

namespace lockstep::cli {

std::string SecondsText(double seconds) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f s", seconds);
  return text;
}

std::string PeakMemoryText() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return std::to_string(usage.ru_maxrss / 1024) + " MiB";
}

namespace {

// Shows on a terminal which step and layer the engine is at; what it sees goes on.
class ProgressTap : public Tap {
 public:
  ProgressTap(Tap& next, int64_t layers) : next_(next), layers_(layers), terminal_(isatty(STDERR_FILENO) != 0) {}
  ~ProgressTap() override { Clear(); }

  bool Wants(Point point, int layer) override {
    return (terminal_ && point == Point::kInputHiddenStates) || next_.Wants(point, layer);
  }
  void OnBegin(const Batch& batch, std::span<const int32_t> positions) override {
    ++steps_;
    tokens_ += batch.tokens.size();
    next_.OnBegin(batch, positions);
  }
  void OnTensor(const TapTensor& tensor) override {
    if (terminal_ && tensor.point == Point::kInputHiddenStates) {
      std::fprintf(stderr, "\rc++: step %zu, layer %d of %lld ", steps_, tensor.layer + 1,
                   static_cast<long long>(layers_));
    }
    if (next_.Wants(tensor.point, tensor.layer)) next_.OnTensor(tensor);
  }
  void OnEnd(std::span<const int32_t> rows, std::span<const int32_t> next) override { next_.OnEnd(rows, next); }

  void Clear() const {
    if (terminal_) std::fprintf(stderr, "\r\033[K");
  }
  size_t steps() const { return steps_; }
  size_t tokens() const { return tokens_; }

 private:
  Tap& next_;
  int64_t layers_;
  bool terminal_;
  size_t steps_ = 0;
  size_t tokens_ = 0;
};

// The tokens of one forward call, gathered sequence by sequence.
struct Call {
  std::vector<int32_t> tokens, sequences;
  std::vector<float> embeddings;

  const Logits& Run(Session& session, Phase phase, Tap* tap) const {
    Batch batch;
    batch.tokens = tokens;
    batch.sequences = sequences;
    batch.embeddings = embeddings;
    batch.phase = phase;
    batch.logits_rows = LogitsRows::kAll;
    return session.Forward(batch, tap);
  }
};

class Runner {
 public:
  // Throws Error for sequences that cannot be run, before anything is written.
  Runner(const EngineRun& run, const Model& model)
      : run_(run),
        hidden_(static_cast<size_t>(model.config().hidden_size)),
        session_(model, static_cast<int>(run.sequences.size()), Capacity(run)),
        next_(run.sequences.size()) {
    for (const SequenceInput& sequence : run.sequences) {
      if (sequence.prompt.empty()) throw Error("an empty prompt: expected at least one token");
      if (sequence.embeddings.empty()) CheckTokens(model.config(), sequence.prompt);
      CheckTokens(model.config(), sequence.forced);
    }
  }

  void Run(Tap* tap) {
    tap_ = tap;
    size_t longest = 0;
    for (const SequenceInput& sequence : run_.sequences) longest = std::max(longest, sequence.prompt.size());
    const size_t chunk = run_.chunk > 0 ? static_cast<size_t>(run_.chunk) : longest;
    for (size_t begin = 0; begin < longest; begin += chunk) Prefill(begin, begin + chunk);
    for (size_t i = 0; i < DecodeSteps(); ++i) Decode(i);
  }

 private:
  static int64_t Capacity(const EngineRun& run) {
    size_t capacity = 0;
    for (const SequenceInput& sequence : run.sequences) {
      const size_t decoded = sequence.forced.empty() ? static_cast<size_t>(run.decode) : sequence.forced.size();
      capacity = std::max(capacity, sequence.prompt.size() + decoded);
    }
    return std::max<int64_t>(1, static_cast<int64_t>(capacity));  // an empty prompt is refused by name
  }

  size_t DecodeSteps() const {
    size_t steps = static_cast<size_t>(run_.decode);
    for (const SequenceInput& sequence : run_.sequences) steps = std::max(steps, sequence.forced.size());
    return steps;
  }

  // Tokens [begin, end) of every prompt that is that long.
  void Prefill(size_t begin, size_t end) {
    Call call;
    for (size_t s = 0; s < run_.sequences.size(); ++s) {
      const SequenceInput& sequence = run_.sequences[s];
      for (size_t t = begin; t < std::min(end, sequence.prompt.size()); ++t) {
        call.tokens.push_back(sequence.prompt[t]);
        call.sequences.push_back(static_cast<int32_t>(s));
        if (sequence.embeddings.empty()) continue;
        const auto row = sequence.embeddings.begin() + static_cast<std::ptrdiff_t>(t * hidden_);
        call.embeddings.insert(call.embeddings.end(), row, row + static_cast<std::ptrdiff_t>(hidden_));
      }
    }
    Keep(call, call.Run(session_, Phase::kPrefill, tap_));
  }

  // Step i of every sequence that has one: its own token, or the greedy choice.
  void Decode(size_t i) {
    Call call;
    for (size_t s = 0; s < run_.sequences.size(); ++s) {
      const std::vector<int32_t>& forced = run_.sequences[s].forced;
      if (!forced.empty() && i >= forced.size()) continue;
      if (forced.empty() && i >= static_cast<size_t>(run_.decode)) continue;
      call.tokens.push_back(forced.empty() ? next_[s] : forced[i]);
      call.sequences.push_back(static_cast<int32_t>(s));
    }
    Keep(call, call.Run(session_, Phase::kDecode, tap_));
  }

  // Remembers the greedy choice after the last token of each sequence in the call.
  void Keep(const Call& call, const Logits& logits) {
    for (size_t r = 0; r < logits.rows.size(); ++r) {
      const auto t = static_cast<size_t>(logits.rows[r]);
      const bool last = t + 1 == call.sequences.size() || call.sequences[t + 1] != call.sequences[t];
      if (last) next_[static_cast<size_t>(call.sequences[t])] = logits.Greedy(r);
    }
  }

  const EngineRun& run_;
  size_t hidden_;
  Tap* tap_ = nullptr;
  Session session_;
  std::vector<int32_t> next_;  // [sequences]
};

void PlaceEmbeddings(EngineRun& run, int64_t hidden) {
  if (run.embeddings.empty()) return;
  std::vector<int64_t> lengths;
  for (const SequenceInput& sequence : run.sequences) lengths.push_back(static_cast<int64_t>(sequence.prompt.size()));
  std::vector<std::vector<float>> blocks = InputEmbeddings(run.embeddings, hidden, lengths);
  run.sequences.resize(blocks.size());
  for (size_t s = 0; s < blocks.size(); ++s) {
    SequenceInput& sequence = run.sequences[s];
    if (sequence.prompt.empty()) sequence.prompt.assign(blocks[s].size() / static_cast<size_t>(hidden), -1);
    sequence.embeddings = std::move(blocks[s]);
  }
}

class TraceOutput : public EngineOutput {
 public:
  Tap& Open(const Model& model, const EngineRun& run) override {
    return trace_.emplace(model, run.out, TapOptions(run.options));
  }
  void Close() override { trace_->Close(); }

 private:
  std::optional<TraceTap> trace_;
};

}  // namespace

TraceTapOptions TapOptions(const ModelRunOptions& options) {
  return {options.points, options.layers, options.steps, options.rows};
}

void CaptureEngine(EngineRun run) {
  TraceOutput output;
  RunEngine(std::move(run), output);
}

Model LoadModel(const ModelArguments& arguments) {
  const std::optional<DType> dtype = ParseDType(arguments.dtype);
  Model model = Model::Load(arguments.model, {.dtype = *dtype, .num_layers = arguments.num_layers});
  for (const std::string& unused : model.checkpoint()->unused()) {
    std::fprintf(stderr, "c++: unused weight: %s\n", unused.c_str());
  }
  return model;
}

void RunEngine(EngineRun run, EngineOutput& output) {
  const auto start = std::chrono::steady_clock::now();
  const Model model = LoadModel(run.options);
  PlaceEmbeddings(run, model.config().hidden_size);
  Runner runner(run, model);
  ProgressTap progress(output.Open(model, run), model.config().num_hidden_layers);
  runner.Run(&progress);
  output.Close();
  progress.Clear();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::fprintf(stderr, "c++: %s: %zu steps, %zu tokens, %s, peak memory %s\n", run.out.c_str(), progress.steps(),
               progress.tokens(), SecondsText(seconds.count()).c_str(), PeakMemoryText().c_str());
}

}  // namespace lockstep::cli
