#include "replay/op_call.h"

#include <cassert>
#include <cmath>

#include "base/convert.h"
#include "replay/noise.h"

namespace lockstep {
namespace {

using enum Point;

struct Stored {
  const Weight* weight;
  int64_t columns;
  DType dtype;

  // Whether each number of the stored dtype is one of `dtype`, too.
  bool IsExact() const { return dtype == weight->dtype || dtype == DType::kF64 || dtype == DType::kF32; }

  // out: [count, columns]
  void Read(int64_t begin, int64_t count, double* out) const {
    WithStorageType(weight->dtype, [&]<typename T>() {
      const std::byte* data = weight->data + begin * columns * static_cast<int64_t>(sizeof(T));
      for (int64_t i = 0; i < count * columns; ++i) out[i] = ToFloat(LoadElement<T>(data, static_cast<size_t>(i)));
    });
    if (IsExact()) return;
    const Grid grid(dtype);
    for (int64_t i = 0; i < count * columns; ++i) out[i] = grid.Round(out[i]);
  }
};

// docs/points.md names an input by its point alone; these lie in another layer, or outside the layers.
std::vector<PointAt> InputsOf(const PointAt& point, int num_layers) {
  const int layer = point.layer;
  switch (point.id) {
    case kInputEmbeddings: return {};
    case kInputHiddenStates:
      return layer == 0 ? std::vector<PointAt>{{kInputEmbeddings, -1}}
                        : std::vector<PointAt>{{kLayerOutput, layer - 1}};
    case kFinalNormOutput: return {{kLayerOutput, num_layers - 1}};
    case kLogits: return {{kFinalNormOutput, -1}};
    default: break;
  }
  std::vector<PointAt> inputs;
  for (const std::string_view name : SpecOf(point.id).inputs) {
    if (name == "positions") continue;
    for (const PointSpec& spec : Points()) {
      if (spec.name == name) inputs.push_back({spec.id, layer});
    }
  }
  return inputs;
}

}  // namespace

std::vector<double> RopeFrequencies(double theta, int64_t head_dim) {
  std::vector<double> out;
  for (int64_t i = 0; i < head_dim; i += 2) {
    out.push_back(std::pow(theta, -static_cast<double>(i) / static_cast<double>(head_dim)));
  }
  return out;
}

std::shared_ptr<Matrix> ReplayModel::Weight(const std::string& name, DType dtype) const {
  const lockstep::Weight& weight = checkpoint_.Get(name);
  const int64_t columns = weight.shape.back();
  const int64_t rows = weight.shape.size() == 1 ? 1 : weight.shape.front();
  const Stored stored = {&weight, columns, dtype};
  return std::make_shared<Matrix>(
      Matrix{rows, columns, [stored](int64_t begin, int64_t count, double* out) { stored.Read(begin, count, out); }});
}

std::vector<double> ReplayModel::Vector(const std::string& name, DType dtype) const {
  const std::shared_ptr<Matrix> matrix = Weight(name, dtype);
  std::vector<double> out(static_cast<size_t>(matrix->rows * matrix->columns));
  matrix->read(0, matrix->rows, out.data());
  return out;
}

std::string ReplayModel::WeightName(const PointAt& point) const {
  if (point.id == kLogits) return "lm_head.weight";
  const PointSpec& spec = SpecOf(point.id);
  if (spec.weights.empty()) return "";
  const std::string layer = spec.per_layer ? "layers." + std::to_string(point.layer) + "." : "";
  return "model." + layer + std::string(spec.weights.front()) + ".weight";
}

int64_t ReplayModel::WidthOf(Point point) const {
  const Config& c = config();
  switch (SpecOf(point).axes.at(1)) {
    case Axis::kQHead: return SpecOf(point).axes.at(2) == Axis::kKey ? 0 : c.num_attention_heads * c.head_dim;
    case Axis::kKvHead: return c.num_key_value_heads * c.head_dim;
    case Axis::kIntermediate: return c.intermediate_size;
    case Axis::kVocab: return c.vocab_size;
    default: return c.hidden_size;
  }
}

OpCall ReplayModel::CallOf(const PointAt& point, const Arithmetic& arithmetic) const {
  const Config& c = config();
  OpCall call;
  call.point = point;
  call.inputs = InputsOf(point, static_cast<int>(c.num_hidden_layers));
  const Axis axis = SpecOf(point.id).axes.at(1);
  call.heads = axis == Axis::kQHead ? c.num_attention_heads : axis == Axis::kKvHead ? c.num_key_value_heads : 0;
  call.head_dim = call.heads > 0 ? c.head_dim : 0;
  switch (point.id) {
    case kInputEmbeddings:
      call.op = Op::kEmbedding;
      call.matrix = Weight(WeightName(point), arithmetic.storage);
      break;
    case kInputHiddenStates: call.op = Op::kCopy; break;
    case kAttnNormOutput:
    case kAttnQNormed:
    case kAttnKNormed:
    case kMlpNormOutput:
    case kFinalNormOutput:
      call.op = Op::kRmsNorm;
      call.norm.weight = Vector(WeightName(point), arithmetic.storage);
      call.norm.group = static_cast<int64_t>(call.norm.weight.size());
      call.norm.count = static_cast<double>(call.norm.group);
      call.norm.eps = c.rms_norm_eps;
      break;
    case kAttnQProjRaw:
    case kAttnKProjRaw:
    case kAttnVProjRaw:
    case kAttnOProj:
    case kMlpGateProj:
    case kMlpUpProj:
    case kMlpDownProj:
    case kLogits:
      call.op = Op::kLinear;
      call.matrix = Weight(WeightName(point), arithmetic.operands);
      break;
    case kAttnQRope:
    case kAttnKRope:
      call.op = Op::kRope;
      call.rope.frequencies = RopeFrequencies(c.rope_theta, c.head_dim);
      break;
    case kAttnScores:
    case kAttnContext:
      call.op = point.id == kAttnScores ? Op::kScores : Op::kAttention;
      call.attention.scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
      for (int64_t head = 0; head < c.num_attention_heads; ++head) {
        call.attention.kv_head.push_back(static_cast<int>(head * c.num_key_value_heads / c.num_attention_heads));
      }
      break;
    case kAttnProbs: call.op = Op::kSoftmax; break;
    case kAttnResidualOutput:
    case kLayerOutput:
      call.op = Op::kAdd;
      call.factors = {1, 1};
      break;
    case kMlpIntermediate: call.op = Op::kSwiGlu; break;
  }
  return call;
}

}  // namespace lockstep
