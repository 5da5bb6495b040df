#include "diagnose/any_op.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "diagnose/causes.h"

namespace lockstep {
namespace {

using Element = std::function<void(int64_t channel, double* value, double* variance)>;

// REQUIRES: the block's variance is there.
After OnEach(Element element) {
  return [element = std::move(element)](const std::vector<TokenAt>&, Block* block) {
    for (int64_t r = 0; r < block->rows; ++r) {
      double *value = block->Row(r), *variance = block->Variance(r);
      for (int64_t c = 0; c < block->width; ++c) element(c, value + c, variance + c);
    }
  };
}

void ProposeScaled(const Evidence& evidence, std::vector<Hypothesis>* out) {
  const std::optional<Ratio> ratio = FitRatio(evidence);
  if (!ratio) return;
  int exponent = 0;
  const double factor = ratio->value;
  const bool exact = std::abs(std::frexp(factor, &exponent)) == 0.5;
  const DType storage = evidence.storage();
  out->push_back(Changed(evidence.call(), "values-scaled", "scales its result by " + ratio->name,
                         "Look for a factor that is applied twice, or not at all.",
                         OnEach([=](int64_t, double* value, double* variance) {
                           *value *= factor;
                           *variance *= factor * factor;
                           if (!exact) *variance += StorageRounding(storage, *value);
                         })));
}

void ProposePermuted(const Evidence& evidence, std::vector<Hypothesis>* out) {
  const std::optional<ChannelMap> map = MatchChannels(evidence);
  if (!map) return;
  const auto from = std::make_shared<const std::vector<int32_t>>(map->from);
  const After after = [from](const std::vector<TokenAt>&, Block* block) {
    const Block right = *block;
    for (int64_t r = 0; r < block->rows; ++r) {
      for (int64_t c = 0; c < block->width; ++c) {
        block->Row(r)[c] = right.Row(r)[(*from)[static_cast<size_t>(c)]];
        block->Variance(r)[c] = right.Variance(r)[(*from)[static_cast<size_t>(c)]];
      }
    }
  };
  out->push_back(Changed(evidence.call(), "values-permuted", "gives its values in another order: " + map->text,
                         "Check the layout in which the result is written, and that in which it is read.", after));
}

// The channels that are zero in every affected cell that they belong to.
void ProposeZero(const Evidence& evidence, std::vector<Hypothesis>* out) {
  if (FindConstant(evidence) != 0.0) return;
  const auto zero = std::make_shared<std::vector<char>>(static_cast<size_t>(evidence.width()), 0);
  for (int64_t c = 0; c < evidence.width(); ++c) {
    bool some = false, all = true;
    for (const int64_t i : evidence.affected()) {
      if (!evidence.Affected(i, c)) continue;
      some = true;
      all = all && evidence.Captured(i)[c] == 0;
    }
    (*zero)[static_cast<size_t>(c)] = some && all;
  }
  std::vector<int64_t> channels;
  for (int64_t c = 0; c < evidence.width(); ++c) {
    if ((*zero)[static_cast<size_t>(c)]) channels.push_back(c);
  }
  if (channels.empty()) return;
  const bool whole = static_cast<int64_t>(channels.size()) == evidence.width();
  std::string where = Ranges(channels);
  if (where.size() > 60) where = std::to_string(channels.size()) + " of " + std::to_string(evidence.width());
  out->push_back(Changed(evidence.call(), "values-zero",
                         whole ? "gives zeros" : "gives zeros in channels " + where + " of a row",
                         "Check whether the result is written at all, and where.",
                         OnEach([zero](int64_t c, double* value, double* variance) {
                           if ((*zero)[static_cast<size_t>(c)]) *value = *variance = 0;
                         })));
}

void ProposeClamped(const Evidence& evidence, std::vector<Hypothesis>* out) {
  const std::optional<Clamp> clamp = FindClamp(evidence);
  if (!clamp) return;
  const double low = clamp->low.value_or(-INFINITY), high = clamp->high.value_or(INFINITY);
  const bool f16 = low == -kLargestF16 || high == kLargestF16;
  out->push_back(
      Changed(evidence.call(), f16 ? "values-overflow" : "values-clamped",
              "clamps its result at " + clamp->text + (f16 ? ", the largest f16" : ""),
              f16 ? "bf16 values do not fit f16: keep bf16, or scale." : "Remove the clamp.",
              OnEach([low, high](int64_t, double* value, double*) { *value = std::clamp(*value, low, high); })));
}

// c tanh(y / c): what is left of the sample falls towards the right c from both sides.
void ProposeSoftCap(const Evidence& evidence, const Sample& sample, std::vector<Hypothesis>* out) {
  constexpr size_t kRows = 4;     // of a fit
  constexpr double kBends = 2.5;  // the largest value must lose 5 %
  double largest = 0;
  for (const int64_t i : evidence.affected()) {
    for (int64_t c = 0; c < evidence.width(); ++c) {
      if (!std::isfinite(evidence.Captured(i)[c]) || !std::isfinite(evidence.Expected(i)[c])) return;
      largest = std::max(largest, std::abs(evidence.Expected(i)[c]));
    }
  }
  if (largest == 0 || evidence.everything()) return;
  const auto left = [&](double log) {
    const double cap = std::exp(log);
    double sum = 0;
    for (size_t k = 0; k < std::min(kRows, evidence.affected().size()); ++k) {
      const int64_t i = evidence.affected()[k];
      for (int64_t c = 0; c < evidence.width(); ++c) {
        if (!evidence.Affected(i, c)) continue;
        const double off = evidence.Captured(i)[c] - cap * std::tanh(evidence.Expected(i)[c] / cap);
        sum += off * off;
      }
    }
    return sum;
  };
  double best = std::log(largest);
  for (int k = -20; k <= 20; ++k) {
    const double log = std::log(largest) + 0.2 * k;
    if (left(log) < left(best)) best = log;
  }
  const double fitted = std::exp(Minimum(best - 0.2, best + 0.2, left));
  if (fitted > kBends * largest) return;  // a scale, if anything
  const DType storage = evidence.storage();
  for (int digits = 1; digits <= 7; ++digits) {
    const double cap = std::strtod(Number(fitted, digits).c_str(), nullptr);
    const After after = OnEach([cap, storage](int64_t, double* value, double* variance) {
      const double t = std::tanh(*value / cap), slope = 1 - t * t;
      *value = cap * t;
      *variance = *variance * slope * slope + StorageRounding(storage, *value);
    });
    if (!ExplainsSample(evidence, sample, after)) continue;
    const std::string number = Number(cap);
    out->push_back(Changed(evidence.call(), "values-clamped",
                           "caps its result softly: " + number + " tanh(y / " + number + ")",
                           "Qwen3 caps neither its scores nor its logits: Gemma 2 does.", after));
    return;
  }
}

// Infinite where f16 ends, and nowhere else.
void ProposeOverflow(const Evidence& evidence, std::vector<Hypothesis>* out) {
  constexpr double kRoundsToInfinity = 65520;
  int64_t beyond = 0;
  for (const int64_t i : evidence.affected()) {
    for (int64_t c = 0; c < evidence.width(); ++c) {
      const double captured = evidence.Captured(i)[c], expected = evidence.Expected(i)[c];
      const double slack = 8 * std::sqrt(evidence.Variance(i, c));
      if (!std::isfinite(expected)) continue;
      if (std::isnan(captured) || (std::isinf(captured) && std::abs(expected) < kRoundsToInfinity - slack)) return;
      if (std::isfinite(captured) && std::abs(expected) > kRoundsToInfinity + slack) return;
      beyond += std::isinf(captured);
    }
  }
  if (beyond == 0) return;
  out->push_back(Changed(evidence.call(), "values-overflow", "overflows f16: what is beyond 65504 becomes infinite",
                         "bf16 values do not fit f16: keep bf16, or scale.",
                         OnEach([](int64_t, double* value, double*) {
                           if (std::abs(*value) >= kRoundsToInfinity) *value = std::copysign(INFINITY, *value);
                         })));
}

// Away from the borders between two grid values the result is exact; there noise decides which of them it is, and what
// was captured tells.
void ProposeRounded(const Case& fault, const Evidence& evidence, std::vector<Hypothesis>* out) {
  const std::optional<CoarseGrid> grid = FindCoarseGrid(evidence);
  if (!grid || !grid->explains) return;
  const DType storage = evidence.storage();
  const double limit = evidence.limits().max_suspect;
  const PointAt point = evidence.call().point;
  const After after = [=, grid = *grid, &evaluator = fault.evaluator](const std::vector<TokenAt>& tokens,
                                                                      Block* block) {
    const Block captured = evaluator.Captured(point, tokens).block;
    for (int64_t r = 0; r < block->rows; ++r) {
      double *value = block->Row(r), *variance = block->Variance(r), largest = 0;
      for (int64_t c = 0; c < block->width; ++c) largest = std::max(largest, std::abs(value[c]));
      for (int64_t c = 0; c < block->width; ++c) {
        const double y = value[c], step = grid.StepAt(y, largest), is = captured.Row(r)[c];
        value[c] = grid.Round(y, largest);
        if (grid.bits == 0) variance[c] += StorageRounding(storage, value[c]);
        const bool border = grid.NearBorder(y, largest, limit * std::sqrt(variance[c]));
        if (border && std::abs(is - value[c]) <= 1.01 * step) value[c] = is;
        if (border) variance[c] += step * step / 12;
      }
    }
  };
  const bool overflows = std::isfinite(grid->most);
  out->push_back(
      Changed(evidence.call(), overflows ? "values-overflow" : "values-rounded", "rounds its result to " + grid->text,
              overflows ? "bf16 values do not fit f16: keep bf16, or scale."
                        : "Check the dtype of every buffer and of every conversion on the way to the result.",
              after));
}

}  // namespace

Hypothesis Changed(const OpCall& right, std::string cause, std::string text, std::string advice, After after) {
  Hypothesis out = {std::move(cause), std::move(text), std::move(advice), right};
  const After before = right.after;
  out.call.after = [before, after = std::move(after)](const std::vector<TokenAt>& tokens, Block* block) {
    if (before) before(tokens, block);
    block->variance.resize(block->value.size(), 0.0);
    after(tokens, block);
  };
  return out;
}

bool ExplainsSample(const Evidence& evidence, const Sample& sample, const After& after) {
  Block changed = sample.expected.block;
  changed.variance.resize(changed.value.size(), 0.0);
  after(sample.tokens, &changed);
  for (const int64_t i : evidence.affected()) {
    double squares = 0;
    int64_t count = 0;
    for (int64_t c = 0; c < evidence.width(); ++c) {
      if (!evidence.Affected(i, c)) continue;
      const double units = NoiseUnits(evidence.Captured(i)[c], changed.Row(i)[c], changed.Variance(i)[c]);
      if (!(std::abs(units) <= evidence.limits().max_suspect)) return false;
      squares += units * units;
      ++count;
    }
    if (std::sqrt(squares / static_cast<double>(std::max<int64_t>(count, 1))) > evidence.limits().cell_suspect)
      return false;
  }
  return !evidence.affected().empty();
}

void ProposeForValues(const Evidence& evidence, std::vector<Hypothesis>* out) {
  ProposeScaled(evidence, out);
  ProposePermuted(evidence, out);
  ProposeZero(evidence, out);
  ProposeClamped(evidence, out);
  ProposeOverflow(evidence, out);
}

void ProposeForAnyOp(const Case& fault, std::vector<Hypothesis>* out) {
  const Evidence evidence(fault.errors, fault.sample);
  if (evidence.affected().empty()) return;
  ProposeForOp(fault, out);
  ProposeForValues(evidence, out);
  ProposeSoftCap(evidence, fault.sample, out);
  ProposeRounded(fault, evidence, out);
  ProposeStale(fault, evidence, out);
  ProposeOtherTokens(fault, evidence, out);
  ProposeOverlapping(fault, evidence, out);
}

}  // namespace lockstep
