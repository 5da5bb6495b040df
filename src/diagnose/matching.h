// What the values of a faulty op have to do with those that they should be: fits of few parameters. Each holds only
// where it explains far more values than it has parameters, down to the noise floor.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "diagnose/hypothesis.h"

namespace lockstep {

inline constexpr double kLargestF16 = 65504;

// The errors of all rows and the values of some, with the limits between right and affected. A cell is affected that is
// beyond what is clean or is not finite; where only the row as a whole is, all its cells are. Where no row is (a faint
// scale of everything), all are.
class Evidence {
 public:
  // REQUIRES: both outlive this.
  Evidence(const PointErrors& errors, const Sample& sample);

  const PointErrors& errors() const { return errors_; }
  const OpCall& call() const { return errors_.call; }
  const Limits& limits() const { return limits_; }
  DType storage() const { return errors_.arithmetic.storage; }
  int64_t width() const { return sample_.captured.width; }
  int64_t cells() const { return errors_.cells; }
  int64_t cell_width() const { return cell_width_; }
  int64_t CellOf(int64_t channel) const { return channel / cell_width_; }
  bool everything() const { return everything_; }

  // Of all rows: r is an index of errors().tokens.
  int64_t num_rows() const { return static_cast<int64_t>(errors_.tokens.size()); }
  bool CellAffected(int64_t r, int64_t cell) const {
    return cell_affected_[static_cast<size_t>(r * errors_.cells + cell)] != 0;
  }
  bool RowAffected(int64_t r) const { return row_affected_[static_cast<size_t>(r)] != 0; }
  int64_t num_affected() const { return num_affected_; }

  // Of the rows whose values are there: i is an index of the sample.
  const std::vector<int64_t>& affected() const { return affected_; }
  const std::vector<int64_t>& right() const { return right_; }
  const TokenAt& Token(int64_t i) const { return sample_.tokens[static_cast<size_t>(i)]; }
  int64_t RowOf(int64_t i) const { return row_of_[static_cast<size_t>(i)]; }  // in errors().tokens
  bool Affected(int64_t i, int64_t channel) const { return CellAffected(RowOf(i), CellOf(channel)); }
  const double* Captured(int64_t i) const { return sample_.captured.Row(i); }
  const double* Expected(int64_t i) const { return sample_.expected.block.Row(i); }
  double Variance(int64_t i, int64_t channel) const {
    const double* variance = sample_.expected.block.Variance(i);
    return variance ? variance[channel] : 0;
  }
  const double* VarianceRow(int64_t i) const { return sample_.expected.block.Variance(i); }
  // Error in noise units; 0 where nothing can be said, as what is expected is not finite;
  // infinite where it is masked.
  double Units(int64_t i, int64_t channel) const;
  // |captured - expected| / |expected| over channels [begin, end).
  double RelativeError(int64_t i, int64_t begin, int64_t end) const;
  // Whether the element alone is beyond what a correct op gives.
  bool Off(int64_t i, int64_t channel) const;

 private:
  void MarkAffected();

  const PointErrors& errors_;
  const Sample& sample_;
  Limits limits_;
  int64_t cell_width_ = 1;
  bool everything_ = false;
  int64_t num_affected_ = 0;
  std::vector<char> row_affected_;   // [rows]
  std::vector<char> cell_affected_;  // [rows, cells]
  std::vector<int64_t> affected_, right_, row_of_;
};

// captured = value * expected in every affected cell.
struct Ratio {
  double value = 1;
  double standard_error = 0;
  std::string name;  // "1.005", "sqrt(128)"
};
std::optional<Ratio> FitRatio(const Evidence& evidence);

// captured = a factor of the row's own * expected, in every affected cell. Empty where one factor fits all.
struct RowRatios {
  double smallest = 0, largest = 0;
};
std::optional<RowRatios> FitRowRatios(const Evidence& evidence);

// captured = expected + the same vector in every affected row: [width]. Learnt from some rows, checked on the others.
std::optional<std::vector<double>> FitOffset(const Evidence& evidence);

// captured[channel] = expected[from[channel]] in every affected row.
struct ChannelMap {
  std::vector<int32_t> from;  // [width]
  std::string text;           // "each head's interleaved pairs taken apart into halves"
  bool whole_heads = false;   // heads as they are, in another order
};
std::optional<ChannelMap> MatchChannels(const Evidence& evidence);
// The maps with a name that are tried first; those of heads only where there are any.
std::vector<ChannelMap> KnownMaps(int64_t width, int64_t heads);

// Every element that is off holds the same value; at least 4 of them.
std::optional<double> FindConstant(const Evidence& evidence);

// captured = min(max(expected, low), high), where many elements are exactly at a bound.
struct Clamp {
  std::optional<double> low, high;
  std::string text;  // "±10"
};
std::optional<Clamp> FindClamp(const Evidence& evidence);

// All captured values of the affected cells lie on a grid that is coarser than the storage's, while those expected do
// not.
struct CoarseGrid {
  int bits = 0;              // significant ones; 0: multiples of a step
  double smallest = 0;       // with bits: no step is smaller (subnormal numbers)
  double step = 0;           // the same for all rows; 0: of each row its largest value / levels
  int levels = 0;            // 127: int8
  double most = INFINITY;    // values beyond it were clamped to it: 65504
  bool toward_zero = false;  // truncated
  bool explains = true;      // what is expected, rounded to it, is what was captured, but for noise at the borders
  std::string text;          // "8 significant bits (bf16)"

  // y on the grid; largest: of |y| in the row.
  double Round(double y, double largest) const;
  // Distance between neighbours there.
  double StepAt(double y, double largest) const;
  // Whether an error of `reach` may round y to a neighbour.
  bool NearBorder(double y, double largest, double reach) const;
};
std::optional<CoarseGrid> FindCoarseGrid(const Evidence& evidence);

// What rounding to the storage alone adds; 0 for F64.
double StorageRounding(DType storage, double y);

// "0-3, 7"
std::string Ranges(const std::vector<int64_t>& ascending);
// "0.123"
std::string Short(double value);

}  // namespace lockstep
