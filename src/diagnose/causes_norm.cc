// RMSNorm: y = w x / sqrt(sum x^2 / count + eps).
#include <cmath>

#include "diagnose/causes.h"

namespace lockstep {
namespace {

struct Measured {
  double squares = 0;  // sum of x^2 over the group
  double inverse = 0;  // (w x / y)^2, which is squares / count + eps
  double weight = 0;   // of this in a fit
};

// One for every affected group of the sample.
std::vector<Measured> Measure(const Case& fault) {
  const OpCall& call = fault.errors.call;
  const NormParams& norm = call.norm;
  const std::optional<Block> input = InputRows(fault, call.inputs.front());
  if (!input || input->width != fault.sample.captured.width) return {};
  const std::vector<double> weights = FitWeights(fault);
  std::vector<Measured> out;
  for (int64_t begin = 0; begin < input->rows * input->width; begin += norm.group) {
    Measured group;
    double xy = 0, xx = 0;
    for (int64_t i = 0; i < norm.group; ++i) {
      const auto at = static_cast<size_t>(begin + i);
      const double x = input->value[at];
      const double wx = x * norm.weight[at % norm.weight.size()];
      group.squares += x * x;
      xy += weights[at] * wx * fault.sample.captured.value[at];
      xx += weights[at] * wx * wx;
    }
    if (!(xy > 0)) continue;
    const double scale = xy / xx;
    group.inverse = 1 / (scale * scale);
    group.weight = xy * scale / (group.inverse * group.inverse);
    out.push_back(group);
  }
  return out;
}

void AddEps(const Case& fault, std::vector<Hypothesis>* out) {
  const double right = fault.errors.call.norm.eps;
  const auto add = [&](double eps, int digits, int freedom) {
    AddRow(fault,
           {"norm-eps", "eps " + Number(eps, digits) + " instead of " + Number(right),
            [eps](OpCall& c) { c.norm.eps = eps; }, freedom},
           out);
  };
  for (const double eps : {1e-5, 1e-6, 1e-8, 1e-12, 0.0, 1e-7, 1e-4, 1e-3}) {
    if (eps != right) add(eps, 7, 0);
  }
  // Solved from the ratios. One group says nothing: any eps would fit it.
  const std::vector<Measured> groups = Measure(fault);
  double sum = 0, total = 0;
  for (const Measured& group : groups) {
    sum += group.weight * (group.inverse - group.squares / fault.errors.call.norm.count);
    total += group.weight;
  }
  if (groups.size() >= 2 && sum > 0) add(sum / total, 3, 1);
}

void AddCounts(const Case& fault, std::vector<Hypothesis>* out) {
  const double right = fault.errors.call.norm.count;
  const Config& config = fault.evaluator.model().config();
  const auto add = [&](const std::string& cause, double count, const std::string& text) {
    if (count > 0 && count != right) AddRow(fault, {cause, text, [count](OpCall& c) { c.norm.count = count; }}, out);
  };
  add("norm-no-mean", 1, "takes the sum of the squares instead of their mean");
  const auto mean_over = [&](double count) {
    add("norm-count", count, "divides the sum of squares by " + Number(count) + " instead of " + Number(right));
  };
  for (const double off : {-1.0, 1.0}) mean_over(right + off);
  // Padded: up to a multiple, or by it.
  for (const double step : {16.0, 32.0, 64.0, 128.0, 256.0}) {
    mean_over(std::ceil(right / step) * step);
    mean_over(right + step);
  }
  const int64_t derived = config.hidden_size / config.num_attention_heads;  // as engines derive a head_dim
  for (const double count : {right / 2, right * 2, std::sqrt(right), static_cast<double>(config.hidden_size),
                             static_cast<double>(config.head_dim), static_cast<double>(derived),
                             static_cast<double>(config.num_attention_heads * config.head_dim)}) {
    mean_over(count);
  }
}

// Each shard of a tensor-parallel run takes its own mean.
void AddGroups(const Case& fault, std::vector<Hypothesis>* out) {
  const OpCall& call = fault.errors.call;
  const int64_t width = fault.sample.captured.width;
  const auto regroup = [width](int64_t group) {
    return [width, group](OpCall& c) {
      const std::vector<double> weight = c.norm.weight;
      c.norm.weight.clear();
      for (int64_t i = 0; i < width; ++i) {
        c.norm.weight.push_back(weight[static_cast<size_t>(i) % weight.size()]);
      }
      c.norm.group = group;
      c.norm.count = static_cast<double>(group);
    };
  };
  if (call.norm.group < width) {
    AddRow(fault, {"norm-whole-row", "takes the mean over all heads of a token instead of each head", regroup(width)},
           out);
  }
  for (const int64_t parts : {2, 4, 8}) {
    if (call.norm.group % parts != 0) continue;
    AddRow(fault,
           {"norm-count", "takes the mean over each of " + std::to_string(parts) + " parts instead of the whole",
            regroup(call.norm.group / parts)},
           out);
  }
}

void AddWeights(const Case& fault, std::vector<Hypothesis>* out) {
  const OpCall& call = fault.errors.call;
  const ReplayModel& model = fault.evaluator.model();
  const DType dtype = fault.errors.arithmetic.storage;
  const std::string own = model.WeightName(call.point);
  const auto add = [&](const PointAt& point) {
    const std::string name = model.WeightName(point);
    if (name == own) return;
    const std::vector<double> weight = model.Vector(name, dtype);
    if (weight.size() != call.norm.weight.size()) return;
    const std::string text = "multiplies by the weight of " + NameSeenFrom(point, call.point.layer);
    AddRow(fault, {"norm-other-weight", text, [weight](OpCall& c) { c.norm.weight = weight; }}, out);
  };
  const Point norms[] = {Point::kAttnNormOutput, Point::kAttnQNormed, Point::kAttnKNormed, Point::kMlpNormOutput};
  if (call.point.layer >= 0) {
    for (const Point id : norms) add({id, call.point.layer});
  }
  add({Point::kFinalNormOutput, -1});
  for (int layer = 0; layer < model.config().num_hidden_layers; ++layer) {
    if (layer == call.point.layer) continue;
    for (const Point id : norms) add({id, layer});
  }
}

// The rotation before the norm: seen here where the norm's own output was captured after both.
void AddRotatedInput(const Case& fault, std::vector<Hypothesis>* out) {
  const Point id = fault.errors.call.point.id;
  if (id != Point::kAttnQNormed && id != Point::kAttnKNormed) return;
  const Point rope = id == Point::kAttnQNormed ? Point::kAttnQRope : Point::kAttnKRope;
  OpCall rotate = fault.evaluator.CallOf({rope, fault.errors.call.point.layer});
  rotate.inputs = fault.errors.call.inputs;
  Evaluator* evaluator = &fault.evaluator;
  const auto before = [evaluator, rotate](const std::vector<TokenAt>& tokens, size_t, Block* block) {
    *block = EvaluateRows(*evaluator, rotate, tokens).block;
  };
  AddRow(
      fault,
      {"rope-before-norm", "rotates before the norm instead of after it", [before](OpCall& c) { c.before = before; }},
      out);
}

}  // namespace

void ProposeForNorm(const Case& fault, std::vector<Hypothesis>* out) {
  const Row rows[] = {
      {"norm-skipped", "gives its input: the norm is left out", [](OpCall& c) { c.op = Op::kCopy; }},
      {"norm-no-weight", "does not multiply by the weight",
       [](OpCall& c) { c.norm.weight.assign(c.norm.weight.size(), 1.0); }},
      {"norm-one-plus-weight", "multiplies by 1 + weight",
       [](OpCall& c) {
         for (double& w : c.norm.weight) w += 1;
       }},
      {"norm-mean-subtracted", "subtracts the mean first, as LayerNorm does",
       [](OpCall& c) { c.norm.subtract_mean = true; }},
      {"norm-twice", "is applied twice", [](OpCall& c) { c.norm.times = 2; }},
      {"norm-twice", "multiplies by the weight twice",
       [](OpCall& c) {
         for (double& w : c.norm.weight) w *= w;
       }},
  };
  AddRows(fault, rows, out);
  AddEps(fault, out);
  AddRow(fault,
         {"norm-eps-outside-root", "adds eps outside the root", [](OpCall& c) { c.norm.eps_outside_root = true; }},
         out);
  AddCounts(fault, out);
  AddGroups(fault, out);
  AddWeights(fault, out);
  AddRotatedInput(fault, out);
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const bool input : {false, true}) {
      AddRow(fault,
             {"norm-low-precision-statistics",
              std::string("sums the squares in ") + (dtype == DType::kBF16 ? "bf16" : "f16"),
              [=](OpCall& c) { c.norm.statistics = dtype, c.norm.statistics_of_rounded = input; }},
             out);
    }
  }
  AddWrongInputs(fault, 0, "norm-wrong-input", {}, out);
}

}  // namespace lockstep
