// Vectors of kWidth floats, in the compiler's own vector types; intrinsics only where those have no words. Included by
// the file of each instruction set, inside its namespace and below its target pragma, with LOCKSTEP_WIDTH set: no
// include guard, and no includes of its own.

#define LOCKSTEP_INLINE inline __attribute__((always_inline))
#define LOCKSTEP_LAMBDA __attribute__((always_inline))

constexpr int64_t kWidth = LOCKSTEP_WIDTH;
typedef float F32 __attribute__((vector_size(LOCKSTEP_WIDTH * 4)));
typedef int32_t I32 __attribute__((vector_size(LOCKSTEP_WIDTH * 4)));
typedef uint32_t U32 __attribute__((vector_size(LOCKSTEP_WIDTH * 4)));
typedef uint16_t U16 __attribute__((vector_size(LOCKSTEP_WIDTH * 2)));

template <typename V>
LOCKSTEP_INLINE V LoadAs(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V>
LOCKSTEP_INLINE void StoreAs(void* to, const V& v) {
  std::memcpy(to, &v, sizeof(V));
}

LOCKSTEP_INLINE F32 Broadcast(float value) { return value - F32{}; }

LOCKSTEP_INLINE F32 Fma(F32 a, F32 b, F32 c) {
#if LOCKSTEP_WIDTH == 16
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LOCKSTEP_WIDTH == 8
  return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// ---- Storage ----

LOCKSTEP_INLINE F32 Load(const float* from) { return LoadAs<F32>(from); }
LOCKSTEP_INLINE F32 Load(const BF16* from) { return (F32)(__builtin_convertvector(LoadAs<U16>(from), U32) << 16); }
LOCKSTEP_INLINE F32 Load(const F16* from) {
#if LOCKSTEP_WIDTH == 16
  return (F32)_mm512_cvtph_ps(LoadAs<__m256i>(from));
#elif LOCKSTEP_WIDTH == 8
  return (F32)_mm256_cvtph_ps(LoadAs<__m128i>(from));
#else
  F32 v;
  for (int64_t i = 0; i < kWidth; ++i) v[i] = ToFloat(from[i]);
  return v;
#endif
}

LOCKSTEP_INLINE F32 Larger(F32 a, F32 b) {  // b where one is a NaN
#if LOCKSTEP_WIDTH == 16
  return (F32)_mm512_max_ps((__m512)a, (__m512)b);
#elif LOCKSTEP_WIDTH == 8
  return (F32)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// Round to nearest even into the upper half; a NaN stays one.
LOCKSTEP_INLINE U32 RoundedToBf16(F32 v) {
  const U32 bits = (U32)v;
  const U32 rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
#if LOCKSTEP_WIDTH == 16
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  return (U32)_mm512_mask_mov_epi32((__m512i)rounded, nan, _mm512_set1_epi32(0x7FC00000));
#else
  const U32 nan = (U32)(v != v);
  return (rounded & ~nan) | (nan & 0x7FC00000u);
#endif
}

LOCKSTEP_INLINE void Store(float* to, F32 v) { StoreAs(to, v); }
LOCKSTEP_INLINE void Store(BF16* to, F32 v) { StoreAs(to, __builtin_convertvector(RoundedToBf16(v) >> 16, U16)); }
LOCKSTEP_INLINE void Store(F16* to, F32 v) {
#if LOCKSTEP_WIDTH == 16
  StoreAs(to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif LOCKSTEP_WIDTH == 8
  StoreAs(to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  for (int64_t i = 0; i < kWidth; ++i) to[i] = FromFloat<F16>(v[i]);
#endif
}

// To the storage dtype and back.
template <typename T>
LOCKSTEP_INLINE F32 Rounded(F32 v) {
  if constexpr (std::is_same_v<T, float>) {
    return v;
  } else if constexpr (std::is_same_v<T, BF16>) {
    return (F32)(RoundedToBf16(v) & 0xFFFF0000u);
  } else {
    F16 stored[kWidth];
    Store(stored, v);
    return Load(stored);
  }
}

// The same where subnormals may become zero, which is one instruction less or eight.
template <typename T>
LOCKSTEP_INLINE F32 RoundedRoughly(F32 v) {
#ifdef LOCKSTEP_BF16_PAIRS
  if constexpr (std::is_same_v<T, BF16>) {
    return (F32)(__builtin_convertvector((U16)_mm512_cvtneps_pbh((__m512)v), U32) << 16);
  }
#endif
  return Rounded<T>(v);
}

template <typename T>
LOCKSTEP_INLINE void StoreRoughly(T* to, F32 v) {
  Store(to, v);
}
#ifdef LOCKSTEP_BF16_PAIRS
template <>
LOCKSTEP_INLINE void StoreRoughly(BF16* to, F32 v) {
  StoreAs(to, _mm512_cvtneps_pbh((__m512)v));
}
#endif

// Calls body(i, load, store) for the vectors of a row of `count` elements; the last may be short: its missing elements
// are loaded as zeros and not stored.
template <typename Body>
LOCKSTEP_INLINE void ForVectors(int64_t count, Body&& body) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    body(
        i, [&](const auto* from) LOCKSTEP_LAMBDA { return Load(from + i); },
        [&](auto* to, F32 v) LOCKSTEP_LAMBDA { Store(to + i, v); });
  }
  if (i == count) return;
  const auto rest = static_cast<size_t>(count - i);
  body(
      i,
      [&](const auto* from) LOCKSTEP_LAMBDA {
        std::remove_cvref_t<decltype(*from)> part[kWidth] = {};
        std::memcpy(part, from + i, rest * sizeof(*from));
        return Load(part);
      },
      [&](auto* to, F32 v) LOCKSTEP_LAMBDA {
        std::remove_cvref_t<decltype(*to)> part[kWidth];
        Store(part, v);
        std::memcpy(to + i, part, rest * sizeof(*to));
      });
}

// ---- Arithmetic ----

// Halves onto each other, down to one.
typedef float F32x4 __attribute__((vector_size(16)));
LOCKSTEP_INLINE float Sum(F32x4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }
#if LOCKSTEP_WIDTH >= 8
typedef float F32x8 __attribute__((vector_size(32)));
LOCKSTEP_INLINE float Sum(F32x8 v) {
  return Sum(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
}
#endif
#if LOCKSTEP_WIDTH == 16
LOCKSTEP_INLINE float Sum(F32 v) {
  return Sum(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
             __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}
#endif

LOCKSTEP_INLINE float Largest(F32 v) {
  float largest = v[0];
  for (int64_t i = 1; i < kWidth; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

// p · 2^n, through infinity and subnormals as it should.
LOCKSTEP_INLINE F32 TimesPowerOfTwo(F32 p, F32 shifted, F32 n) {
#if LOCKSTEP_WIDTH == 16
  (void)shifted;
  return (F32)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  (void)n;
  const I32 exponent = (I32)shifted - 0x4B400000;
  const I32 half = exponent >> 1;
  return p * (F32)((half + 127) << 23) * (F32)((exponent - half + 127) << 23);
#endif
}

// e^x within 2 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, the Taylor polynomial of degree 7 for e^r (next term: 6e-9),
// then 2^n.
LOCKSTEP_INLINE F32 Exp(F32 x) {
  x = Larger(Broadcast(-104.0F), x);
  x = -Larger(Broadcast(-89.0F), -x);
  const F32 shifted = Fma(x, Broadcast(0x1.715476p+0F), Broadcast(0x1.8p23F));  // n in the lower bits
  const F32 n = shifted - 0x1.8p23F;
  F32 r = Fma(n, Broadcast(-0x1.62e4p-1F), x);
  r = Fma(n, Broadcast(-0x1.7f7d1cp-20F), r);
  F32 p = Broadcast(0x1.a01a02p-13F);
  p = Fma(p, r, Broadcast(0x1.6c16c2p-10F));
  p = Fma(p, r, Broadcast(0x1.111112p-7F));
  p = Fma(p, r, Broadcast(0x1.555556p-5F));
  p = Fma(p, r, Broadcast(0x1.555556p-3F));
  p = Fma(p, r, Broadcast(0.5F));
  p = Fma(p, r, Broadcast(1.0F));
  p = Fma(p, r, Broadcast(1.0F));
  return TimesPowerOfTwo(p, shifted, n);
}
