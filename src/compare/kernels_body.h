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
typedef float Floats __attribute__((vector_size(LOCKSTEP_VECTOR_BYTES)));
typedef float HalfF32 __attribute__((vector_size(LOCKSTEP_VECTOR_BYTES / 2)));

template <typename V>
LOCKSTEP_INLINE void Load(const std::byte* from, V& to) {
  std::memcpy(&to, from, sizeof(V));
}

LOCKSTEP_INLINE F64 Magnitude(const F64& x) { return (F64)((I64)x & INT64_MAX); }
LOCKSTEP_INLINE Floats Magnitude(const Floats& x) { return (Floats)((I32)x & INT32_MAX); }

// A group is sixteen pairs, of which a Floats has some lanes of the first eight and then the same lanes of the second.
// MultiplyAdd may round once or twice: only for exact products, and where nothing depends on it.
#if LOCKSTEP_VECTOR_BYTES == 64
LOCKSTEP_INLINE void WidenF32(const std::byte* from, Floats& to) { Load(from, to); }
LOCKSTEP_INLINE void WidenBf16(const std::byte* from, Floats& to) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  to = (Floats)((U32)_mm512_maskz_cvtepu16_epi32(0xFFFF, bits) << 16);
}
LOCKSTEP_INLINE void Split(const Floats& x, F64& first, F64& second) {
  first = (F64)_mm512_maskz_cvtps_pd(0xFF, (__m256)__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7));
  second = (F64)_mm512_maskz_cvtps_pd(0xFF, (__m256)__builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
}
LOCKSTEP_INLINE F64 MultiplyAdd(const F64& x, const F64& y, const F64& z) {
  return (F64)_mm512_fmadd_pd((__m512d)x, (__m512d)y, (__m512d)z);
}
LOCKSTEP_INLINE Floats MultiplyAdd(const Floats& x, const Floats& y, const Floats& z) {
  return (Floats)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
}
LOCKSTEP_INLINE Floats DivideOrZero(const Floats& x, const Floats& y) {
  const __mmask16 some = _mm512_cmp_ps_mask((__m512)y, _mm512_setzero_ps(), _CMP_NEQ_OQ);
  return (Floats)_mm512_maskz_div_ps(some, (__m512)x, (__m512)y);
}
LOCKSTEP_INLINE void Raise(F64& largest, const F64& x) {
  largest = (F64)_mm512_maskz_max_pd(0xFF, (__m512d)x, (__m512d)largest);
}
LOCKSTEP_INLINE void Raise(Floats& largest, const Floats& x) {
  largest = (Floats)_mm512_maskz_max_ps(0xFFFF, (__m512)x, (__m512)largest);
}
LOCKSTEP_INLINE void Lower(U32& smallest, const U32& x) {
  smallest = (U32)_mm512_maskz_min_epu32(0xFFFF, (__m512i)smallest, (__m512i)x);
}
#else
#if LOCKSTEP_VECTOR_BYTES == 32
LOCKSTEP_INLINE void WidenF32(const std::byte* from, Floats& to) {
  const float* values = reinterpret_cast<const float*>(from);
  to = (Floats)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(values)), _mm_loadu_ps(values + kLanes), 1);
}
LOCKSTEP_INLINE void WidenBf16(const std::byte* from, Floats& to) {
  const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  const __m128i second = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + kLanes * sizeof(uint16_t)));
  to = (Floats)((U32)_mm256_cvtepu16_epi32(_mm_unpacklo_epi64(first, second)) << 16);
}
LOCKSTEP_INLINE void Split(const Floats& x, F64& first, F64& second) {
  first = (F64)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x));
  second = (F64)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1));
}
LOCKSTEP_INLINE F64 MultiplyAdd(const F64& x, const F64& y, const F64& z) {
  return (F64)_mm256_fmadd_pd((__m256d)x, (__m256d)y, (__m256d)z);
}
LOCKSTEP_INLINE Floats MultiplyAdd(const Floats& x, const Floats& y, const Floats& z) {
  return (Floats)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
}
#else
LOCKSTEP_INLINE void WidenF32(const std::byte* from, Floats& to) {
  HalfF32 first, second;
  Load(from, first), Load(from + kLanes * sizeof(float), second);
  to = __builtin_shufflevector(first, second, 0, 1, 2, 3);
}
LOCKSTEP_INLINE void WidenBf16(const std::byte* from, Floats& to) {
  uint16_t first[2], second[2];
  Load(from, first), Load(from + kLanes * sizeof(uint16_t), second);
  to = (Floats)(U32{first[0], first[1], second[0], second[1]} << 16);
}
LOCKSTEP_INLINE void Split(const Floats& x, F64& first, F64& second) {
  first = F64{x[0], x[1]};
  second = F64{x[2], x[3]};
}
template <typename V>
LOCKSTEP_INLINE V MultiplyAdd(const V& x, const V& y, const V& z) {
  return x * y + z;
}
#endif
// Divided by infinity where y is 0.
LOCKSTEP_INLINE Floats DivideOrZero(const Floats& x, const Floats& y) {
  constexpr int32_t kInfinity = std::bit_cast<int32_t>(std::numeric_limits<float>::infinity());
  return x / (Floats)((I32)y | ((I32)(y == 0.0f) & kInfinity));
}
template <typename V>
LOCKSTEP_INLINE void Raise(V& largest, const V& x) {
  largest = x > largest ? x : largest;
}
LOCKSTEP_INLINE void Lower(U32& smallest, const U32& x) { smallest = x < smallest ? x : smallest; }
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
  LOCKSTEP_INLINE static void Widen(const std::byte* from, Floats& to) { WidenBf16(from, to); }
};

struct F32 {
  using Words = I32;
  using Word = int32_t;
  static constexpr Word kMagnitude = 0x7FFFFFFF;
  static constexpr Word kInfinity = 0x7F800000;
  static float Value(Word word) { return std::bit_cast<float>(word); }
  LOCKSTEP_INLINE static void Widen(const std::byte* from, Floats& to) { WidenF32(from, to); }
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

// Limits in f32. An element is in doubt where the difference and the limit, both in f32, are at most kDoubt values of
// f32 apart. Rounding moves them by less: by at most one value each in the difference, the two constants, the product
// and the sum. The order of the bits of positive floats is theirs, up to infinity; so an element that is not in doubt
// is on the same side of the limit as in f64.
constexpr int32_t kDoubt = 16;
template <size_t kCount>
struct FloatLimits {
  explicit FloatLimits(std::span<const Limit> limits) {
    for (size_t i = 0; i < kCount; ++i) {
      atol[i] = Floats{} + static_cast<float>(limits[i].atol);
      rtol[i] = Floats{} + static_cast<float>(limits[i].rtol);
    }
  }
  Floats atol[kCount], rtol[kCount];
};

// Whether FloatLimits may be used: negative ones, NaN, and a subnormal rtol (of which f32 keeps too little) are not for
// them.
LOCKSTEP_INLINE bool FitFloats(std::span<const Limit> limits) {
  constexpr double kSmallest = std::numeric_limits<float>::min(), kLargest = std::numeric_limits<float>::max();
  for (const Limit& limit : limits) {
    if (std::signbit(limit.atol) || !(limit.atol <= kLargest)) return false;
    if (std::signbit(limit.rtol) || !(limit.rtol <= kLargest)) return false;
    if (limit.rtol != 0 && limit.rtol < kSmallest) return false;
  }
  return true;
}

// Some lanes of a sum over a part.
struct ProductVectors {
  F64 aa = {}, bb = {}, ab = {}, dd = {};
};

// Some lanes of a sum over a chunk.
template <size_t kCount>
struct SumVectors {
  F64 a = {}, b = {}, abs = {}, rel = {}, max_abs = {};
  Floats max_rel = {};
  I32 within[kCount] = {};   // counts downwards
  U32 nearest = U32{} - 1u;  // at most 2 * kDoubt if an element is in doubt

  LOCKSTEP_INLINE void Add(const Floats& x, const Floats& y, const FloatLimits<kCount>& limits, ProductVectors& p) {
    F64 x0, x1, y0, y1;
    Split(x, x0, x1), Split(y, y0, y1);
    AddExact(x0, y0, p), AddExact(x1, y1, p);

    const Floats difference = Magnitude(x - y), size = Magnitude(y), relative = DivideOrZero(difference, size);
    F64 relative0, relative1;
    Split(relative, relative0, relative1);
    rel += relative0, rel += relative1;
    Raise(max_rel, relative);
    const U32 from = (U32)difference + uint32_t{kDoubt};  // unsigned, for negative limits may wrap around
    for (size_t i = 0; i < kCount; ++i) {
      const U32 above = from - (U32)MultiplyAdd(limits.rtol[i], size, limits.atol[i]);
      within[i] += (I32)above >> 31;
      Lower(nearest, above);
    }
  }

  // The products of two floats are exact in f64, the square of a difference may not be.
  LOCKSTEP_INLINE void AddExact(const F64& x, const F64& y, ProductVectors& p) {
    a += x;
    b += y;
    p.aa = MultiplyAdd(x, x, p.aa);
    p.bb = MultiplyAdd(y, y, p.bb);
    p.ab = MultiplyAdd(x, y, p.ab);
    const F64 difference = Magnitude(x - y);
    abs += difference;
    p.dd += difference * difference;
    Raise(max_abs, difference);
  }
};

template <typename V, typename Lane, size_t kCount>
LOCKSTEP_INLINE void Put(const V& vector, size_t lane, Lane (&lanes)[kCount]) {
  std::memcpy(lanes + lane, &vector, sizeof(vector));
}

constexpr size_t kGroup = 2 * kLanes;

// Calls body(a, b) for some lanes of every group of pairs; the last, partial one is filled up with zeros.
template <typename T, typename Body>
LOCKSTEP_INLINE void ForGroups(const std::byte* from_a, const std::byte* from_b, size_t count, size_t lane, Body body) {
  constexpr size_t kSize = sizeof(typename T::Word);
  Floats a, b;
  size_t i = 0;
  for (; i + kGroup <= count; i += kGroup) {
    // The chunk after this one, for these loops wait for the arithmetic while the scan waits for the memory. Beyond the
    // tensor a prefetch does nothing.
    __builtin_prefetch(from_a + (i + kChunk) * kSize), __builtin_prefetch(from_b + (i + kChunk) * kSize);
    T::Widen(from_a + (i + lane) * kSize, a), T::Widen(from_b + (i + lane) * kSize, b);
    body(a, b);
  }
  if (i == count) return;
  std::byte tail_a[kGroup * kSize] = {}, tail_b[kGroup * kSize] = {};
  std::memcpy(tail_a, from_a + i * kSize, (count - i) * kSize);
  std::memcpy(tail_b, from_b + i * kSize, (count - i) * kSize);
  T::Widen(tail_a + lane * kSize, a), T::Widen(tail_b + lane * kSize, b);
  body(a, b);
}

// The same in f64, for the first eight pairs of a group and then for the second.
template <typename T, typename Body>
LOCKSTEP_INLINE void ForHalfGroups(const Pairs& pairs, size_t lane, Body body) {
  ForGroups<T>(pairs.a, pairs.b, pairs.count, lane, [&](const Floats& x, const Floats& y) LOCKSTEP_LAMBDA {
    F64 x0, x1, y0, y1;
    Split(x, x0, x1), Split(y, y0, y1);
    body(x0, y0), body(x1, y1);
  });
}

constexpr int64_t Padding(size_t count) { return static_cast<int64_t>((kGroup - count % kGroup) % kGroup); }

// In f64, where f32 leaves an element of the chunk in doubt.
template <typename T>
int64_t CountWithin(const Pairs& pairs, const Limit& limit) {
  int64_t lanes[kLanes];
  for (size_t lane = 0; lane < kLanes; lane += kNative) {
    I64 count = {};
    ForHalfGroups<T>(pairs, lane, [&](const F64& x, const F64& y) LOCKSTEP_LAMBDA {
      count -= Magnitude(x - y) <= limit.atol + limit.rtol * Magnitude(y);
    });
    Put(count, lane, lanes);
  }
  // A negative limit keeps even equal values out, so the padding may not have counted.
  return Total(lanes) - (0.0 <= limit.atol ? Padding(pairs.count) : 0);
}

// In f64, where one of the relative differences is infinite in f32.
template <typename T>
void AddRelative(const Pairs& pairs, ChunkSums* sums) {
  double rel[kLanes], max_rel[kLanes];
  for (size_t lane = 0; lane < kLanes; lane += kNative) {
    F64 total = {}, largest = {};
    ForHalfGroups<T>(pairs, lane, [&](const F64& x, const F64& y) LOCKSTEP_LAMBDA {
      constexpr int64_t kInfinity = std::bit_cast<int64_t>(std::numeric_limits<double>::infinity());
      const F64 size = Magnitude(y);
      const F64 relative = Magnitude(x - y) / (F64)((I64)size | ((I64)(size == 0.0) & kInfinity));
      total += relative;
      Raise(largest, relative);
    });
    Put(total, lane, rel), Put(largest, lane, max_rel);
  }
  sums->rel = Total(rel), sums->max_rel = Largest(max_rel);
}

template <typename T, size_t kCount>
ChunkSums FinishSum(const Pairs& pairs, const SumVectors<kCount>* vectors, std::span<const Limit> limits,
                    int64_t padding) {
  double a[kLanes], b[kLanes], abs[kLanes], rel[kLanes], max_abs[kLanes];
  float max_rel[kGroup];
  int32_t within[kCount][kGroup];
  uint32_t nearest[kGroup];
  for (size_t lane = 0; lane < kLanes; lane += kNative) {
    const SumVectors<kCount>& v = vectors[lane / kNative];
    Put(v.a, lane, a), Put(v.b, lane, b), Put(v.abs, lane, abs), Put(v.rel, lane, rel), Put(v.max_abs, lane, max_abs);
    Put(v.max_rel, 2 * lane, max_rel), Put(v.nearest, 2 * lane, nearest);
    for (size_t i = 0; i < kCount; ++i) Put(v.within[i], 2 * lane, within[i]);
  }
  ChunkSums sums;
  sums.a = Total(a), sums.b = Total(b), sums.abs = Total(abs), sums.rel = Total(rel);
  sums.max_abs = Largest(max_abs), sums.max_rel = Largest(max_rel);
  if (std::isinf(sums.max_rel)) AddRelative<T>(pairs, &sums);
  const bool doubtful = Smallest(nearest) <= 2 * kDoubt || !FitFloats(limits);
  for (size_t i = 0; i < kCount; ++i) {
    sums.within[i] = doubtful ? CountWithin<T>(pairs, limits[i]) : -int64_t{Total(within[i])} - padding;
  }
  return sums;
}

template <typename T, size_t kCount>
ChunkSums Sum(const Pairs& pairs, size_t part, std::span<const Limit> limits, Products* parts) {
  SumVectors<kCount> s[kLanes / kNative];
  const FloatLimits<kCount> float_limits(limits);
  const size_t size = part * sizeof(typename T::Word), num_parts = pairs.count / part;
  for (size_t k = 0; k < num_parts; ++k) {
    double aa[kLanes], bb[kLanes], ab[kLanes], dd[kLanes];
    for (size_t lane = 0; lane < kLanes; lane += kNative) {
      ProductVectors p;
      SumVectors<kCount> v = s[lane / kNative];
      ForGroups<T>(pairs.a + k * size, pairs.b + k * size, part, lane,
                   [&](const Floats& x, const Floats& y) LOCKSTEP_LAMBDA { v.Add(x, y, float_limits, p); });
      s[lane / kNative] = v;
      Put(p.aa, lane, aa), Put(p.bb, lane, bb), Put(p.ab, lane, ab), Put(p.dd, lane, dd);
    }
    parts[k] = {Total(aa), Total(bb), Total(ab), Total(dd)};
  }
  return FinishSum<T, kCount>(pairs, s, limits, static_cast<int64_t>(num_parts) * Padding(part));
}

template <typename T>
ChunkSums SumEqual(const Pairs& pairs, size_t part, Products* parts) {
  const size_t size = part * sizeof(typename T::Word);
  F64 totals[kLanes / kNative] = {};
  double lanes[kLanes];
  for (size_t k = 0; k < pairs.count / part; ++k) {
    for (size_t lane = 0; lane < kLanes; lane += kNative) {
      F64 total = totals[lane / kNative], squares = {};
      const std::byte* from = pairs.a + k * size;
      ForHalfGroups<T>({pairs.format, from, from, part}, lane, [&](const F64& x, const F64&) LOCKSTEP_LAMBDA {
        total += x, squares = MultiplyAdd(x, x, squares);
      });
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
  // Blocks of 64 pairs are asked whether they hold it; only one of them is looked through.
  constexpr size_t kBlock = 64, kSize = sizeof(typename T::Word);
  for (size_t begin = 0; begin < pairs.count; begin += kBlock) {
    const size_t count = std::min(kBlock, pairs.count - begin);
    const Pairs block{pairs.format, pairs.a + begin * kSize, pairs.b + begin * kSize, count};
    I64 hits = {};
    size_t last = begin;
    for (size_t lane = 0; lane < kLanes; lane += kNative) {
      ForHalfGroups<T>(block, lane,
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

// exp(x) for x <= 0 to about 1e-15 of it, e^-708 for all that is less. The same bits everywhere: no fused multiply-add.
LOCKSTEP_INLINE void Exp(const F64& below, F64& result) {
  constexpr double kLog2E = 0x1.71547652b82fep0, kLn2High = 0x1.62e42fee00000p-1, kLn2Low = 0x1.a39ef35793c76p-33;
  constexpr double kRound = 0x1.8p52;  // sums with it are whole, and end in the bits of the whole number
  const F64 x = below > -708.0 ? below : F64{} - 708.0;
  const F64 shifted = x * kLog2E + kRound, n = shifted - kRound;
  const F64 r = (x - n * kLn2High) - n * kLn2Low;  // |r| <= ln(2) / 2
  constexpr double kInverseFactorials[] = {1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                           1.0 / 5040,     1.0 / 720,     1.0 / 120,    1.0 / 24,
                                           1.0 / 6,        1.0 / 2,       1.0,          1.0};
  F64 sum = F64{} + kInverseFactorials[0];
  for (size_t i = 1; i < std::size(kInverseFactorials); ++i) sum = sum * r + kInverseFactorials[i];
  result = sum * (F64)(((I64)shifted + 1023) << 52);
}

template <typename T>
SoftmaxSums Softmax(const Pairs& pairs, double largest_a, double largest_b) {
  double sum_a[kLanes], sum_b[kLanes], weighted[kLanes];
  for (size_t lane = 0; lane < kLanes; lane += kNative) {
    F64 a = {}, b = {}, w = {};
    ForHalfGroups<T>(pairs, lane, [&](const F64& value_a, const F64& value_b) LOCKSTEP_LAMBDA {
      const F64 x = value_a - largest_a, y = value_b - largest_b;
      F64 p, q;
      Exp(x, q), Exp(y, p);
      a += q, b += p;
      w += p * (y - x);
    });
    Put(a, lane, sum_a), Put(b, lane, sum_b), Put(w, lane, weighted);
  }
  return {Total(sum_a), Total(sum_b), Total(weighted)};
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

SoftmaxSums SoftmaxAny(const Pairs& pairs, double largest_a, double largest_b) {
  return pairs.format == Format::kF32 ? Softmax<F32>(pairs, largest_a, largest_b)
                                      : Softmax<Bf16>(pairs, largest_a, largest_b);
}

constexpr Kernels kKernels = {LOCKSTEP_ISA_NAME, ScanAny, SumAny, SumEqualAny, FindAny, SoftmaxAny};
