#include "cli/live_output.h"

#include <utility>

#include "lockstep/points.h"

namespace lockstep::cli {

class LiveTap : public Tap {
 public:
  LiveTap(LiveComparison live, const Model& model, const std::string& failing, TraceTapOptions options)
      : live_(std::move(live)) {
    if (options.fingerprints) {
      for (const Model::Fingerprint& weight : model.Fingerprints()) {
        live_.SetWeight(weight.name, model.dtype(), weight.shape, weight.hash);
      }
    }
    options.promise = options.fingerprints = false;
    if (!failing.empty()) failing_.emplace(model, failing, options);
  }

  bool Wants(Point point, int layer) override { return live_.Wants(PointName(point, layer)); }
  void OnBegin(const Batch& batch, std::span<const int32_t> positions) override {
    live_.BeginStep(batch.tokens, positions, batch.sequences, batch.phase);
    if (failing_) failing_->OnBegin(batch, positions);
  }
  void OnTensor(const TapTensor& tensor) override {
    const std::string name = PointName(tensor.point, tensor.layer);
    const bool differs = live_.Record(name, tensor.data, tensor.dtype, tensor.shape, tensor.strides, tensor.rows);
    if (differs && failing_) failing_->OnTensor(tensor);
  }
  void OnEnd(std::span<const int32_t> rows, std::span<const int32_t> next) override {
    live_.Record("next_token", next.data(), DType::kI32, {static_cast<int64_t>(next.size())}, {}, rows);
    live_.EndStep();
    if (failing_) failing_->OnEnd(rows, next);
  }

  void Close() {
    if (failing_) failing_->Close();
  }
  LiveComparison& live() { return live_; }

 private:
  LiveComparison live_;
  std::optional<TraceTap> failing_;
};

std::unique_ptr<Tap> MakeSilentLiveTap(const Model& model, const std::string& reference) {
  const TraceTapOptions options{.fingerprints = false};
  return std::make_unique<LiveTap>(LiveComparison({reference}, "engine", TraceInfoOf(model, options), {}), model, "",
                                   options);
}

LiveOutput::LiveOutput(std::string reference, std::string failing, const ComparisonOptions& options)
    : reference_(std::move(reference)), failing_(std::move(failing)), options_(OptionsOf(options)) {
  options_.progress = nullptr;  // the engine shows its own
}

LiveOutput::~LiveOutput() = default;

Tap& LiveOutput::Open(const Model& model, const EngineRun& run) {
  const TraceTapOptions options = TapOptions(run.options);
  tap_ = std::make_unique<LiveTap>(LiveComparison({reference_}, run.out, TraceInfoOf(model, options), options_), model,
                                   failing_, options);
  return *tap_;
}

void LiveOutput::Close() { tap_->Close(); }

CompareResult LiveOutput::Finish() { return tap_->live().Finish(); }

}  // namespace lockstep::cli
