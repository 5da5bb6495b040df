// What rounding alone does to a value, as variances: the noise floor's one place.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "lockstep/trace.h"

namespace lockstep {

// A dtype's grid of numbers. F64 stands for "not rounded".
class Grid {
 public:
  explicit Grid(DType dtype);

  // Distance between neighbouring numbers at |y|.
  double Ulp(double y) const { return std::max(Power(y) * relative_, smallest_); }
  // Variance of rounding y: ulp^2 / 12, that of an error which is uniform within half a step. Subnormal numbers of F32
  // and BF16 may have been flushed to zero.
  double Rounding(double y) const {
    const double ulp = std::max(Power(y) * relative_, flushed_);
    return ulp * ulp * (1.0 / 12);
  }
  // y rounded to nearest even; beyond the largest number it becomes infinite. NaN stays.
  double Round(double y) const {
    if (smallest_ == 0) return y;
    const double step = Ulp(y);
    constexpr double kShift = 0x1.8p52;  // adding it leaves no bits for a fraction
    const double rounded = ((y / step + kShift) - kShift) * step;
    return std::abs(rounded) > largest_ ? std::copysign(INFINITY, y) : std::isfinite(y) ? rounded : y;
  }
  // Half a step relative to the value: 2^-24 for F32.
  double unit_error() const { return unit_error_; }
  double largest() const { return largest_; }

 private:
  Grid(double relative, double smallest, double flushed, double largest, double unit_error)
      : relative_(relative), smallest_(smallest), flushed_(flushed), largest_(largest), unit_error_(unit_error) {}

  // The power of two at or below |y|.
  static double Power(double y) { return std::bit_cast<double>(std::bit_cast<uint64_t>(y) & 0x7FF0'0000'0000'0000); }

  double relative_;  // ulp of 1
  double smallest_;  // subnormal
  double flushed_;   // below it, results may be zero
  double largest_;
  double unit_error_;
};

// The coarser of two storage dtypes; what is no float counts as F32.
inline DType Coarser(DType a, DType b) { return Grid(a).unit_error() >= Grid(b).unit_error() ? a : b; }

inline double Square(double x) { return x * x; }

// Relative variance of a sum of `count` positive terms that is added up one by one, each partial sum rounded with unit
// error a: the partial sums grow evenly, so a^2 * count / 9; and a few operations around it.
inline double SumOfSquaresError(double a, int64_t count) { return a * a * (4 + static_cast<double>(count) / 9); }

}  // namespace lockstep
