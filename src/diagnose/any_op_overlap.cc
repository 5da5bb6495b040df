// Heads taken for rows: a kernel that is run per head on what it believes to be a contiguous block of T rows at the
// head's base, while the rows of a head are H apart. Seen as [T * H] rows of head_dim, it touches rows h .. h + T - 1
// for each head h, instead of h, h + H, h + 2 H, …: the first H + T - 1 rows, most of them more than once, and no
// other. Right for a step of one token.
#include <algorithm>
#include <cmath>

#include "diagnose/any_op.h"

namespace lockstep {
namespace {

constexpr const char* kAdvice =
    "Give the kernel the stride between the rows of a head, heads * head_dim: they are not contiguous.";

// The heads' blocks that touch row i, as a range of heads; the token that head h takes it for is i - h.
struct Touched {
  int64_t first = 0, last = -1;
  int64_t times() const { return std::max<int64_t>(0, last - first + 1); }
};

Touched TouchedBy(int64_t i, int64_t heads, int64_t tokens) {
  return {std::max<int64_t>(0, i - tokens + 1), std::min(heads - 1, i)};
}

// Calls change(token, head, positions of the step, value, variance) for every head of every row.
template <typename Change>
After OnHeads(const Case& fault, Change change) {
  const TraceRuns& runs = fault.evaluator.captures().runs();
  const int64_t heads = fault.errors.call.heads;
  return [&runs, heads, change](const std::vector<TokenAt>& tokens, Block* block) {
    const int64_t d = block->width / heads;
    for (size_t r = 0; r < tokens.size(); ++r) {
      const Run& run = runs.runs[static_cast<size_t>(tokens[r].run)];
      const std::vector<int32_t>& positions = run.Tokens(static_cast<size_t>(tokens[r].step)).positions;
      const auto row = static_cast<int64_t>(r);
      for (int64_t h = 0; h < heads; ++h) {
        change(tokens[r], h, positions, block->Row(row) + h * d, block->Variance(row) + h * d);
      }
    }
  };
}

void NormAgain(const NormParams& norm, int64_t head, DType storage, double* value, double* variance) {
  const int64_t d = norm.group;
  const double* weight = norm.weight.data();
  if (static_cast<int64_t>(norm.weight.size()) > d) weight += head * d;
  double squares = 0;
  for (int64_t k = 0; k < d; ++k) squares += value[k] * value[k];
  const double scale = 1 / std::sqrt(squares / norm.count + norm.eps);
  for (int64_t k = 0; k < d; ++k) {
    const double factor = scale * weight[k];
    value[k] *= factor;
    variance[k] = factor * factor * variance[k] + 2 * StorageRounding(storage, value[k]);
  }
}

// In place: as often as the blocks overlap, and what none touches stays.
After NormInPlace(const Case& fault) {
  const OpCall& call = fault.errors.call;
  Evaluator& evaluator = fault.evaluator;
  const NormParams norm = call.norm;
  const DType storage = fault.errors.arithmetic.storage;
  const int64_t heads = call.heads;
  const PointAt input = call.inputs.front();
  return OnHeads(fault, [=, &evaluator](const TokenAt& token, int64_t h, const std::vector<int32_t>& positions,
                                        double* value, double* variance) {
    const auto count = static_cast<int64_t>(positions.size());
    const int64_t times = TouchedBy(token.token * heads + h, heads, count).times();
    for (int64_t n = 1; n < times; ++n) NormAgain(norm, h, storage, value, variance);
    if (times > 0) return;
    const Evaluated x = evaluator.Captured(input, {token});
    std::copy_n(x.block.Row(0) + h * norm.group, norm.group, value);
  });
}

// Not in place: what no block touches is `rest`: the input's values, or zero.
After Unwritten(const Case& fault, bool zero) {
  Evaluator& evaluator = fault.evaluator;
  const OpCall& call = fault.errors.call;
  const int64_t heads = call.heads, d = fault.sample.captured.width / heads;
  const PointAt input = call.inputs.front();
  return OnHeads(fault, [=, &evaluator](const TokenAt& token, int64_t h, const std::vector<int32_t>& positions,
                                        double* value, double*) {
    if (TouchedBy(token.token * heads + h, heads, static_cast<int64_t>(positions.size())).times() > 0) return;
    if (zero) {
      std::fill_n(value, d, 0.0);
    } else {
      std::copy_n(evaluator.Captured(input, {token}).block.Row(0) + h * d, d, value);
    }
  });
}

// Memory that was never written can hold anything: taken as it is, after OnlyFirstRowsRight has shown that exactly
// those cells are wrong.
After Stale(const Case& fault) {
  Evaluator& evaluator = fault.evaluator;
  const OpCall& call = fault.errors.call;
  const int64_t heads = call.heads, d = fault.sample.captured.width / heads;
  const PointAt point = call.point;
  return OnHeads(fault, [=, &evaluator](const TokenAt& token, int64_t h, const std::vector<int32_t>& positions,
                                        double* value, double*) {
    if (TouchedBy(token.token * heads + h, heads, static_cast<int64_t>(positions.size())).times() > 0) return;
    std::copy_n(evaluator.Captured(point, {token}).block.Row(0) + h * d, d, value);
  });
}

void Rotate(const RopeParams& rope, int64_t d, double positions, double* value) {
  const auto pairs = static_cast<int64_t>(rope.frequencies.size());
  for (int64_t k = 0; k < pairs; ++k) {
    const double angle = rope.direction * positions * rope.frequencies[static_cast<size_t>(k)];
    const int64_t low = rope.interleaved ? 2 * k : k, high = rope.interleaved ? 2 * k + 1 : k + d / 2;
    const double a = value[low], b = value[high], c = std::cos(angle), s = std::sin(angle);
    value[low] = a * c - b * s;
    value[high] = b * c + a * s;
  }
}

// The right result turned on to the position that the row was really given: in place the sum of all that touch it, else
// that of the block which is written last. What none touches is not turned.
After RotatedElsewhere(const Case& fault, bool in_place) {
  const OpCall& call = fault.errors.call;
  const RopeParams rope = call.rope;
  const int64_t heads = call.heads, d = call.head_dim;
  const DType storage = fault.errors.arithmetic.storage;
  return OnHeads(fault, [=](const TokenAt& token, int64_t h, const std::vector<int32_t>& positions, double* value,
                            double* variance) {
    const int64_t i = token.token * heads + h;
    const Touched touched = TouchedBy(i, heads, static_cast<int64_t>(positions.size()));
    double position = 0;
    for (int64_t by = in_place ? touched.first : touched.last; by <= touched.last && touched.times() > 0; ++by) {
      position += positions[static_cast<size_t>(i - by)];
    }
    Rotate(rope, d, position - token.position, value);
    const double more = in_place ? static_cast<double>(std::max<int64_t>(1, touched.times())) : 1;
    for (int64_t k = 0; k < d; ++k) variance[k] = more * variance[k] + StorageRounding(storage, value[k]);
  });
}

}  // namespace

void ProposeOverlapping(const Case& fault, const Evidence& evidence, std::vector<Hypothesis>* out) {
  const OpCall& call = fault.errors.call;
  if (call.heads < 2 || call.inputs.empty() || evidence.everything()) return;
  const auto steps = TokensOfSteps(fault.errors);
  if (std::none_of(steps.begin(), steps.end(), [](const auto& step) { return step.second > 1; })) return;
  const auto add = [&](const char* text, After after) {
    if (!ExplainsSample(evidence, fault.sample, after)) return false;
    out->push_back(Changed(call, "rows-overlapping", text, kAdvice, std::move(after)));
    return true;
  };
  constexpr const char* kUnwritten =
      "takes a head's rows for a contiguous block: only the first H + T - 1 rows are written";
  constexpr const char* kInPlace =
      "takes a head's rows for a contiguous block, in place: rows overlap and are changed several times";
  if (call.op == Op::kRope && call.rope.times == 1 && call.rope.magnitude == 1 && !call.rope.position) {
    if (add(kInPlace, RotatedElsewhere(fault, true))) return;
    if (add("takes a head's rows for a contiguous block: rows are turned to other tokens' positions",
            RotatedElsewhere(fault, false)))
      return;
  }
  if (call.op == Op::kRmsNorm && call.norm.times == 1 && call.norm.group * call.heads == evidence.width()) {
    if (add(kInPlace, NormInPlace(fault))) return;
  }
  if (!OnlyFirstRowsRight(evidence)) return;
  if (add(kUnwritten, Unwritten(fault, true))) return;
  if (fault.evaluator.model().WidthOf(call.inputs.front().id) == evidence.width() &&
      add(kUnwritten, Unwritten(fault, false)))
    return;
  add(kUnwritten, Stale(fault));
}

}  // namespace lockstep
