// The row kernels, written once for every instruction set (see vectors.h for how it is included).

template <typename T>
void RmsNorm(const void* from, const float* w, int64_t width, float eps, void* to) {
  const T* x = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  F32 squares{};
  ForVectors(width, [&](int64_t, auto load, auto) LOCKSTEP_LAMBDA {
    const F32 v = load(x);
    squares = Fma(v, v, squares);
  });
  const float scale = 1.0F / std::sqrt(Sum(squares) / static_cast<float>(width) + eps);
  ForVectors(width,
             [&](int64_t, auto load, auto store) LOCKSTEP_LAMBDA { store(y, load(w) * Rounded<T>(load(x) * scale)); });
}

template <typename T>
void Rope(void* head, const float* cos, const float* sin, int64_t half) {
  T* low = static_cast<T*>(head);
  T* high = low + half;
  ForVectors(half, [&](int64_t, auto load, auto store) LOCKSTEP_LAMBDA {
    const F32 a = load(low), b = load(high), c = load(cos), s = load(sin);
    store(low, Rounded<T>(a * c) + Rounded<T>(-b * s));
    store(high, Rounded<T>(b * c) + Rounded<T>(a * s));
  });
}

template <typename T>
void Add(const void* a, const void* b, int64_t count, void* y) {
  ForVectors(count, [&](int64_t, auto load, auto store) LOCKSTEP_LAMBDA {
    store(static_cast<T*>(y), load(static_cast<const T*>(a)) + load(static_cast<const T*>(b)));
  });
}

template <typename T>
void SwiGlu(const void* gate, const void* up, int64_t count, void* y) {
  ForVectors(count, [&](int64_t, auto load, auto store) LOCKSTEP_LAMBDA {
    const F32 g = load(static_cast<const T*>(gate));
    store(static_cast<T*>(y), Rounded<T>(g / (Exp(-g) + 1.0F)) * load(static_cast<const T*>(up)));
  });
}

template <typename T>
void Widen(const void* x, int64_t count, float* y) {
  ForVectors(count, [&](int64_t, auto load, auto store) LOCKSTEP_LAMBDA { store(y, load(static_cast<const T*>(x))); });
}

template <typename T>
void Narrow(const float* x, int64_t count, void* y) {
  ForVectors(count, [&](int64_t, auto load, auto store) LOCKSTEP_LAMBDA { store(static_cast<T*>(y), load(x)); });
}

// ---- Products ----

// How a step along the depth multiplies: f32 operands against widened elements, or pairs of bf16.
template <typename T>
struct Step {
  using Operand = float;
  using Left = F32;
  using Right = F32;
  static constexpr int64_t kPair = 1;
  static LOCKSTEP_INLINE Left LoadLeft(const Operand* a) { return Broadcast(*a); }
  static LOCKSTEP_INLINE Right LoadRight(const T* b) { return Load(b); }
  static LOCKSTEP_INLINE F32 Multiply(Left a, Right b, F32 sum) { return Fma(a, b, sum); }
};

#ifdef LOCKSTEP_BF16_PAIRS
template <>
struct Step<BF16> {
  using Operand = BF16;
  using Left = __m512i;
  using Right = __m512i;
  static constexpr int64_t kPair = 2;
  static LOCKSTEP_INLINE Left LoadLeft(const Operand* a) { return _mm512_set1_epi32(LoadAs<int32_t>(a)); }
  static LOCKSTEP_INLINE Right LoadRight(const BF16* b) { return LoadAs<__m512i>(b); }
  static LOCKSTEP_INLINE F32 Multiply(Left a, Right b, F32 sum) {
    return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

constexpr int64_t kTileRows = 6;
constexpr int64_t kPanelWidth = LOCKSTEP_WIDTH == 16 ? 64 : 16;  // 24 sums of 32 registers; 12 of 16 below AVX-512
constexpr int64_t kPrefetch = 8192;                              // bytes ahead in a panel

// kRows rows by kVectors vectors of columns.
template <typename T, int64_t kRows, int64_t kVectors, typename Out>
void Tile(const typename Step<T>::Operand* a, int64_t lda, const T* panel, int64_t depth, Out* out, int64_t ldo) {
  constexpr int64_t kPair = Step<T>::kPair;
  F32 sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; k += kPair, panel += kPanelWidth * kPair) {
    typename Step<T>::Right right[kVectors];
#pragma GCC unroll 16
    for (int64_t v = 0; v < kVectors; ++v) {
      right[v] = Step<T>::LoadRight(panel + v * kWidth * kPair);
      __builtin_prefetch(reinterpret_cast<const char*>(panel + v * kWidth * kPair) + kPrefetch);
    }
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRows; ++r) {
      const typename Step<T>::Left left = Step<T>::LoadLeft(a + r * lda + k);
#pragma GCC unroll 16
      for (int64_t v = 0; v < kVectors; ++v) sums[r][v] = Step<T>::Multiply(left, right[v], sums[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int64_t v = 0; v < kVectors; ++v) StoreRoughly(out + r * ldo + v * kWidth, sums[r][v]);
  }
}

template <typename T, int64_t kVectors, typename Out>
void RowsOfTiles(const typename Step<T>::Operand* a, int64_t lda, int64_t rows, const T* panel, int64_t depth, Out* out,
                 int64_t ldo) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) {
    Tile<T, kTileRows, kVectors>(a + r * lda, lda, panel, depth, out + r * ldo, ldo);
  }
  a += r * lda;
  out += r * ldo;
  switch (rows - r) {
    case 5: return Tile<T, 5, kVectors>(a, lda, panel, depth, out, ldo);
    case 4: return Tile<T, 4, kVectors>(a, lda, panel, depth, out, ldo);
    case 3: return Tile<T, 3, kVectors>(a, lda, panel, depth, out, ldo);
    case 2: return Tile<T, 2, kVectors>(a, lda, panel, depth, out, ldo);
    case 1: return Tile<T, 1, kVectors>(a, lda, panel, depth, out, ldo);
    default: return;
  }
}

template <typename T, typename Out>
void Product(const void* a, int64_t lda, int64_t rows, const void* panels, int64_t panel_stride, int64_t columns,
             int64_t depth, void* y, int64_t ldo) {
  Out* out = static_cast<Out*>(y);
  const auto* left = static_cast<const typename Step<T>::Operand*>(a);
  const T* panel = static_cast<const T*>(panels);
  for (int64_t c = 0; c < columns; c += kPanelWidth, panel += panel_stride) {
    switch (std::min(kPanelWidth, columns - c) / kColumns) {
#if LOCKSTEP_WIDTH == 16
      case 4: RowsOfTiles<T, 4>(left, lda, rows, panel, depth, out + c, ldo); break;
      case 3: RowsOfTiles<T, 3>(left, lda, rows, panel, depth, out + c, ldo); break;
      case 2: RowsOfTiles<T, 2>(left, lda, rows, panel, depth, out + c, ldo); break;
#endif
      default: RowsOfTiles<T, kColumns / kWidth>(left, lda, rows, panel, depth, out + c, ldo); break;
    }
  }
}

template <typename T>
void OperandOf(const void* x, int64_t count, void* y) {
  if constexpr (std::is_same_v<typename Step<T>::Operand, T>) {
    std::memcpy(y, x, static_cast<size_t>(count) * sizeof(T));
  } else {
    Widen<T>(x, count, static_cast<float*>(y));
  }
}

template <typename T>
void OperandOfFloats(const float* x, int64_t count, void* y) {
  Narrow<typename Step<T>::Operand>(x, count, y);
}

// ---- Attention ----

// Subnormal scores and probabilities may become zero: they do in the products of pairs, too.
template <typename T>
float ScaleScores(float* row, int64_t valid, int64_t padded, float scale) {
  F32 largest = Broadcast(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < padded; i += kWidth) {
    const F32 score = RoundedRoughly<T>(RoundedRoughly<T>(Load(row + i)) * scale);
    Store(row + i, score);
    if (i + kWidth <= valid) largest = Larger(score, largest);
  }
  float max = Largest(largest);
  for (int64_t i = valid / kWidth * kWidth; i < valid; ++i) max = row[i] > max ? row[i] : max;
  for (int64_t i = valid; i < padded; ++i) row[i] = -std::numeric_limits<float>::infinity();
  return max;
}

template <typename T>
void Softmax(float* row, int64_t padded, float max, void* probs) {
  F32 sum{};
  for (int64_t i = 0; i < padded; i += kWidth) {
    const F32 e = Exp(Load(row + i) - max);
    Store(row + i, e);
    sum += e;
  }
  const float inverse = 1.0F / Sum(sum);
  auto* to = static_cast<typename Step<T>::Operand*>(probs);
  for (int64_t i = 0; i < padded; i += kWidth) StoreRoughly(to + i, RoundedRoughly<T>(Load(row + i) * inverse));
}

template <typename T>
constexpr RowKernels kTable = {
    .panel_width = kPanelWidth,
    .pair = Step<T>::kPair,
    .operand_size = sizeof(typename Step<T>::Operand),
    .rms_norm = RmsNorm<T>,
    .rope = Rope<T>,
    .add = Add<T>,
    .swiglu = SwiGlu<T>,
    .widen = Widen<T>,
    .narrow = Narrow<T>,
    .operand = OperandOf<T>,
    .operand_of_floats = OperandOfFloats<T>,
    .product = Product<T, float>,
    .stored_product = Product<T, T>,
    .scale_scores = ScaleScores<T>,
    .softmax = Softmax<T>,
};
