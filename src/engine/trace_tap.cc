#include <algorithm>
#include <stdexcept>
#include <vector>

#include "lockstep/engine.h"
#include "lockstep/error.h"
#include "lockstep/version.h"

namespace lockstep {
namespace {

Selection ParseSelection(const TraceTapOptions& options) {
  try {
    return {options.points, options.layers, options.steps, options.rows};
  } catch (const std::invalid_argument& e) {
    throw Error(e.what());
  }
}

ListView<int32_t> List(std::span<const int32_t> values) { return {values.data(), values.size()}; }

// Errors of the capture header become the library's one exception type.
template <typename Action>
auto Translated(Action&& action) {
  try {
    return action();
  } catch (const std::runtime_error& e) {
    throw Error(e.what());
  }
}

}  // namespace

TraceInfo TraceInfoOf(const Model& model, const TraceTapOptions& options) {
  const Selection selection = ParseSelection(options);
  TraceInfo info;
  info.producer = "lockstep";
  info.producer_version = LOCKSTEP_VERSION;
  info.config_json = model.config().TraceJson();
  info.storage = model.dtype();
  info.select_points = options.points;
  info.select_layers = options.layers;
  info.select_steps = options.steps;
  info.select_rows = options.rows;
  info.throw_errors = true;
  if (!options.promise) return info;
  for (std::string& name : AllPointNames(static_cast<int>(model.config().num_hidden_layers), true)) {
    if (selection.WantsPoint(name)) info.points.push_back(std::move(name));
  }
  return info;
}

struct TraceTap::Impl {
  Impl(const Model& model, const std::string& path, const TraceTapOptions& options)
      : selection(ParseSelection(options)), trace(path, TraceInfoOf(model, options)) {}

  Selection selection;
  Trace trace;
  Step step;
  size_t tokens = 0;  // of the step
};

TraceTap::TraceTap(const Model& model, const std::string& path, const TraceTapOptions& options)
    : impl_(Translated([&] { return std::make_unique<Impl>(model, path, options); })) {
  if (!options.fingerprints) return;
  for (const Model::Fingerprint& weight : model.Fingerprints()) {
    impl_->trace.SetWeight(weight.name, model.dtype(), weight.shape, weight.hash);
  }
}

TraceTap::~TraceTap() = default;

bool TraceTap::Wants(Point point, int layer) {
  return impl_->step ? impl_->step.wants(PointName(point, layer))
                     : impl_->selection.WantsPoint(PointName(point, layer));
}

void TraceTap::OnBegin(const Batch& batch, std::span<const int32_t> positions) {
  impl_->tokens = batch.tokens.size();
  // Given embeddings, no token was read, whatever the text was.
  std::vector<int32_t> ids(batch.tokens.begin(), batch.tokens.end());
  if (!batch.embeddings.empty()) std::fill(ids.begin(), ids.end(), -1);
  impl_->step = Translated([&] {
    return impl_->trace.BeginStep(ids.data(), positions.data(), batch.sequences.data(),
                                  static_cast<int64_t>(positions.size()), batch.phase);
  });
}

void TraceTap::OnTensor(const TapTensor& tensor) {
  const std::string name = PointName(tensor.point, tensor.layer);
  Translated([&] {
    if (tensor.rows.size() == impl_->tokens) {
      impl_->step.Record(name, tensor.data, tensor.dtype, tensor.shape, tensor.strides);
    } else {
      impl_->step.RecordRows(name, tensor.data, tensor.dtype, tensor.shape, List(tensor.rows), tensor.strides);
    }
  });
}

void TraceTap::OnEnd(std::span<const int32_t> rows, std::span<const int32_t> next) {
  Translated([&] {
    impl_->step.RecordRows("next_token", next.data(), DType::kI32, {static_cast<int64_t>(next.size())}, List(rows));
    impl_->step.End();
  });
}

void TraceTap::Close() {
  Translated([&] { impl_->trace.Close(); });
  if (!impl_->trace.error().empty()) throw Error(impl_->trace.error());
}

}  // namespace lockstep
