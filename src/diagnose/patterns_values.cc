#include <algorithm>
#include <cmath>

#include "diagnose/patterns.h"

namespace lockstep {
namespace {

// NaN or infinite where the right result is not.
bool DescribeNonFinite(const Evidence& evidence, std::vector<Pattern>* out) {
  int64_t nans = 0, infinities = 0, overflowed = 0;
  for (const int64_t i : evidence.affected()) {
    for (int64_t c = 0; c < evidence.width(); ++c) {
      const double captured = evidence.Captured(i)[c], expected = evidence.Expected(i)[c];
      if (!std::isfinite(expected) || std::isfinite(captured)) continue;
      (std::isnan(captured) ? nans : infinities) += 1;
      overflowed += std::isinf(captured) && std::abs(expected) >= kLargestF16;
    }
  }
  if (nans + infinities == 0) return false;
  const char* what = infinities == 0 ? "NaN" : nans == 0 ? "infinite" : "NaN and infinite values";
  const bool overflow = nans == 0 && overflowed == infinities;
  out->push_back({"non-finite",
                  std::string(what) + (overflow ? " where f16 overflows (65504)" : " where the right result is not")});
  return true;
}

void DescribeConstant(const Evidence& evidence, std::vector<Pattern>* out) {
  const std::optional<double> value = FindConstant(evidence);
  if (!value) return;
  out->push_back({"zeros", *value == 0 ? "zero where it is wrong"
                                       : "always " + Short(*value) + " where it is wrong: never written?"});
}

void DescribeClamp(const Evidence& evidence, std::vector<Pattern>* out) {
  const std::optional<Clamp> clamp = FindClamp(evidence);
  if (!clamp) return;
  const bool f16 = clamp->high == kLargestF16 || clamp->low == -kLargestF16;
  out->push_back({"saturated", "saturated at " + clamp->text + (f16 ? ", the largest f16" : "")});
}

void DescribeFactors(const Evidence& evidence, std::vector<Pattern>* out) {
  if (const std::optional<Ratio> ratio = FitRatio(evidence)) {
    const double spread = 2 * ratio->standard_error;
    out->push_back({"constant-ratio", "captured = " + ratio->name + " * expected (±" + Short(spread) + ")"});
  } else if (const std::optional<RowRatios> rows = FitRowRatios(evidence)) {
    out->push_back({"ratio-per-row", "each row is scaled by a factor of its own, " + Short(rows->smallest) + " to " +
                                         Short(rows->largest)});
  }
}

void DescribeOffset(const Evidence& evidence, std::vector<Pattern>* out) {
  const std::optional<std::vector<double>> offset = FitOffset(evidence);
  if (!offset) return;
  double squares = 0;
  for (const double value : *offset) squares += value * value;
  const double rms = std::sqrt(squares / static_cast<double>(offset->size()));
  out->push_back({"constant-offset", "the same vector is added to every row (root mean square " + Short(rms) + ")"});
}

}  // namespace

void DescribeValues(const Evidence& evidence, std::vector<Pattern>* out) {
  if (evidence.affected().empty() || DescribeNonFinite(evidence, out)) return;
  DescribeConstant(evidence, out);
  DescribeClamp(evidence, out);
  if (const std::optional<ChannelMap> map = MatchChannels(evidence)) out->push_back({"permuted", map->text});
  DescribeFactors(evidence, out);
  DescribeOffset(evidence, out);
  if (const std::optional<CoarseGrid> grid = FindCoarseGrid(evidence)) {
    out->push_back({"coarse-grid", "the values lie on a coarse grid: " + grid->text});
  }
}

namespace {

// Noise: 90 % of the cells are affected; the relative errors of 90 % of the sample's are within a factor of 4 of each
// other; and the errors have nothing to do with what is expected: neither a mean nor a correlation of 0.1.
void DescribeNoise(const Evidence& evidence, std::vector<Pattern>* out) {
  std::vector<double> cells;
  double mean = 0, cross = 0, squares = 0, values = 0;
  int64_t count = 0;
  for (const int64_t i : evidence.affected()) {
    for (int64_t c = 0; c < evidence.width(); ++c) {
      const double expected = evidence.Expected(i)[c], error = evidence.Captured(i)[c] - expected;
      if (!std::isfinite(expected) || !std::isfinite(error)) return;
      mean += error, cross += error * expected, squares += error * error, values += expected * expected;
      ++count;
    }
    for (int64_t cell = 0; cell < evidence.cells(); ++cell) {
      const int64_t begin = cell * evidence.cell_width();
      cells.push_back(evidence.RelativeError(i, begin, std::min(begin + evidence.cell_width(), evidence.width())));
    }
  }
  std::sort(cells.begin(), cells.end());
  if (count < 64 || cells[cells.size() * 95 / 100] > 4 * cells[cells.size() * 5 / 100]) return;
  if (std::abs(cross) > 0.1 * std::sqrt(squares * values)) return;
  if (std::abs(mean) > 0.1 * std::sqrt(squares * static_cast<double>(count))) return;
  out->push_back({"noise", "random errors everywhere, of about " + Short(cells[cells.size() / 2]) + " of the values"});
}

}  // namespace

void DescribeRest(const Evidence& evidence, std::vector<Pattern>* out) {
  int64_t affected = 0;
  for (int64_t r = 0; r < evidence.num_rows(); ++r) {
    for (int64_t c = 0; c < evidence.cells(); ++c) affected += evidence.CellAffected(r, c);
  }
  const int64_t all = evidence.num_rows() * evidence.cells();
  if (evidence.everything()) {
    out->push_back({"everywhere", "no single row is beyond its limit"});
    return;
  }
  if (10 * affected >= 9 * all) DescribeNoise(evidence, out);
  if (affected == all) {
    out->push_back({"everywhere", evidence.call().heads > 0 ? "in every row and head" : "in every row"});
  } else {
    const bool most = 10 * evidence.num_affected() >= 9 * evidence.num_rows();
    out->push_back({most ? "everywhere" : "scattered", "in " + std::to_string(evidence.num_affected()) + " of " +
                                                           std::to_string(evidence.num_rows()) + " rows" +
                                                           (most ? "" : ", in no order that is known")});
  }
}

}  // namespace lockstep
