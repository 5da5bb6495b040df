// Residual: stream + branch. What is added how often is measured: factors of the inputs, and of any point that may have
// been added besides or instead.
#include <cmath>

#include "diagnose/causes.h"

namespace lockstep {
namespace {

struct Named {
  double stream, branch;
  const char* cause;
  const char* text;
};

constexpr Named kNamed[] = {
    {0, 1, "residual-missing", "gives the branch alone: the residual is not added"},
    {1, 0, "residual-branch-missing", "gives the residual alone: the branch is not added"},
    {1, 2, "residual-branch-doubled", "adds the branch twice"},
    {2, 1, "residual-doubled", "adds the residual twice"},
    {2, 2, "residual-other", "gives twice the sum"},
    {1, -1, "residual-other", "subtracts the branch instead of adding it"},
    {-1, 1, "residual-other", "subtracts the residual instead of adding it"},
};

// An integer where it is nearly one: a sum was taken so often.
double Snapped(double factor) {
  const double whole = std::round(factor);
  return std::abs(factor - whole) < 0.02 ? whole : factor;
}

std::string Sum(const OpCall& call) {
  std::string out;
  for (size_t i = 0; i < call.inputs.size(); ++i) {
    if (call.factors[i] == 0) continue;
    out += out.empty() ? "" : " + ";
    if (call.factors[i] != 1) out += Number(call.factors[i], 4) + " * ";
    out += NameSeenFrom(call.inputs[i], call.point.layer);
  }
  return out;
}

// The fitted factors of these inputs, added as a hypothesis.
void AddFitted(const Case& fault, const std::vector<PointAt>& inputs, const std::vector<double>& weights,
               std::vector<Hypothesis>* out) {
  std::vector<Block> blocks;
  std::vector<const double*> terms;
  for (const PointAt& input : inputs) {
    std::optional<Block> rows = InputRows(fault, input);
    if (!rows || rows->width != fault.sample.captured.width) return;
    blocks.push_back(std::move(*rows));
  }
  for (const Block& block : blocks) terms.push_back(block.value.data());
  std::vector<double> factors =
      LeastSquares(terms, fault.sample.captured.value.data(), weights.data(), static_cast<int64_t>(weights.size()));
  if (factors.empty()) return;
  for (double& factor : factors) factor = Snapped(factor);
  OpCall call = fault.errors.call;
  call.inputs = inputs;
  call.factors = factors;
  if (inputs.size() > 2 && factors.back() == 0) return;  // the point added nothing
  AddRow(fault, {"residual-other", "gives " + Sum(call), [&](OpCall& c) { c = call; }, 1}, out);
}

}  // namespace

void ProposeForResidual(const Case& fault, std::vector<Hypothesis>* out) {
  const OpCall& call = fault.errors.call;
  for (const Named& named : kNamed) {
    AddRow(fault, {named.cause, named.text, [&](OpCall& c) { c.factors = {named.stream, named.branch}; }}, out);
  }
  const bool attention = call.point.id == Point::kAttnResidualOutput;
  const PointAt normed = {attention ? Point::kAttnNormOutput : Point::kMlpNormOutput, call.point.layer};
  AddRow(fault,
         {"residual-after-norm", "adds the normed stream instead of the stream before the norm",
          [&](OpCall& c) { c.inputs[0] = normed; }},
         out);
  AddWrongInputs(fault, 0, "residual-other", {}, out);
  AddWrongInputs(fault, 1, "residual-other", {}, out);
  const std::vector<double> weights = FitWeights(fault);
  AddFitted(fault, call.inputs, weights, out);
  for (const PointAt& point : EarlierPoints(fault.evaluator, call.point, fault.sample.captured.width)) {
    if (point == call.inputs[0] || point == call.inputs[1]) continue;
    std::vector<PointAt> inputs = call.inputs;
    inputs.push_back(point);
    AddFitted(fault, inputs, weights, out);
  }
}

}  // namespace lockstep
