// Twins in double with the same rounding points. A twin's exact value and the kernel's f32 error give an interval; it
// is rounded where the kernel rounds, and the kernel's value must lie in it. So a lost or an added rounding is seen.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/convert.h"

namespace lockstep::kernels {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
inline constexpr double kF32Error = 1e-6;  // relative, of a few f32 operations on one another
inline constexpr int64_t kSizes[] = {1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 129};

using Bytes = std::vector<std::byte>;

inline float Round(DType dtype, double value) {
  return WithStorageType(dtype, [&]<typename T>() { return ToFloat(FromFloat<T>(static_cast<float>(value))); });
}

// Where a value may lie that is computed with some error.
struct Interval {
  double low, high;
};

inline Interval Around(double value, double error) { return {value - error, value + error}; }
inline Interval Rounded(DType dtype, Interval i) { return {Round(dtype, i.low), Round(dtype, i.high)}; }
inline Interval Scaled(Interval i, double factor) {
  return {std::min(i.low * factor, i.high * factor), std::max(i.low * factor, i.high * factor)};
}
inline Interval Widened(Interval i) {
  return {i.low - std::abs(i.low) * 1e-7, i.high + std::abs(i.high) * 1e-7};
}  // an f32 rounding

inline void ExpectInside(float value, Interval interval, std::array<int64_t, 3> where) {
  if (interval.low <= value && value <= interval.high) return;
  ADD_FAILURE() << where[0] << " " << where[1] << " " << where[2] << ": " << value << " is not in [" << interval.low
                << ", " << interval.high << "]";
}

inline Bytes Stored(DType dtype, const std::vector<float>& values) {
  Bytes bytes(values.size() * DTypeSize(dtype));
  NarrowFromFloat(dtype, values.data(), values.size(), bytes.data());
  return bytes;
}

inline std::vector<float> Loaded(DType dtype, const Bytes& bytes) {
  std::vector<float> values(bytes.size() / DTypeSize(dtype));
  WidenToFloat(dtype, bytes.data(), values.size(), values.data());
  return values;
}

class KernelsTest : public testing::TestWithParam<DType> {
 protected:
  // Values of the storage dtype.
  std::vector<float> Random(int64_t count, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = Round(dtype_, normal(random_));
    return values;
  }
  std::string Where(int64_t a, int64_t b = 0, int64_t c = 0) const {
    return std::string(DTypeName(dtype_)) + " " + std::to_string(a) + " " + std::to_string(b) + " " + std::to_string(c);
  }

  const DType dtype_ = GetParam();
  std::mt19937 random_{7};
};

}  // namespace lockstep::kernels
