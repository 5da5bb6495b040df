// The loops of kernels.h, once for every instruction set: kernels.cc includes this file several times, each time in a
// namespace and with compiler options of its own. So there is no include guard, and nothing is included here.

// Native vectors. All instruction sets work on the same eight f64 lanes (and the same 64 bytes of values); narrower
// ones go over a chunk several times, for some of the lanes at a time, which keeps everything in registers.
constexpr size_t kNative = LOCKSTEP_VECTOR_BYTES / sizeof(double);
typedef double F64 __attribute__((vector_size(LOCKSTEP_VECTOR_BYTES)));
typedef int64_t I64 __attribute__((vector_size(LOCKSTEP_VECTOR_BYTES)));
typedef uint32_t U32 __attribute__((vector_size(LOCKSTEP_VECTOR_BYTES)));
typedef int32_t I32 __attribute__((vector_size(LOCKSTEP_VECTOR_BYTES)));
typedef int16_t I16 __attribute__((vector_size(LOCKSTEP_VECTOR_BYTES)));
typedef float HalfF32 __attribute__((vector_size(LOCKSTEP_VECTOR_BYTES / 2)));
typedef uint32_t HalfU32 __attribute__((vector_size(LOCKSTEP_VECTOR_BYTES / 2)));
typedef uint16_t QuarterU16 __attribute__((vector_size(LOCKSTEP_VECTOR_BYTES / 4)));

template <typename V>
LOCKSTEP_INLINE void Load(const std::byte* from, V& to) {
  std::memcpy(&to, from, sizeof(V));
}

LOCKSTEP_INLINE F64 Magnitude(const F64& x) { return (F64)((I64)x & INT64_MAX); }
LOCKSTEP_INLINE void Raise(F64& largest, const F64& x) { largest = x > largest ? x : largest; }

#if LOCKSTEP_VECTOR_BYTES == 64
LOCKSTEP_INLINE void WidenF32(const std::byte* from, F64& to) {
  to = (F64)_mm512_maskz_cvtps_pd(0xFF, _mm256_loadu_ps(reinterpret_cast<const float*>(from)));
}
LOCKSTEP_INLINE void WidenBf16(const std::byte* from, F64& to) {
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  to = (F64)_mm512_maskz_cvtps_pd(0xFF, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)));
}
LOCKSTEP_INLINE void CountWithin(I64& count, const F64& difference, const F64& limit) {
  const __mmask8 within = _mm512_cmp_pd_mask((__m512d)difference, (__m512d)limit, _CMP_LE_OQ);
  count = (I64)_mm512_mask_sub_epi64((__m512i)count, within, (__m512i)count, _mm512_set1_epi64(1));
}
LOCKSTEP_INLINE F64 OrInfinity(const F64& size) {
  const __mmask8 zero = _mm512_cmp_pd_mask((__m512d)size, _mm512_setzero_pd(), _CMP_EQ_OQ);
  return (F64)_mm512_mask_mov_pd((__m512d)size, zero, _mm512_set1_pd(std::numeric_limits<double>::infinity()));
}
#else
LOCKSTEP_INLINE void WidenF32(const std::byte* from, F64& to) {
  HalfF32 values;
  Load(from, values);
  to = __builtin_convertvector(values, F64);
}
LOCKSTEP_INLINE void WidenBf16(const std::byte* from, F64& to) {
  QuarterU16 bits;
  Load(from, bits);
  const HalfU32 wide = __builtin_convertvector(bits, HalfU32) << 16;
  to = __builtin_convertvector((HalfF32)wide, F64);
}
LOCKSTEP_INLINE void CountWithin(I64& count, const F64& difference, const F64& limit) { count += difference <= limit; }
// For zeros infinity, by their bits.
LOCKSTEP_INLINE F64 OrInfinity(const F64& size) {
  return (F64)((I64)size | ((I64)(size == 0.0) & std::bit_cast<int64_t>(std::numeric_limits<double>::infinity())));
}
#endif

// A format: its words as signed integers, in whose order -NaN < -inf < … < inf < NaN once Ordered.
struct Bf16 {
  using Words = I16;
  using Word = int16_t;
  static constexpr Word kMagnitude = 0x7FFF;
  static constexpr Word kInfinity = 0x7F80;
  static float Value(Word word) {
    return std::bit_cast<float>(static_cast<uint32_t>(static_cast<uint16_t>(word)) << 16);
  }
  LOCKSTEP_INLINE static void Widen(const std::byte* from, F64& to) { WidenBf16(from, to); }
};

struct F32 {
  using Words = I32;
  using Word = int32_t;
  static constexpr Word kMagnitude = 0x7FFFFFFF;
  static constexpr Word kInfinity = 0x7F800000;
  static float Value(Word word) { return std::bit_cast<float>(word); }
  LOCKSTEP_INLINE static void Widen(const std::byte* from, F64& to) { WidenF32(from, to); }
};

// Combines all lanes by halves, in an order that is the same everywhere.
template <typename Lane, size_t kCount, typename Combine>
LOCKSTEP_INLINE Lane Reduce(const Lane (&lanes)[kCount], Combine combine) {
  Lane values[kCount];
  std::copy_n(lanes, kCount, values);
  for (size_t half = kCount / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) values[i] = combine(values[i], values[i + half]);
  }
  return values[0];
}

template <typename Lane, size_t kCount>
LOCKSTEP_INLINE Lane Total(const Lane (&lanes)[kCount]) {
  return Reduce(lanes, [](Lane x, Lane y) LOCKSTEP_LAMBDA { return static_cast<Lane>(x + y); });
}

template <typename Lane, size_t kCount>
LOCKSTEP_INLINE Lane Smallest(const Lane (&lanes)[kCount]) {
  return Reduce(lanes, [](Lane x, Lane y) LOCKSTEP_LAMBDA { return x < y ? x : y; });
}

template <typename Lane, size_t kCount>
LOCKSTEP_INLINE Lane Largest(const Lane (&lanes)[kCount]) {
  return Reduce(lanes, [](Lane x, Lane y) LOCKSTEP_LAMBDA { return x > y ? x : y; });
}

// The rotation carries high bits down: a multiplication alone only moves them up.
LOCKSTEP_INLINE void HashStep(U32& hash, const U32& bits) {
  hash ^= bits;
  hash = (hash << 15) | (hash >> 17);
  hash *= 0x9E3779B1u;
}

LOCKSTEP_INLINE uint64_t FoldHash(const uint32_t (&lanes)[16], size_t count) {
  uint64_t hash = count;
  for (size_t i = 0; i < 16; i += 2) {
    const uint64_t mixed = (uint64_t{lanes[i]} << 32 | lanes[i + 1]) * FingerprintFactor(i);
    hash += mixed ^ (mixed >> 32);
  }
  return SplitMix64(hash);
}

// Some lanes of a scan.
template <typename T>
struct ScanVectors {
  using Words = typename T::Words;
  using Word = typename T::Word;
  U32 hash_a = {}, hash_b = {}, differ = {};
  Words min_a = Words{} + std::numeric_limits<Word>::max(), max_a = Words{} + std::numeric_limits<Word>::min();
  Words min_b = min_a, max_b = max_a;
  Words zeros_b = {}, zero_mismatches = {};  // comparisons give -1, so these count downwards

  LOCKSTEP_INLINE void Add(const std::byte* from_a, const std::byte* from_b) {
    Words a, b;
    Load(from_a, a), Load(from_b, b);
    HashStep(hash_a, (U32)a);
    HashStep(hash_b, (U32)b);
    differ |= (U32)(a ^ b);
    constexpr int kSign = 8 * sizeof(Word) - 1;
    const Words ordered_a = a ^ ((a >> kSign) & T::kMagnitude), ordered_b = b ^ ((b >> kSign) & T::kMagnitude);
    min_a = ordered_a < min_a ? ordered_a : min_a;
    max_a = ordered_a > max_a ? ordered_a : max_a;
    min_b = ordered_b < min_b ? ordered_b : min_b;
    max_b = ordered_b > max_b ? ordered_b : max_b;
    const Words zero = (b & T::kMagnitude) == 0;
    zeros_b += zero;
    zero_mismatches += zero & ((a & T::kMagnitude) != 0);
  }
};

// All lanes of a scan.
template <typename T>
struct ScanLanes {
  using Word = typename T::Word;
  static constexpr size_t kCount = 64 / sizeof(Word);
  uint32_t hash_a[16], hash_b[16], differ[16];
  Word min_a[kCount], max_a[kCount], min_b[kCount], max_b[kCount], zeros_b[kCount], zero_mismatches[kCount];

  LOCKSTEP_INLINE void Put(size_t byte, const ScanVectors<T>& v) {
    const auto put = [byte](auto& lanes, const auto& vector) LOCKSTEP_LAMBDA {
      std::memcpy(reinterpret_cast<std::byte*>(lanes) + byte, &vector, sizeof(vector));
    };
    put(hash_a, v.hash_a), put(hash_b, v.hash_b), put(differ, v.differ);
    put(min_a, v.min_a), put(max_a, v.max_a), put(min_b, v.min_b), put(max_b, v.max_b);
    put(zeros_b, v.zeros_b), put(zero_mismatches, v.zero_mismatches);
  }
};

// A short group of 64 bytes is filled up with its first pair: that changes neither extremes nor equality.
template <typename Word>
LOCKSTEP_INLINE void FillUp(const Pairs& pairs, size_t begin, Word* tail_a, Word* tail_b) {
  for (size_t i = 0; i < 64 / sizeof(Word); ++i) {
    const size_t from = (begin + i < pairs.count ? begin + i : begin) * sizeof(Word);
    std::memcpy(tail_a + i, pairs.a + from, sizeof(Word));
    std::memcpy(tail_b + i, pairs.b + from, sizeof(Word));
  }
}

// Of one side, from its ordered extremes.
template <typename T>
LOCKSTEP_INLINE void FinishSide(typename T::Word lowest, typename T::Word highest, float* min, float* max, bool* zero,
                                bool* finite) {
  using Word = typename T::Word;
  constexpr Word kMinusZero = -1, kMinusInfinity = static_cast<Word>(-1 - T::kInfinity);
  const auto value = [](Word word) { return T::Value(word < 0 ? static_cast<Word>(word ^ T::kMagnitude) : word); };
  *min = value(lowest);
  *max = value(highest);
  *zero = lowest >= kMinusZero && highest <= 0;
  *finite = *finite && lowest > kMinusInfinity && highest < T::kInfinity;
}

template <typename T>
ChunkScan Scan(const Pairs& pairs) {
  using Word = typename T::Word;
  const size_t bytes = pairs.count * sizeof(Word), whole = bytes / 64 * 64;
  Word tail_a[64 / sizeof(Word)], tail_b[64 / sizeof(Word)];
  if (whole < bytes) FillUp(pairs, whole / sizeof(Word), tail_a, tail_b);
  ScanLanes<T> s;
  for (size_t byte = 0; byte < 64; byte += LOCKSTEP_VECTOR_BYTES) {
    ScanVectors<T> v;
    for (size_t i = byte; i < whole; i += 64) v.Add(pairs.a + i, pairs.b + i);
    if (whole < bytes) {
      v.Add(reinterpret_cast<const std::byte*>(tail_a) + byte, reinterpret_cast<const std::byte*>(tail_b) + byte);
    }
    s.Put(byte, v);
  }

  ChunkScan scan;
  scan.hash_a = FoldHash(s.hash_a, pairs.count);
  scan.hash_b = FoldHash(s.hash_b, pairs.count);
  scan.equal = Reduce(s.differ, [](uint32_t x, uint32_t y) LOCKSTEP_LAMBDA { return x | y; }) == 0;
  FinishSide<T>(Smallest(s.min_a), Largest(s.max_a), &scan.min_a, &scan.max_a, &scan.zero_a, &scan.finite);
  FinishSide<T>(Smallest(s.min_b), Largest(s.max_b), &scan.min_b, &scan.max_b, &scan.zero_b, &scan.finite);
  scan.zeros_b = -int64_t{Total(s.zeros_b)};
  scan.zero_mismatches = -int64_t{Total(s.zero_mismatches)};
  if (whole < bytes && (tail_b[0] & T::kMagnitude) == 0) {
    const auto repeated = static_cast<int64_t>((64 - (bytes - whole)) / sizeof(Word));
    scan.zeros_b -= repeated;
    if ((tail_a[0] & T::kMagnitude) != 0) scan.zero_mismatches -= repeated;
  }
  return scan;
}

// Some lanes of a sum over a part.
struct ProductVectors {
  F64 aa = {}, bb = {}, ab = {}, dd = {};
};

// Some lanes of a sum over a chunk.
template <size_t kCount>
struct SumVectors {
  F64 a = {}, b = {}, abs = {}, rel = {}, max_abs = {}, max_rel = {};
  I64 within[kCount] = {};

  LOCKSTEP_INLINE void Add(const F64& x, const F64& y, const F64* atol, const F64* rtol, ProductVectors& p) {
    a += x;
    b += y;
    p.aa += x * x;
    p.bb += y * y;
    p.ab += x * y;
    const F64 difference = Magnitude(x - y), size = Magnitude(y);
    abs += difference;
    p.dd += difference * difference;
    Raise(max_abs, difference);
    // Divided by infinity where b is 0: adds nothing.
    const F64 relative = difference / OrInfinity(size);
    rel += relative;
    Raise(max_rel, relative);
    for (size_t i = 0; i < kCount; ++i) CountWithin(within[i], difference, atol[i] + rtol[i] * size);
  }
};

template <typename V, typename Lane, size_t kCount>
LOCKSTEP_INLINE void Put(const V& vector, size_t lane, Lane (&lanes)[kCount]) {
  std::memcpy(lanes + lane, &vector, sizeof(vector));
}

// Calls body(a, b) for some lanes of every group of eight pairs; the last, partial one is filled up with zeros.
template <typename T, typename Body>
LOCKSTEP_INLINE void ForGroups(const std::byte* from_a, const std::byte* from_b, size_t count, size_t lane, Body body) {
  constexpr size_t kSize = sizeof(typename T::Word);
  F64 a, b;
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    T::Widen(from_a + (i + lane) * kSize, a), T::Widen(from_b + (i + lane) * kSize, b);
    body(a, b);
  }
  if (i == count) return;
  std::byte tail_a[kLanes * kSize] = {}, tail_b[kLanes * kSize] = {};
  std::memcpy(tail_a, from_a + i * kSize, (count - i) * kSize);
  std::memcpy(tail_b, from_b + i * kSize, (count - i) * kSize);
  T::Widen(tail_a + lane * kSize, a), T::Widen(tail_b + lane * kSize, b);
  body(a, b);
}

template <size_t kCount>
ChunkSums FinishSum(const SumVectors<kCount>* vectors, std::span<const Limit> limits, int64_t padding) {
  double a[kLanes], b[kLanes], abs[kLanes], rel[kLanes], max_abs[kLanes], max_rel[kLanes];
  int64_t within[kCount][kLanes];
  for (size_t lane = 0; lane < kLanes; lane += kNative) {
    const SumVectors<kCount>& v = vectors[lane / kNative];
    Put(v.a, lane, a), Put(v.b, lane, b), Put(v.abs, lane, abs), Put(v.rel, lane, rel);
    Put(v.max_abs, lane, max_abs), Put(v.max_rel, lane, max_rel);
    for (size_t i = 0; i < kCount; ++i) Put(v.within[i], lane, within[i]);
  }
  ChunkSums sums;
  sums.a = Total(a), sums.b = Total(b), sums.abs = Total(abs), sums.rel = Total(rel);
  sums.max_abs = Largest(max_abs), sums.max_rel = Largest(max_rel);
  // A negative limit keeps even equal values out, so the padding may not have counted.
  for (size_t i = 0; i < kCount; ++i) sums.within[i] = -Total(within[i]) - (0.0 <= limits[i].atol ? padding : 0);
  return sums;
}

template <typename T, size_t kCount>
ChunkSums Sum(const Pairs& pairs, size_t part, std::span<const Limit> limits, Products* parts) {
  SumVectors<kCount> s[kLanes / kNative];
  F64 atol[kCount], rtol[kCount];
  for (size_t i = 0; i < kCount; ++i) atol[i] = F64{} + limits[i].atol, rtol[i] = F64{} + limits[i].rtol;
  const size_t size = part * sizeof(typename T::Word), num_parts = pairs.count / part;
  for (size_t k = 0; k < num_parts; ++k) {
    double aa[kLanes], bb[kLanes], ab[kLanes], dd[kLanes];
    for (size_t lane = 0; lane < kLanes; lane += kNative) {
      ProductVectors p;
      SumVectors<kCount> v = s[lane / kNative];
      ForGroups<T>(pairs.a + k * size, pairs.b + k * size, part, lane,
                   [&](const F64& x, const F64& y) LOCKSTEP_LAMBDA { v.Add(x, y, atol, rtol, p); });
      s[lane / kNative] = v;
      Put(p.aa, lane, aa), Put(p.bb, lane, bb), Put(p.ab, lane, ab), Put(p.dd, lane, dd);
    }
    parts[k] = {Total(aa), Total(bb), Total(ab), Total(dd)};
  }
  const size_t padding = num_parts * ((kLanes - part % kLanes) % kLanes);
  return FinishSum<kCount>(s, limits, static_cast<int64_t>(padding));
}

template <typename T>
ChunkSums SumEqual(const Pairs& pairs, size_t part, Products* parts) {
  const size_t size = part * sizeof(typename T::Word);
  F64 totals[kLanes / kNative] = {};
  double lanes[kLanes];
  for (size_t k = 0; k < pairs.count / part; ++k) {
    for (size_t lane = 0; lane < kLanes; lane += kNative) {
      F64 total = totals[lane / kNative], squares = {};
      ForGroups<T>(pairs.a + k * size, pairs.a + k * size, part, lane,
                   [&](const F64& x, const F64&) LOCKSTEP_LAMBDA { total += x, squares += x * x; });
      totals[lane / kNative] = total;
      Put(squares, lane, lanes);
    }
    const double total = Total(lanes);
    parts[k] = {total, total, total, 0};
  }
  for (size_t lane = 0; lane < kLanes; lane += kNative) Put(totals[lane / kNative], lane, lanes);
  ChunkSums sums;
  sums.a = sums.b = Total(lanes);
  for (int64_t& within : sums.within) within = static_cast<int64_t>(pairs.count);
  return sums;
}

template <typename T>
size_t Find(const Pairs& pairs, double difference) {
  // Groups of 64 pairs are asked whether they hold it; only one of them is looked through.
  constexpr size_t kGroup = 64, kSize = sizeof(typename T::Word);
  for (size_t begin = 0; begin < pairs.count; begin += kGroup) {
    const size_t count = std::min(kGroup, pairs.count - begin);
    I64 hits = {};
    size_t last = begin;
    for (size_t lane = 0; lane < kLanes; lane += kNative) {
      ForGroups<T>(pairs.a + begin * kSize, pairs.b + begin * kSize, count, lane,
                   [&](const F64& x, const F64& y) LOCKSTEP_LAMBDA { hits |= Magnitude(x - y) == difference; });
    }
    int64_t lanes[kNative];
    Put(hits, 0, lanes);
    if (Reduce(lanes, [](int64_t x, int64_t y) LOCKSTEP_LAMBDA { return x | y; }) == 0) continue;
    const auto value = [](const std::byte* from) {
      typename T::Word word;
      std::memcpy(&word, from, sizeof(word));
      return static_cast<double>(T::Value(word));
    };
    for (; last + 1 < begin + count; ++last) {
      if (std::abs(value(pairs.a + last * kSize) - value(pairs.b + last * kSize)) == difference) break;
    }
    return last;
  }
  return 0;
}

ChunkScan ScanAny(const Pairs& pairs) { return pairs.format == Format::kF32 ? Scan<F32>(pairs) : Scan<Bf16>(pairs); }

template <typename T>
ChunkSums SumWith(const Pairs& pairs, size_t part, std::span<const Limit> limits, Products* parts) {
  return limits.size() == kNumLimits ? Sum<T, kNumLimits>(pairs, part, limits, parts)
                                     : Sum<T, kNumTolerances>(pairs, part, limits, parts);
}

ChunkSums SumAny(const Pairs& pairs, size_t part, std::span<const Limit> limits, Products* parts) {
  return pairs.format == Format::kF32 ? SumWith<F32>(pairs, part, limits, parts)
                                      : SumWith<Bf16>(pairs, part, limits, parts);
}

ChunkSums SumEqualAny(const Pairs& pairs, size_t part, Products* parts) {
  return pairs.format == Format::kF32 ? SumEqual<F32>(pairs, part, parts) : SumEqual<Bf16>(pairs, part, parts);
}

size_t FindAny(const Pairs& pairs, double difference) {
  return pairs.format == Format::kF32 ? Find<F32>(pairs, difference) : Find<Bf16>(pairs, difference);
}

constexpr Kernels kKernels = {LOCKSTEP_ISA_NAME, ScanAny, SumAny, SumEqualAny, FindAny};
