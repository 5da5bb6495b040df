#include "bench/runs.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/clock.h"
#include "bench/flops.h"

namespace lockstep {
namespace {

double Measured(Samples& samples, double value) {
  samples.values.push_back(value);
  return value;
}

class NothingTap : public Tap {
 public:
  bool Wants(Point, int) override { return false; }
  void OnBegin(const Batch&, std::span<const int32_t>) override {}
  void OnTensor(const TapTensor&) override {}
  void OnEnd(std::span<const int32_t>, std::span<const int32_t>) override {}
};

// A trace of a model whose input embeddings all differ in their lowest bit.
class PerturbingTap : public TraceTap {
 public:
  using TraceTap::TraceTap;
  void OnTensor(const TapTensor& tensor) override {
    if (tensor.point == Point::kInputEmbeddings) {
      const auto count = static_cast<size_t>(tensor.shape[0] * tensor.shape[1]);
      auto* bytes = static_cast<std::byte*>(tensor.data);
      for (size_t i = 0; i < count; ++i) bytes[i * DTypeSize(tensor.dtype)] ^= std::byte{1};  // little-endian
    }
    TraceTap::OnTensor(tensor);
  }
};

void AddSpeed(double tokens, double seconds, double work, double limit, Speed& out) {
  const double tokens_per_second = tokens / seconds;
  out.work_per_token = work / tokens;
  out.tokens_per_second.values.push_back(tokens_per_second);
  out.limit.values.push_back(limit);
  out.share.values.push_back(tokens_per_second * out.work_per_token / limit);
}

void AddCost(double plain, double capture, double write_seconds, CaptureCost& out) {
  out.plain_seconds.values.push_back(plain);
  out.capture_seconds.values.push_back(capture);
  out.ratio.values.push_back(capture / (plain + write_seconds));
}

// The two ways in turns, so that drift of the machine favours neither. Returns the seconds of each.
template <typename Plain, typename Capture>
std::pair<double, double> InTurns(int round, Plain&& plain, Capture&& capture) {
  if (round % 2 == 0) {
    const double first = plain();
    return {first, capture()};
  }
  const double first = capture();
  return {plain(), first};
}

// A prompt with a tap and without; making the tap is not timed.
template <typename MakeTap>
void MeasureTapped(const Model& model, LogitsRows rows, MakeTap&& make_tap, int round, CaptureCost& out) {
  const auto run = [&](Tap* tap) { return Sequence(model, out.tokens).Prefill(rows, tap); };
  const auto [plain, tapped] = InTurns(round, [&] { return run(nullptr); }, [&] { return run(make_tap().get()); });
  AddCost(plain, tapped, 0, out);
}

int64_t DirectoryBytes(const std::string& path) {
  int64_t bytes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
    if (entry.is_regular_file()) bytes += static_cast<int64_t>(entry.file_size());
  }
  return bytes;
}

}  // namespace

double Limits::ReadBytes() { return Measured(read_samples, read.Measure()); }
double Limits::Flops() { return Measured(peak_samples, peak.Measure()); }

Sequence::Sequence(const Model& model, int64_t prompt_length)
    : sequences_(static_cast<size_t>(prompt_length), 0), session_(model, 1, Capacity(prompt_length)) {
  uint32_t state = 1;
  for (int64_t i = 0; i < prompt_length; ++i) {
    state = state * 1664525U + 1013904223U;
    prompt_.push_back(static_cast<int32_t>(state % static_cast<uint64_t>(model.config().vocab_size)));
  }
}

double Sequence::Timed(std::span<const int32_t> tokens, Phase phase, LogitsRows rows, Tap* tap) {
  Batch batch;
  batch.tokens = tokens;
  batch.sequences = std::span(sequences_).first(tokens.size());
  batch.phase = phase;
  batch.logits_rows = rows;
  const auto start = Clock::now();
  const Logits& logits = session_.Forward(batch, tap);
  next_ = logits.Greedy(logits.rows.size() - 1);
  return SecondsSince(start);
}

double Sequence::Prefill(LogitsRows rows, Tap* tap) { return Timed(prompt_, Phase::kPrefill, rows, tap); }

double Sequence::DecodeStep(Tap* tap) {
  const int32_t token = next_;
  return Timed(std::span(&token, 1), Phase::kDecode, LogitsRows::kLast, tap);
}

void MeasurePrefill(Sequence& sequence, const Config& config, Limits& limits, Speed& out) {
  const double before = limits.Flops();
  const double seconds = sequence.Prefill(LogitsRows::kLast, nullptr);
  const double limit = std::max(before, limits.Flops());
  AddSpeed(static_cast<double>(out.tokens), seconds, PrefillFlops(config, out.tokens, 1), limit, out);
}

void MeasureDecode(Sequence& sequence, const Config& config, DType dtype, Limits& limits, Speed& out) {
  sequence.DecodeStep(nullptr);  // the first after a prompt prepares for single rows
  const double before = limits.ReadBytes();
  double seconds = 0;
  double bytes = 0;
  for (int i = 0; i < kDecodeSteps; ++i) {
    seconds += sequence.DecodeStep(nullptr);
    bytes += DecodeBytes(config, dtype, sequence.length());
  }
  const double limit = std::max(before, limits.ReadBytes());
  AddSpeed(kDecodeSteps, seconds, bytes, limit, out);
}

void MeasureTapOffPrefill(const Model& model, int round, CaptureCost& out) {
  MeasureTapped(model, LogitsRows::kLast, [] { return std::make_unique<NothingTap>(); }, round, out);
}

void MeasureTapOffDecode(const Model& model, CaptureCost& out) {
  NothingTap nothing;
  Sequence sequence(model, out.tokens);
  sequence.Prefill(LogitsRows::kLast, nullptr);
  sequence.DecodeStep(nullptr);
  double plain = 0;
  double capture = 0;
  for (int i = 0; i < kDecodeSteps; ++i) {
    const auto [without, with] =
        InTurns(i, [&] { return sequence.DecodeStep(nullptr); }, [&] { return sequence.DecodeStep(&nothing); });
    plain += without;
    capture += with;
  }
  AddCost(plain, capture, 0, out);
}

void MeasureTrace(const Model& model, const std::string& trace, int round, CaptureCost& out) {
  const auto plain_run = [&] { return Sequence(model, out.tokens).Prefill(LogitsRows::kAll, nullptr); };
  const auto capture_run = [&] {
    Sequence sequence(model, out.tokens);
    const auto start = Clock::now();
    PerturbingTap tap(model, trace, {.fingerprints = false});
    sequence.Prefill(LogitsRows::kAll, &tap);
    tap.Close();
    return SecondsSince(start);
  };
  const auto [plain, capture] = InTurns(round, plain_run, capture_run);
  out.bytes = DirectoryBytes(trace);
  const double bandwidth = MeasureWriteBandwidth(trace + ".bytes", out.bytes);
  out.write_bandwidth.values.push_back(bandwidth);
  AddCost(plain, capture, static_cast<double>(out.bytes) / bandwidth, out);
}

void MeasureLive(const Model& model, const std::function<std::unique_ptr<Tap>()>& make_tap, int round,
                 CaptureCost& out) {
  MeasureTapped(model, LogitsRows::kAll, make_tap, round, out);
}

}  // namespace lockstep
