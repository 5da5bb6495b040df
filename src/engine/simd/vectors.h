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

// Round to nearest even into the upper half; a NaN stays one.
LOCKSTEP_INLINE U32 RoundedToBf16(F32 v) {
  const U32 bits = (U32)v;
  const U32 nan = (U32)(v != v);
  return (((bits + 0x7FFFu + ((bits >> 16) & 1u)) & ~nan) | (nan & 0x7FC00000u)) & 0xFFFF0000u;
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
    return (F32)RoundedToBf16(v);
  } else {
    F16 stored[kWidth];
    Store(stored, v);
    return Load(stored);
  }
}

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

LOCKSTEP_INLINE float Sum(F32 v) {
  for (int64_t width = kWidth / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) v[i] += v[i + width];
  }
  return v[0];
}

LOCKSTEP_INLINE float Largest(F32 v) {
  float largest = v[0];
  for (int64_t i = 1; i < kWidth; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

// e^x within 2 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, the Taylor polynomial of degree 7 for e^r (next term: 6e-9),
// then 2^n in two steps, so that results overflow to infinity and underflow gradually as they should.
LOCKSTEP_INLINE F32 Exp(F32 x) {
  x = x < -104.0F ? Broadcast(-104.0F) : x;
  x = x > 89.0F ? Broadcast(89.0F) : x;  // a NaN passes both
  const F32 shifted = Fma(x, Broadcast(0x1.715476p+0F), Broadcast(0x1.8p23F));
  const I32 n = (I32)shifted - 0x4B400000;
  const F32 n_float = shifted - 0x1.8p23F;
  F32 r = Fma(n_float, Broadcast(-0x1.62e4p-1F), x);
  r = Fma(n_float, Broadcast(-0x1.7f7d1cp-20F), r);
  F32 p = Broadcast(0x1.a01a02p-13F);
  p = Fma(p, r, Broadcast(0x1.6c16c2p-10F));
  p = Fma(p, r, Broadcast(0x1.111112p-7F));
  p = Fma(p, r, Broadcast(0x1.555556p-5F));
  p = Fma(p, r, Broadcast(0x1.555556p-3F));
  p = Fma(p, r, Broadcast(0.5F));
  p = Fma(p, r, Broadcast(1.0F));
  p = Fma(p, r, Broadcast(1.0F));
  const I32 half = n >> 1;
  return p * (F32)((half + 127) << 23) * (F32)((n - half + 127) << 23);
}
