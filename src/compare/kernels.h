// The inner loops of the comparison, over chunks of pairs small enough to stay in the first-level cache: one look at
// the bits (hashes, extremes, equality), then the sums. Values are read as they are stored, bf16 or f32; sums are taken
// in f64, in fixed lanes, so that the result depends neither on the instruction set nor on the number of threads.
// Divisions and limits are taken in f32, sixteen lanes instead of eight; where that leaves a count in doubt, in f64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace lockstep {

inline constexpr size_t kChunk = 2048;                    // elements; two f32 buffers of this size are 16 KiB
inline constexpr size_t kMaxParts = 64;                   // heads in a chunk
inline constexpr size_t kNumTolerances = 4;               // kTolerances
inline constexpr size_t kNumLimits = kNumTolerances + 1;  // and the user's

enum class Format : uint8_t { kF32, kBF16 };
inline constexpr size_t FormatSize(Format format) { return format == Format::kF32 ? 4 : 2; }

// `count` values of each side, both in one format, at any address.
struct Pairs {
  Format format = Format::kF32;
  const std::byte* a = nullptr;
  const std::byte* b = nullptr;
  size_t count = 0;
};

// What one look at the bits of both sides tells.
struct ChunkScan {
  uint64_t hash_a = 0;  // of the values' bits in their format
  uint64_t hash_b = 0;
  bool zero_a = true;  // nothing but zeros of either sign
  bool zero_b = true;
  bool equal = true;                                 // to the bit
  bool finite = true;                                // both sides
  float min_a = 0, max_a = 0, min_b = 0, max_b = 0;  // only where finite; -0 is below +0
  int64_t zeros_b = 0;                               // elements with b == 0
  int64_t zero_mismatches = 0;                       // of those, a != 0
};

// Enough for the cosine and the relative L2 of a part of the tensor. a is the candidate, b the reference.
struct Products {
  double aa = 0, bb = 0, ab = 0, dd = 0;

  void Add(const Products& other);
  double Cosine() const;
  double RelativeL2() const;
};

// Sums over pairs of finite values.
struct ChunkSums {
  double a = 0, b = 0;
  double abs = 0;  // of |a - b|
  double rel = 0;  // of |a - b| / |b| where b != 0, each rounded to f32 (f64 if one of the call's overflows there)
  double max_abs = 0;
  double max_rel = 0;
  int64_t within[kNumLimits] = {};  // the user's: only if there is one
};

// |a - b| <= atol + rtol * |b|
struct Limit {
  double atol = 0;
  double rtol = 0;
};

// Sums over the softmaxes of a row of logits, with x = a - largest_a and y = b - largest_b.
struct SoftmaxSums {
  double a = 0;         // of exp(x)
  double b = 0;         // of exp(y)
  double weighted = 0;  // of exp(y) (y - x)
};

// One instruction set's loops. REQUIRES (all): 0 < count <= kChunk.
struct Kernels {
  const char* name;
  ChunkScan (*scan)(const Pairs& pairs);
  // REQUIRES: all values finite. limits: kNumTolerances, or kNumLimits with the user's. `parts` (heads): count / part
  // of them, whose products are written there. REQUIRES: count is a multiple of part, kMaxParts times at most.
  ChunkSums (*sum)(const Pairs& pairs, size_t part, std::span<const Limit> limits, Products* parts);
  // The same where b is a to the bit.
  ChunkSums (*sum_equal)(const Pairs& pairs, size_t part, Products* parts);
  // Index of the first pair with |a - b| == difference. REQUIRES: there is one.
  size_t (*find)(const Pairs& pairs, double difference);
  // REQUIRES: all values finite and at most as large as the largest; count a multiple of 16.
  SoftmaxSums (*softmax)(const Pairs& pairs, double largest_a, double largest_b);
};

// All that this machine can run, the widest last.
std::span<const Kernels* const> AvailableKernels();
const Kernels& BestKernels();

}  // namespace lockstep
