// Which dtype's grid do values lie on? A tensor stored in F32 whose values are all BF16 numbers was computed in BF16;
// one whose values have three bits of fraction, or are multiples of a step, was quantised.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lockstep/dtype.h"

namespace lockstep {

// Fewer distinct values prove nothing: zeros, ones and small integers lie on every grid.
inline constexpr size_t kEnoughDistinct = 64;

// The coarsest of BF16, F16 and F32 on which every finite value lies. None where fewer than kEnoughDistinct of them are
// distinct and not zero.
std::optional<DType> GridOf(std::span<const float> values);

// A grid still coarser than BF16's, in words: few bits of fraction, as of an 8-bit float, or multiples of one step, as
// of an 8-bit integer, with one step for all values, for each row, or for each part of the last axis. values: whole
// rows of `row_shape`, that lie on the grid of `dtype`.
std::optional<std::string> CoarserGrid(std::span<const float> values, const std::vector<int64_t>& row_shape,
                                       DType dtype);

}  // namespace lockstep
