#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

#include "diagnose/matching_rows.h"
#include "diagnose/patterns.h"

namespace lockstep {
namespace {

constexpr double kMost = 0.9;      // of the rows that a pattern speaks of must be affected, besides no other
constexpr int64_t kMinGrowth = 8;  // rows

// How many rows are affected among those that `in` picks, and among the others.
struct Split {
  int64_t inside = 0, affected_inside = 0;
  int64_t outside = 0, affected_outside = 0;

  // All of the fault is inside, some right rows are outside, and it is no accident that it hit those.
  bool Only(double share) const {
    return affected_outside == 0 && outside > 0 && affected_inside > 0 &&
           static_cast<double>(affected_inside) >= share * static_cast<double>(inside);
  }
};

Split SplitRows(const Evidence& evidence, const std::function<bool(int64_t r)>& in) {
  Split out;
  for (int64_t r = 0; r < evidence.num_rows(); ++r) {
    const bool affected = evidence.RowAffected(r), inside = in(r);
    (inside ? out.inside : out.outside) += 1;
    (inside ? out.affected_inside : out.affected_outside) += affected;
  }
  return out;
}

const TokenAt& TokenOf(const Evidence& evidence, int64_t r) { return evidence.errors().tokens[static_cast<size_t>(r)]; }

// Exactly one of at least four rows.
void DescribeOneRow(const Evidence& evidence, std::vector<Pattern>* out) {
  if (evidence.num_affected() != 1 || evidence.num_rows() < 4) return;
  for (int64_t r = 0; r < evidence.num_rows(); ++r) {
    if (!evidence.RowAffected(r)) continue;
    const TokenAt& token = TokenOf(evidence, r);
    out->push_back({"one-row", "only one row of " + std::to_string(evidence.num_rows()) + ": sequence " +
                                   std::to_string(token.sequence) + ", position " + std::to_string(token.position)});
  }
}

// No row before the first affected position is affected, and 90 % of those from there on are.
void DescribeFirstPosition(const Evidence& evidence, std::vector<Pattern>* out) {
  int32_t first = INT32_MAX;
  for (int64_t r = 0; r < evidence.num_rows(); ++r) {
    if (evidence.RowAffected(r)) first = std::min(first, TokenOf(evidence, r).position);
  }
  const Split split = SplitRows(evidence, [&](int64_t r) { return TokenOf(evidence, r).position >= first; });
  if (!split.Only(kMost)) return;
  if (first == 1) {
    out->push_back({"exact-at-position-0", "exact at position 0"});
  } else if (split.affected_inside >= 3 && split.outside >= 2) {
    out->push_back({"from-position-on", "only from position " + std::to_string(first) + " on"});
  }
}

// In every group of two rows or more the one at that end is affected, and nothing else is; rows that are alone in their
// group are both first and last.
bool OnlyAtEnd(const Evidence& evidence, bool last, bool by_sequence) {
  std::map<std::tuple<int32_t, int32_t, int32_t>, std::vector<int64_t>> groups;
  for (int64_t r = 0; r < evidence.num_rows(); ++r) {
    const TokenAt& token = TokenOf(evidence, r);
    groups[{token.run, token.step, by_sequence ? token.sequence : -1}].push_back(r);
  }
  int64_t shown = 0;
  for (auto& [key, rows] : groups) {
    if (rows.size() < 2) continue;
    const auto before = [&](int64_t a, int64_t b) {
      const TokenAt &x = TokenOf(evidence, a), &y = TokenOf(evidence, b);
      return by_sequence ? x.position < y.position : x.token < y.token;
    };
    const auto [least, most] = std::minmax_element(rows.begin(), rows.end(), before);
    const int64_t end = last ? *most : *least;
    for (const int64_t r : rows) {
      if (evidence.RowAffected(r) != (r == end)) return false;
    }
    ++shown;
  }
  return shown > 0;
}

void DescribeEnds(const Evidence& evidence, std::vector<Pattern>* out) {
  for (const bool last : {true, false}) {
    const bool sequences = OnlyAtEnd(evidence, last, true);
    if (!sequences && !OnlyAtEnd(evidence, last, false)) continue;
    out->push_back({last ? "last-token-only" : "first-token-only", std::string("only the ") +
                                                                       (last ? "last" : "first") + " token of each " +
                                                                       (sequences ? "sequence in a step" : "step")});
  }
}

// All affected rows are in that stage, at least half of its rows are, and other stages were judged.
void DescribeStages(const Evidence& evidence, const std::vector<Stage>& stages, std::vector<Pattern>* out) {
  const auto only = [&](const char* id, const char* text, std::initializer_list<Stage> in) {
    const Split split = SplitRows(evidence, [&](int64_t r) {
      return std::find(in.begin(), in.end(), stages[static_cast<size_t>(r)]) != in.end();
    });
    if (!split.Only(0.5)) return false;
    out->push_back({id, text});
    return true;
  };
  if (only("decode-only", "only in decode", {Stage::kDecode})) return;
  if (only("later-chunk-only", "only in later chunks of the prompt", {Stage::kLaterChunk})) return;
  if (only("later-chunk-only", "only after the first step of a sequence", {Stage::kLaterChunk, Stage::kDecode})) return;
  only("prefill-only", "only in prefill", {Stage::kFirstChunk, Stage::kLaterChunk});
}

// All affected rows, at least two, belong to one of several sequences, and are at least half of it.
void DescribeSequence(const Evidence& evidence, std::vector<Pattern>* out) {
  std::set<int32_t> affected, all;
  for (int64_t r = 0; r < evidence.num_rows(); ++r) {
    const int32_t sequence = TokenOf(evidence, r).sequence;
    all.insert(sequence);
    if (evidence.RowAffected(r)) affected.insert(sequence);
  }
  if (all.size() < 2 || affected.size() != 1 || evidence.num_affected() < 2) return;
  const int32_t sequence = *affected.begin();
  if (!SplitRows(evidence, [&](int64_t r) { return TokenOf(evidence, r).sequence == sequence; }).Only(0.5)) return;
  out->push_back({"one-sequence", "only sequence " + std::to_string(sequence) + " of " + std::to_string(all.size())});
}

// All affected rows have indices in their steps that leave the same remainder, at least three of them, and 90 % of such
// rows are affected.
void DescribeEveryNth(const Evidence& evidence, std::vector<Pattern>* out) {
  if (evidence.num_affected() < 3) return;
  int64_t r0 = 0;
  while (!evidence.RowAffected(r0)) ++r0;
  for (int32_t n = 8; n >= 2; --n) {
    const int32_t k = TokenOf(evidence, r0).token % n;
    if (!SplitRows(evidence, [&](int64_t r) { return TokenOf(evidence, r).token % n == k; }).Only(kMost)) continue;
    const std::string which = n == 2 ? k == 0 ? "even" : "odd" : "every " + std::to_string(n) + "th of the";
    out->push_back(
        {"every-nth-row", "only " + which + " rows of a step" + (n == 2 ? "" : ", from " + std::to_string(k) + " on")});
    return;
  }
}

std::vector<double> Ranks(const std::vector<double>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (size_t i = 0; i < order.size();) {
    size_t end = i;
    while (end < order.size() && values[order[end]] == values[order[i]]) ++end;
    for (size_t k = i; k < end; ++k) ranks[order[k]] = 0.5 * static_cast<double>(i + end - 1);
    i = end;
  }
  return ranks;
}

double Correlation(const std::vector<double>& a, const std::vector<double>& b) {
  const double n = static_cast<double>(a.size());
  const double mean_a = std::accumulate(a.begin(), a.end(), 0.0) / n,
               mean_b = std::accumulate(b.begin(), b.end(), 0.0) / n;
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - mean_a) * (b[i] - mean_b);
    aa += (a[i] - mean_a) * (a[i] - mean_a);
    bb += (b[i] - mean_b) * (b[i] - mean_b);
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0;
}

// Medians of `bins` equal parts, in order of position.
std::vector<double> BinMedians(std::vector<std::pair<double, double>> by_position, size_t bins) {
  std::sort(by_position.begin(), by_position.end());
  std::vector<double> medians;
  for (size_t b = 0; b < bins; ++b) {
    std::vector<double> part;
    for (size_t i = b * by_position.size() / bins; i < (b + 1) * by_position.size() / bins; ++i) {
      part.push_back(by_position[i].second);
    }
    std::nth_element(part.begin(), part.begin() + static_cast<std::ptrdiff_t>(part.size() / 2), part.end());
    medians.push_back(part[part.size() / 2]);
  }
  return medians;
}

}  // namespace

void DescribeRows(const Evidence& evidence, const std::vector<Stage>& stages, std::vector<Pattern>* out) {
  if (evidence.everything() || evidence.num_rows() < 2) return;
  if (OnlyFirstRowsRight(evidence)) {
    out->push_back({"first-rows-right", "of the H*T heads of a step's T tokens only the first H+T-1 are right"});
  }
  DescribeOneRow(evidence, out);
  DescribeFirstPosition(evidence, out);
  DescribeEnds(evidence, out);
  DescribeStages(evidence, stages, out);
  DescribeSequence(evidence, out);
  DescribeEveryNth(evidence, out);
}

// Among the sample's affected rows, at 8 positions or more: the rank correlation of relative error and position is
// beyond 5 standard errors and 0.6, the medians of 4 bins (3 of few rows) rise from bin to bin, and by 30 % in all.
// Affected rows alone, as a mere step at some position is another pattern; the relative error, as noise units soar at
// values near 0.
void DescribeGrowth(const Evidence& evidence, std::vector<Pattern>* out) {
  if (evidence.everything()) return;
  std::vector<double> errors, positions;
  std::vector<std::pair<double, double>> pairs;
  for (const int64_t i : evidence.affected()) {
    const double error = evidence.RelativeError(i, 0, evidence.width());
    if (!std::isfinite(error)) continue;
    errors.push_back(error);
    positions.push_back(evidence.Token(i).position);
    pairs.push_back({positions.back(), error});
  }
  if (static_cast<int64_t>(std::set<double>(positions.begin(), positions.end()).size()) < kMinGrowth) return;
  const double rho = Correlation(Ranks(errors), Ranks(positions));
  const double standard_errors =
      rho * std::sqrt((static_cast<double>(errors.size()) - 2) / std::max(1e-9, 1 - rho * rho));
  if (rho < 0.6 || standard_errors < 5) return;
  const std::vector<double> medians = BinMedians(pairs, pairs.size() < 16 ? 3 : 4);
  if (std::adjacent_find(medians.begin(), medians.end(), std::greater_equal<>()) != medians.end()) return;
  if (medians.back() < 1.3 * medians.front()) return;
  out->push_back({"grows-with-position", "grows with position"});
}

}  // namespace lockstep
