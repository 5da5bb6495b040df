#include "diagnose/matching.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <utility>

#include "diagnose/causes.h"
#include "replay/noise.h"

namespace lockstep {
namespace {

constexpr int64_t kMinElements = 8;  // that a factor must explain
constexpr double kSignificant = 8;   // standard errors
constexpr int64_t kMinOffsetRows = 4;

// A weighted fit of captured = value * expected.
struct Line {
  double cross = 0, square = 0;
  int64_t count = 0;

  double value() const { return cross / square; }
  double standard_error() const { return 1 / std::sqrt(square); }
  void Add(const Line& other) { cross += other.cross, square += other.square, count += other.count; }
};

// Of the row's affected cells. Empty where something is not finite: then no factor explains it.
std::optional<Line> LineOf(const Evidence& evidence, int64_t i) {
  Line line;
  const double *captured = evidence.Captured(i), *expected = evidence.Expected(i);
  for (int64_t c = 0; c < evidence.width(); ++c) {
    if (!evidence.Affected(i, c) || !std::isfinite(expected[c]) || expected[c] == 0) continue;
    if (!std::isfinite(captured[c])) return std::nullopt;
    // An exact op that is scaled is rounded after all.
    const double variance = evidence.Variance(i, c) + StorageRounding(evidence.storage(), expected[c]);
    if (variance <= 0) continue;
    line.cross += captured[c] * expected[c] / variance;
    line.square += expected[c] * expected[c] / variance;
    ++line.count;
  }
  return line;
}

// Whether the factor leaves only noise in the row's affected cells.
bool RatioFits(const Evidence& evidence, int64_t i, double factor) {
  const double *captured = evidence.Captured(i), *expected = evidence.Expected(i);
  double squares = 0;
  int64_t count = 0;
  for (int64_t c = 0; c < evidence.width(); ++c) {
    if (!evidence.Affected(i, c)) continue;
    if (!std::isfinite(expected[c])) {
      if (evidence.Off(i, c)) return false;
      continue;
    }
    const double y = factor * expected[c];
    const double variance = factor * factor * evidence.Variance(i, c) + StorageRounding(evidence.storage(), y);
    const double units = NoiseUnits(captured[c], y, variance);
    if (!(std::abs(units) <= evidence.limits().max_faulty)) return false;
    squares += units * units;
    ++count;
  }
  return count == 0 || std::sqrt(squares / static_cast<double>(count)) <= evidence.limits().row_suspect;
}

// The numbers that mistakes are made of, and their names.
std::vector<std::pair<double, std::string>> TellingNumbers(const Evidence& evidence) {
  std::vector<std::pair<double, std::string>> out = {{-1, "-1"}, {2, "2"},      {0.5, "1/2"},
                                                     {4, "4"},   {0.25, "1/4"}, {3, "3"}};
  std::vector<int64_t> sizes;
  if (evidence.call().head_dim > 0) sizes.push_back(evidence.call().head_dim);
  if (evidence.call().heads > 0) sizes.push_back(evidence.call().heads);
  sizes.push_back(evidence.width());
  for (const int64_t size : sizes) {
    const auto n = static_cast<double>(size);
    const std::string text = std::to_string(size);
    out.insert(out.end(), {{std::sqrt(n), "sqrt(" + text + ")"},
                           {1 / std::sqrt(n), "1/sqrt(" + text + ")"},
                           {n, text},
                           {1 / n, "1/" + text}});
  }
  return out;
}

// The simplest number within the error of the fit.
Ratio Named(const Evidence& evidence, double value, double standard_error) {
  // The conventions of rounding move a scale, too.
  const double error = std::max(4 * standard_error, 0.75 * evidence.limits().scale_suspect * std::abs(value));
  for (const auto& [number, name] : TellingNumbers(evidence)) {
    if (std::abs(value - number) <= error) return {number, standard_error, name};
  }
  char text[32];
  for (int digits = 1; digits < 9; ++digits) {
    std::snprintf(text, sizeof(text), "%.*g", digits, value);
    const double rounded = std::strtod(text, nullptr);
    if (std::abs(rounded - value) <= error && rounded != 1) return {rounded, standard_error, text};
  }
  return {value, standard_error, text};
}

}  // namespace

Evidence::Evidence(const PointErrors& errors, const Sample& sample)
    : errors_(errors), sample_(sample), limits_(errors.limits()) {
  const int64_t row_width = sample.captured.width;
  cell_width_ =
      std::max<int64_t>(1, errors.call.heads > 0 ? row_width / errors.call.heads : std::min(row_width, kCellWidth));
  MarkAffected();
  row_of_ = JudgedRowsOf(errors, sample.tokens);
  for (size_t i = 0; i < row_of_.size(); ++i) {
    if (row_of_[i] < 0) continue;
    (RowAffected(row_of_[i]) ? affected_ : right_).push_back(static_cast<int64_t>(i));
  }
}

void Evidence::MarkAffected() {
  cell_affected_ = AffectedCells(errors_);
  row_affected_.assign(errors_.tokens.size(), 0);
  bool beyond = false;
  for (int64_t r = 0; r < num_rows(); ++r) {
    const char* cells = cell_affected_.data() + r * errors_.cells;
    const bool affected = std::any_of(cells, cells + errors_.cells, [](char cell) { return cell != 0; });
    row_affected_[static_cast<size_t>(r)] = affected;
    num_affected_ += affected;
    for (int64_t c = 0; c < errors_.cells; ++c) {
      beyond = beyond || !(errors_.Cell(r, c) <= limits_.cell_suspect && errors_.Peak(r, c) <= limits_.max_suspect);
    }
    beyond = beyond || !(errors_.row[static_cast<size_t>(r)] <= limits_.row_suspect);
  }
  everything_ = !beyond;
}

double Evidence::Units(int64_t i, int64_t channel) const {
  const double captured = Captured(i)[channel], expected = Expected(i)[channel];
  if (expected == -INFINITY && std::isfinite(captured)) return INFINITY;  // should have been masked
  return std::isfinite(expected) ? NoiseUnits(captured, expected, Variance(i, channel)) : 0;
}

double Evidence::RelativeError(int64_t i, int64_t begin, int64_t end) const {
  double error = 0, square = 0;
  for (int64_t c = begin; c < end; ++c) {
    const double captured = Captured(i)[c], expected = Expected(i)[c];
    if (!std::isfinite(expected)) continue;
    error += (captured - expected) * (captured - expected);
    square += expected * expected;
  }
  return std::sqrt(error / square);
}

bool Evidence::Off(int64_t i, int64_t channel) const { return !(std::abs(Units(i, channel)) <= limits_.max_faulty); }

std::optional<Ratio> FitRatio(const Evidence& evidence) {
  Line all;
  for (const int64_t i : evidence.affected()) {
    const std::optional<Line> line = LineOf(evidence, i);
    if (!line) return std::nullopt;
    all.Add(*line);
  }
  if (all.count < kMinElements || all.value() == 0) return std::nullopt;
  if (std::abs(all.value() - 1) <= kSignificant * all.standard_error()) return std::nullopt;
  Ratio ratio = Named(evidence, all.value(), all.standard_error() * std::max(1.0, std::abs(all.value())));
  const auto fits = [&](int64_t i) { return RatioFits(evidence, i, ratio.value); };
  if (!std::all_of(evidence.affected().begin(), evidence.affected().end(), fits)) return std::nullopt;
  return ratio;
}

std::optional<RowRatios> FitRowRatios(const Evidence& evidence) {
  if (evidence.everything() || evidence.affected().size() < 2 || FitRatio(evidence)) return std::nullopt;
  RowRatios out = {INFINITY, -INFINITY};
  for (const int64_t i : evidence.affected()) {
    const std::optional<Line> line = LineOf(evidence, i);
    if (!line || line->count < kMinElements) return std::nullopt;
    const double factor = line->value();
    if (factor == 0 || std::abs(factor - 1) <= kSignificant * line->standard_error()) return std::nullopt;
    if (!RatioFits(evidence, i, factor)) return std::nullopt;
    out.smallest = std::min(out.smallest, factor);
    out.largest = std::max(out.largest, factor);
  }
  return out;
}

std::optional<std::vector<double>> FitOffset(const Evidence& evidence) {
  const std::vector<int64_t>& rows = evidence.affected();
  const auto n = static_cast<int64_t>(rows.size());
  if (n < kMinOffsetRows) return std::nullopt;
  const int64_t width = evidence.width();
  // Even rows, odd rows: means of the difference and of its variance.
  std::vector<double> mean[2], variance[2];
  for (int half = 0; half < 2; ++half) mean[half].resize(static_cast<size_t>(width)), variance[half] = mean[half];
  for (int64_t k = 0; k < n; ++k) {
    const int64_t i = rows[static_cast<size_t>(k)], half = k % 2;
    const int64_t rows_in_half = (n + 1 - half) / 2;
    const double share = 1.0 / static_cast<double>(rows_in_half);
    for (int64_t c = 0; c < width; ++c) {
      const double difference = evidence.Captured(i)[c] - evidence.Expected(i)[c];
      if (!std::isfinite(difference)) return std::nullopt;
      mean[half][static_cast<size_t>(c)] += share * difference;
      variance[half][static_cast<size_t>(c)] += share * evidence.Variance(i, c);
    }
  }
  // What is expected must differ from row to row, or anything is a constant offset.
  bool differ = false;
  for (int64_t k = 0; k < n; ++k) {
    const int64_t i = rows[static_cast<size_t>(k)], half = 1 - k % 2;
    double squares = 0, spread = 0;
    for (int64_t c = 0; c < width; ++c) {
      const auto at = static_cast<size_t>(c);
      const double y = evidence.Expected(i)[c] + mean[half][at];
      const double noise = evidence.Variance(i, c) + 0.5 * variance[half][at] + StorageRounding(evidence.storage(), y);
      const double units = NoiseUnits(evidence.Captured(i)[c], y, noise);
      if (!(std::abs(units) <= evidence.limits().max_faulty)) return std::nullopt;
      squares += units * units;
      const double apart = NoiseUnits(evidence.Expected(i)[c], evidence.Expected(rows[0])[c], noise);
      spread += apart * apart;
    }
    const auto elements = static_cast<double>(width);
    if (std::sqrt(squares / elements) > evidence.limits().row_suspect) return std::nullopt;
    differ = differ || std::sqrt(spread / elements) > evidence.limits().row_faulty;
  }
  if (!differ) return std::nullopt;
  for (size_t c = 0; c < mean[0].size(); ++c) mean[0][c] = 0.5 * (mean[0][c] + mean[1][c]);
  return mean[0];
}

double StorageRounding(DType storage, double y) { return storage == DType::kF64 ? 0 : Grid(storage).Rounding(y); }

std::string Ranges(const std::vector<int64_t>& ascending) {
  std::string out;
  for (size_t i = 0; i < ascending.size();) {
    size_t end = i + 1;
    while (end < ascending.size() && ascending[end] == ascending[end - 1] + 1) ++end;
    if (!out.empty()) out += ", ";
    out += std::to_string(ascending[i]);
    if (end - i > 1) out += (end - i == 2 ? ", " : "-") + std::to_string(ascending[end - 1]);
    i = end;
  }
  return out;
}

std::string Short(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g", value);
  return text;
}

}  // namespace lockstep
