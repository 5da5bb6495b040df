// The fingerprint of a weight (docs/trace-format.md): one changed element, or a transposition, changes it; any order of
// summation gives the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "lockstep/dtype.h"

namespace lockstep {

constexpr uint64_t SplitMix64(uint64_t k) {
  uint64_t z = k + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

constexpr uint64_t FingerprintFactor(uint64_t k) { return SplitMix64(k) | 1; }

// data: [rows, columns] of F32, BF16 or F16, rows one after the other. rounded_to: of the values rounded to F32 (which
// changes none), BF16 or F16. 16 hex digits.
std::string FingerprintOfMatrix(DType dtype, const std::byte* data, int64_t rows, int64_t columns,
                                DType rounded_to = DType::kF32);

}  // namespace lockstep
