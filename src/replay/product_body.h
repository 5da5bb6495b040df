// Included once for each instruction set, inside a namespace of its own, with LOCKSTEP_VECTOR_BYTES defined.

template <typename T>
struct Vectors {
  typedef T Type __attribute__((vector_size(LOCKSTEP_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  static constexpr int64_t kLanes = LOCKSTEP_VECTOR_BYTES / sizeof(T);
};

constexpr int64_t kTileRows = LOCKSTEP_VECTOR_BYTES == 64 ? 8 : 4;  // accumulators fit in the registers
constexpr int64_t kDepthBlock = 256;                                // a packed panel fits in the first-level cache

template <typename T>
constexpr int64_t kPanel = 2 * Vectors<T>::kLanes;

// w's rows side by side: out[k][j], those beyond `columns` zero.
template <typename T>
void PackPanel(const T* w, int64_t columns, int64_t depth, int64_t stride, T* out) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t j = 0; j < kPanel<T>; ++j) out[k * kPanel<T> + j] = j < columns ? w[j * stride + k] : T{0};
  }
}

template <typename T, int64_t kRows>
void Tile(const T* x, int64_t x_stride, const T* panel, int64_t depth, int64_t columns, bool first, T* y,
          int64_t y_stride) {
  using V = typename Vectors<T>::Type;
  constexpr int64_t kLanes = Vectors<T>::kLanes;
  V sums[kRows][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const V w0 = *reinterpret_cast<const V*>(panel + k * kPanel<T>);
    const V w1 = *reinterpret_cast<const V*>(panel + k * kPanel<T> + kLanes);
    for (int64_t r = 0; r < kRows; ++r) {
      const V value = V{} + x[r * x_stride + k];
      sums[r][0] += value * w0;
      sums[r][1] += value * w1;
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    T* out = y + r * y_stride;
    for (int64_t j = 0; j < columns; ++j) out[j] = (first ? T{0} : out[j]) + sums[r][j / kLanes][j % kLanes];
  }
}

template <typename T>
void Multiply(const T* x, int64_t rows, const T* w, int64_t columns, int64_t depth, T* y, int64_t stride) {
  thread_local std::vector<T> panel;
  panel.resize(static_cast<size_t>(kDepthBlock * kPanel<T>));
  for (int64_t begin = 0; begin < depth || begin == 0; begin += kDepthBlock) {
    const int64_t count = std::min(kDepthBlock, depth - begin);
    for (int64_t j = 0; j < columns; j += kPanel<T>) {
      const int64_t width = std::min(kPanel<T>, columns - j);
      PackPanel(w + j * depth + begin, width, count, depth, panel.data());
      int64_t r = 0;
      for (; r + kTileRows <= rows; r += kTileRows) {
        Tile<T, kTileRows>(x + r * depth + begin, depth, panel.data(), count, width, begin == 0, y + r * stride + j,
                           stride);
      }
      for (; r < rows; ++r) {
        Tile<T, 1>(x + r * depth + begin, depth, panel.data(), count, width, begin == 0, y + r * stride + j, stride);
      }
    }
  }
}

inline double DotProduct(const double* a, const double* b, int64_t count) {
  using V = Vectors<double>::Type;
  constexpr int64_t kLanes = Vectors<double>::kLanes;
  V sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    sums[0] += *reinterpret_cast<const V*>(a + i) * *reinterpret_cast<const V*>(b + i);
    sums[1] += *reinterpret_cast<const V*>(a + i + kLanes) * *reinterpret_cast<const V*>(b + i + kLanes);
  }
  double sum = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += sums[0][lane] + sums[1][lane];
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

inline void AddScaledRow(double factor, const double* x, int64_t count, double* y) {
  for (int64_t i = 0; i < count; ++i) y[i] += factor * x[i];
}

constexpr ProductKernels kKernels = {Multiply<double>, Multiply<float>, DotProduct, AddScaledRow};
