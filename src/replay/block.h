// Rows of a point in float64.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lockstep {

// A token of a run: what identifies a row of every point.
struct TokenAt {
  int32_t run = 0;
  int32_t step = 0;
  int32_t token = 0;     // index in the step
  int32_t sequence = 0;  // the side's number
  int32_t position = 0;
  int32_t input_id = -1;
  auto operator<=>(const TokenAt&) const = default;
};

struct Block {
  int64_t rows = 0;
  int64_t width = 0;             // of a row, flattened in canonical axes
  std::vector<double> value;     // [rows, width]
  std::vector<double> variance;  // [rows, width] of the rounding in them; empty: exact
  // [rows, width] as an engine has them that rounds every step, where its errors may all point one way. Empty: they do
  // not.
  std::vector<double> rounded;
  // [rows, width] where a correct engine may have NaN as well: it multiplies what a row must not see by 0, and that is
  // not finite. Empty: nowhere.
  std::vector<char> doubtful;

  void Resize(int64_t new_rows, int64_t new_width) {
    rows = new_rows;
    width = new_width;
    value.assign(static_cast<size_t>(rows * width), 0.0);
    variance.clear();
    rounded.clear();
    doubtful.clear();
  }
  double* Row(int64_t row) { return value.data() + row * width; }
  const double* Row(int64_t row) const { return value.data() + row * width; }
  double* Variance(int64_t row) { return variance.data() + row * width; }
  bool IsDoubtful(int64_t row, int64_t c) const {
    return !doubtful.empty() && doubtful[static_cast<size_t>(row * width + c)] != 0;
  }
  // Null where exact.
  const double* Variance(int64_t row) const { return variance.empty() ? nullptr : variance.data() + row * width; }
};

}  // namespace lockstep
