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
      const V value = x[r * x_stride + k] - V{};  // in all lanes; x - 0 is x, also where x is -0
      sums[r][0] += value * w0;
      sums[r][1] += value * w1;
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    T* out = y + r * y_stride;
    for (int64_t j = 0; j < columns; ++j) out[j] = (first ? T{0} : out[j]) + sums[r][j / kLanes][j % kLanes];
  }
}

// A tile of x stays in the first-level cache while it meets all panels, which stay in the second.
template <typename T>
void Multiply(Strided<const T> x, int64_t rows, Strided<const T> w, int64_t columns, int64_t depth, Strided<T> y) {
  thread_local std::vector<T> panels;
  panels.resize(static_cast<size_t>(RoundUp(columns, kPanel<T>) * kDepthBlock));
  for (int64_t begin = 0; begin < depth || begin == 0; begin += kDepthBlock) {
    const int64_t count = std::min(kDepthBlock, depth - begin);
    for (int64_t j = 0; j < columns; j += kPanel<T>) {
      PackPanel(w.data + j * w.stride + begin, std::min(kPanel<T>, columns - j), count, w.stride,
                panels.data() + j * count);
    }
    const auto tile = [&]<int64_t kRows>(int64_t r) {
      for (int64_t j = 0; j < columns; j += kPanel<T>) {
        Tile<T, kRows>(x.data + r * x.stride + begin, x.stride, panels.data() + j * count, count,
                       std::min(kPanel<T>, columns - j), begin == 0, y.data + r * y.stride + j, y.stride);
      }
    };
    int64_t r = 0;
    for (; r + kTileRows <= rows; r += kTileRows) tile.template operator()<kTileRows>(r);
    for (; r < rows; ++r) tile.template operator()<1>(r);
  }
}

inline void AddScaledRow(double factor, const double* x, int64_t count, double* y) {
  for (int64_t i = 0; i < count; ++i) y[i] += factor * x[i];
}

constexpr ProductKernels kKernels = {Multiply<double>, Multiply<float>, AddScaledRow};
