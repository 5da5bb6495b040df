#include "compare/kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/fingerprint.h"

// GCC picks the widest version at load time. The lanes are the same in all of them, and so are the sums: nothing is
// contracted or reordered.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define LOCKSTEP_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define LOCKSTEP_CLONES
#endif

namespace lockstep {
namespace {

// Vector types of fixed width; the compiler splits them into whatever the machine has.
constexpr size_t kLanes = 8;
typedef double F64x8 __attribute__((vector_size(64)));
typedef int64_t I64x8 __attribute__((vector_size(64)));
typedef float F32x8 __attribute__((vector_size(32)));
constexpr size_t kWords = 16;
typedef uint32_t U32x16 __attribute__((vector_size(64)));
typedef float F32x16 __attribute__((vector_size(64)));

constexpr uint32_t kMagnitude = 0x7FFFFFFFu;
constexpr uint32_t kExponent = 0x7F800000u;

#define LOCKSTEP_INLINE inline __attribute__((always_inline))

template <typename V>
LOCKSTEP_INLINE double Total(const V& lanes) {
  double total = 0;
  for (size_t i = 0; i < kLanes; ++i) total += static_cast<double>(lanes[i]);
  return total;
}

LOCKSTEP_INLINE double Largest(const F64x8& lanes) {
  double largest = lanes[0];
  for (size_t i = 1; i < kLanes; ++i) largest = std::max(largest, lanes[i]);
  return largest;
}

uint64_t FoldHash(const U32x16& lanes, size_t count) {
  uint64_t hash = SplitMix64(count);
  for (size_t i = 0; i < kWords; i += 2) {
    hash = SplitMix64(hash ^ (static_cast<uint64_t>(lanes[i]) << 32 | lanes[i + 1]));
  }
  return hash;
}

struct ScanLanes {
  U32x16 hash_a, hash_b, any_a, any_b, differ, not_finite;
  F32x16 min_a, max_a, min_b, max_b;
};

// The rotation carries high bits down: the low halves of widened bf16 are all zero.
LOCKSTEP_INLINE void HashStep(U32x16& hash, const U32x16& bits) {
  hash ^= bits;
  hash = (hash << 15) | (hash >> 17);
  hash *= 0x9E3779B1u;
}

LOCKSTEP_INLINE void ScanGroup(ScanLanes& s, const F32x16& a, const F32x16& b) {
  const U32x16 bits_a = (U32x16)a, bits_b = (U32x16)b;
  HashStep(s.hash_a, bits_a);
  HashStep(s.hash_b, bits_b);
  s.any_a |= bits_a & kMagnitude;
  s.any_b |= bits_b & kMagnitude;
  s.differ |= bits_a ^ bits_b;
  s.not_finite |= (U32x16)((bits_a & kExponent) == kExponent) | (U32x16)((bits_b & kExponent) == kExponent);
  s.min_a = a < s.min_a ? a : s.min_a;
  s.max_a = a > s.max_a ? a : s.max_a;
  s.min_b = b < s.min_b ? b : s.min_b;
  s.max_b = b > s.max_b ? b : s.max_b;
}

LOCKSTEP_INLINE bool AnyBit(const U32x16& lanes) {
  uint32_t any = 0;
  for (size_t i = 0; i < kWords; ++i) any |= lanes[i];
  return any != 0;
}

ChunkScan FinishScan(const ScanLanes& s, size_t count) {
  ChunkScan scan;
  scan.hash_a = FoldHash(s.hash_a, count);
  scan.hash_b = FoldHash(s.hash_b, count);
  scan.zero_a = !AnyBit(s.any_a);
  scan.zero_b = !AnyBit(s.any_b);
  scan.equal = !AnyBit(s.differ);
  scan.finite = !AnyBit(s.not_finite);
  scan.min_a = s.min_a[0], scan.max_a = s.max_a[0], scan.min_b = s.min_b[0], scan.max_b = s.max_b[0];
  for (size_t i = 1; i < kWords; ++i) {
    scan.min_a = std::min(scan.min_a, s.min_a[i]);
    scan.max_a = std::max(scan.max_a, s.max_a[i]);
    scan.min_b = std::min(scan.min_b, s.min_b[i]);
    scan.max_b = std::max(scan.max_b, s.max_b[i]);
  }
  return scan;
}

struct SumLanes {
  F64x8 a, b, aa, bb, ab, abs, dd, rel, max_abs, max_rel;
  I64x8 zero_b, zero_mismatches;  // comparisons give -1, so these count downwards
  I64x8 within[kNumLimits];
};

LOCKSTEP_INLINE void SumGroup(SumLanes& s, const F32x8& a32, const F32x8& b32, const F64x8* atol, const F64x8* rtol) {
  const F64x8 a = __builtin_convertvector(a32, F64x8), b = __builtin_convertvector(b32, F64x8);
  s.a += a;
  s.b += b;
  s.aa += a * a;
  s.bb += b * b;
  s.ab += a * b;
  const F64x8 difference = (F64x8)((I64x8)(a - b) & INT64_MAX), size = (F64x8)((I64x8)b & INT64_MAX);
  s.abs += difference;
  s.dd += difference * difference;
  s.max_abs = difference > s.max_abs ? difference : s.max_abs;
  const I64x8 zero = b == 0.0;
  const F64x8 one = a * 0.0 + 1.0;
  const F64x8 quotient = difference / (zero ? one : size);
  const F64x8 relative = (F64x8)((I64x8)quotient & ~zero);
  s.rel += relative;
  s.max_rel = relative > s.max_rel ? relative : s.max_rel;
  s.zero_b += zero;
  s.zero_mismatches += zero & (difference != 0.0);
  for (size_t i = 0; i < kNumLimits; ++i) s.within[i] += difference <= atol[i] + rtol[i] * size;
}

template <typename V>
LOCKSTEP_INLINE void Load(const float* values, V& group) {
  std::memcpy(&group, values, sizeof(group));
}

// The last, partial group: what is missing is filled up with `fill`.
template <typename V>
LOCKSTEP_INLINE void LoadTail(const float* values, size_t count, float fill, V& group) {
  for (size_t i = 0; i < sizeof(V) / sizeof(float); ++i) group[i] = i < count ? values[i] : fill;
}

}  // namespace

LOCKSTEP_CLONES
ChunkScan ScanChunk(const float* a, const float* b, size_t count) {
  ScanLanes s = {};
  // The first value fills what a short group lacks: it changes neither extremes, nor zeros, nor equality.
  for (size_t i = 0; i < kWords; ++i) s.min_a[i] = s.max_a[i] = a[0], s.min_b[i] = s.max_b[i] = b[0];
  size_t i = 0;
  F32x16 group_a, group_b;
  for (; i + kWords <= count; i += kWords) {
    Load(a + i, group_a), Load(b + i, group_b);
    ScanGroup(s, group_a, group_b);
  }
  if (i < count) {
    LoadTail(a + i, count - i, a[0], group_a), LoadTail(b + i, count - i, b[0], group_b);
    ScanGroup(s, group_a, group_b);
  }
  return FinishScan(s, count);
}

LOCKSTEP_CLONES
ChunkSums SumChunk(const float* a, const float* b, size_t count, const Limit* limits) {
  SumLanes s = {};
  F64x8 atol[kNumLimits], rtol[kNumLimits];
  for (size_t i = 0; i < kNumLimits; ++i) {
    for (size_t lane = 0; lane < kLanes; ++lane) atol[i][lane] = limits[i].atol, rtol[i][lane] = limits[i].rtol;
  }
  size_t i = 0;
  F32x8 group_a, group_b;
  for (; i + kLanes <= count; i += kLanes) {
    Load(a + i, group_a), Load(b + i, group_b);
    SumGroup(s, group_a, group_b, atol, rtol);
  }
  // Pairs of zeros add nothing but to the counts.
  int64_t padding = 0;
  if (i < count) {
    padding = static_cast<int64_t>(kLanes - (count - i));
    LoadTail(a + i, count - i, 0, group_a), LoadTail(b + i, count - i, 0, group_b);
    SumGroup(s, group_a, group_b, atol, rtol);
  }
  ChunkSums sums;
  sums.a = Total(s.a), sums.b = Total(s.b), sums.aa = Total(s.aa), sums.bb = Total(s.bb), sums.ab = Total(s.ab);
  sums.abs = Total(s.abs), sums.dd = Total(s.dd), sums.rel = Total(s.rel);
  sums.max_abs = Largest(s.max_abs), sums.max_rel = Largest(s.max_rel);
  sums.zero_b = -static_cast<int64_t>(Total(s.zero_b)) - padding;
  sums.zero_mismatches = -static_cast<int64_t>(Total(s.zero_mismatches));
  for (size_t k = 0; k < kNumLimits; ++k) {
    // A negative limit keeps even equal values out, so the padding may not have counted.
    const bool padding_counted = 0.0 <= limits[k].atol;
    sums.within[k] = -static_cast<int64_t>(Total(s.within[k])) - (padding_counted ? padding : 0);
  }
  return sums;
}

LOCKSTEP_CLONES
ChunkSums SumEqualChunk(const float* a, size_t count) {
  F64x8 sum = {}, squares = {};
  I64x8 zeros = {};
  size_t i = 0;
  const auto add = [&](const F32x8& a32) __attribute__((always_inline)) {
    const F64x8 x = __builtin_convertvector(a32, F64x8);
    sum += x;
    squares += x * x;
    zeros += x == 0.0;
  };
  F32x8 group;
  for (; i + kLanes <= count; i += kLanes) {
    Load(a + i, group);
    add(group);
  }
  int64_t padding = 0;
  if (i < count) {
    padding = static_cast<int64_t>(kLanes - (count - i));
    LoadTail(a + i, count - i, 0, group);
    add(group);
  }
  ChunkSums sums;
  sums.a = sums.b = Total(sum);
  sums.aa = sums.bb = sums.ab = Total(squares);
  sums.zero_b = -static_cast<int64_t>(Total(zeros)) - padding;
  for (int64_t& within : sums.within) within = static_cast<int64_t>(count);
  return sums;
}

}  // namespace lockstep
