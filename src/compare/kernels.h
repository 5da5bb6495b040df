// The inner loops of the comparison: everything that is summed over a chunk of f32 pairs small enough to stay in the
// first-level cache. Sums are taken in f64, in fixed lanes, so that the result depends neither on the instruction set
// nor on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lockstep {

inline constexpr size_t kChunk = 2048;   // elements; two f32 buffers of this size are 16 KiB
inline constexpr size_t kNumLimits = 5;  // kTolerances and the user's

// What one look at the bits of both sides tells.
struct ChunkScan {
  uint64_t hash_a = 0;  // of the values' bits
  uint64_t hash_b = 0;
  bool zero_a = true;  // nothing but zeros of either sign
  bool zero_b = true;
  bool equal = true;                                 // to the bit
  bool finite = true;                                // both sides
  float min_a = 0, max_a = 0, min_b = 0, max_b = 0;  // only where finite
};

// Sums over pairs of finite values.
struct ChunkSums {
  double a = 0, b = 0, aa = 0, bb = 0, ab = 0;
  double abs = 0, dd = 0;  // of |a - b| and its square
  double rel = 0;          // of |a - b| / |b| where b != 0
  double max_abs = 0;
  double max_rel = 0;
  int64_t zero_b = 0;           // elements with b == 0
  int64_t zero_mismatches = 0;  // of those, a != 0
  int64_t within[kNumLimits] = {};
};

// |a - b| <= atol + rtol * |b|
struct Limit {
  double atol = 0;
  double rtol = 0;
};

// REQUIRES (all): 0 < count <= kChunk.
ChunkScan ScanChunk(const float* a, const float* b, size_t count);
// REQUIRES: all values finite. limits: [kNumLimits].
ChunkSums SumChunk(const float* a, const float* b, size_t count, const Limit* limits);
// The same where b is a to the bit.
ChunkSums SumEqualChunk(const float* a, size_t count);

}  // namespace lockstep
