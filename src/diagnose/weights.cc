#include "diagnose/weights.h"

#include <algorithm>
#include <cmath>
#include <mutex>

#include "base/convert.h"
#include "replay/noise.h"

namespace lockstep {
namespace {

// All of a matrix, read when first asked for.
class Whole {
 public:
  explicit Whole(MatrixPtr m) : m_(std::move(m)) {}

  const std::vector<double>& values() {
    std::call_once(once_, [&] {
      values_.resize(static_cast<size_t>(m_->rows * m_->columns));
      m_->read(0, m_->rows, values_.data());
    });
    return values_;
  }

 private:
  MatrixPtr m_;
  std::once_flag once_;
  std::vector<double> values_;
};

// A float of few bits, with subnormals; beyond the largest it saturates.
float RoundToSmallFloat(float value, int mantissa, int least_exponent, float largest) {
  if (!std::isfinite(value) || value == 0) return value;
  const int exponent = std::max(std::ilogb(value), least_exponent);
  const float step = std::ldexp(1.0f, exponent - mantissa);
  const float rounded = std::nearbyint(value / step) * step;
  return std::clamp(rounded, -largest, largest);
}

float LargestOf(Coarse grid) {
  switch (grid) {
    case Coarse::kE4M3: return 448;
    case Coarse::kE5M2: return 57344;
    case Coarse::kInt8: return 127;
    case Coarse::kInt4: return 7;
    case Coarse::kF16: return 65504;
    case Coarse::kBF16: return 0x1.FEp127f;
  }
  return 1;
}

float RoundTo(Coarse grid, float value) {
  switch (grid) {
    case Coarse::kBF16: return ToFloat(FromFloat<BF16>(value));
    case Coarse::kF16: return ToFloat(FromFloat<F16>(value));
    case Coarse::kE4M3: return RoundToSmallFloat(value, 3, -6, 448);
    case Coarse::kE5M2: return RoundToSmallFloat(value, 2, -14, 57344);
    case Coarse::kInt8: return std::clamp(std::nearbyint(value), -128.0f, 127.0f);
    case Coarse::kInt4: return std::clamp(std::nearbyint(value), -8.0f, 7.0f);
  }
  return value;
}

// `count` values that share a scale.
void Squeeze(double* values, int64_t count, Coarse grid, float largest, DType storage) {
  const float scale = largest > 0 ? std::max(largest, 1e-12f) / LargestOf(grid) : 1;
  const Grid stored(storage);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = stored.Round(RoundTo(grid, static_cast<float>(values[i]) / scale) * scale);
  }
}

float LargestIn(const double* values, int64_t count) {
  double largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(values[i]));
  return static_cast<float>(largest);
}

// Of a whole tensor, found when first asked for.
struct TensorLargest {
  std::once_flag once;
  float value = 0;
};

float LargestOf(const MatrixPtr& m, TensorLargest* memo) {
  std::call_once(memo->once, [&] {
    std::vector<double> row(static_cast<size_t>(m->columns));
    for (int64_t r = 0; r < m->rows; ++r) {
      m->read(r, 1, row.data());
      memo->value = std::max(memo->value, LargestIn(row.data(), m->columns));
    }
  });
  return memo->value;
}

}  // namespace

MatrixPtr WithRows(const MatrixPtr& m, std::vector<int64_t> map) {
  const auto rows = static_cast<int64_t>(map.size());
  return std::make_shared<Matrix>(
      Matrix{rows, m->columns, [m, map = std::move(map)](int64_t begin, int64_t count, double* out) {
               for (int64_t i = 0; i < count; ++i) {
                 const int64_t from = map[static_cast<size_t>(begin + i)];
                 double* row = out + i * m->columns;
                 if (from >= 0) {
                   m->read(from, 1, row);
                 } else {
                   std::fill_n(row, m->columns, 0.0);
                 }
               }
             }});
}

MatrixPtr WithColumns(const MatrixPtr& m, std::vector<int64_t> map) {
  const auto columns = static_cast<int64_t>(map.size());
  return std::make_shared<Matrix>(
      Matrix{m->rows, columns, [m, map = std::move(map)](int64_t begin, int64_t count, double* out) {
               std::vector<double> row(static_cast<size_t>(m->columns));
               for (int64_t i = 0; i < count; ++i) {
                 m->read(begin + i, 1, row.data());
                 for (const int64_t from : map) *out++ = from >= 0 ? row[static_cast<size_t>(from)] : 0;
               }
             }});
}

MatrixPtr Reordered(const MatrixPtr& m, int64_t rows, int64_t columns, std::function<int64_t(int64_t, int64_t)> at) {
  auto whole = std::make_shared<Whole>(m);
  return std::make_shared<Matrix>(
      Matrix{rows, columns, [whole, columns, at = std::move(at)](int64_t begin, int64_t count, double* out) {
               const std::vector<double>& values = whole->values();
               for (int64_t r = begin; r < begin + count; ++r) {
                 for (int64_t c = 0; c < columns; ++c) *out++ = values[static_cast<size_t>(at(r, c))];
               }
             }});
}

MatrixPtr Stacked(const std::vector<MatrixPtr>& parts) {
  int64_t rows = 0;
  for (const MatrixPtr& part : parts) rows += part->rows;
  const int64_t columns = parts.front()->columns;
  return std::make_shared<Matrix>(Matrix{rows, columns, [parts](int64_t begin, int64_t count, double* out) {
                                           for (const MatrixPtr& part : parts) {
                                             if (begin < part->rows && count > 0) {
                                               const int64_t n = std::min(count, part->rows - begin);
                                               part->read(begin, n, out);
                                               out += n * part->columns;
                                               begin += n, count -= n;
                                             }
                                             begin -= part->rows;
                                           }
                                         }});
}

MatrixPtr Quantised(const MatrixPtr& m, Coarse grid, ScaleOf scale, int64_t group, DType storage) {
  auto tensor = std::make_shared<TensorLargest>();
  return std::make_shared<Matrix>(Matrix{m->rows, m->columns, [=](int64_t begin, int64_t count, double* out) {
                                           m->read(begin, count, out);
                                           const int64_t size = count * m->columns;
                                           if (scale == ScaleOf::kNone)
                                             return Squeeze(out, size, grid, LargestOf(grid), storage);
                                           if (scale == ScaleOf::kTensor)
                                             return Squeeze(out, size, grid, LargestOf(m, tensor.get()), storage);
                                           const int64_t step = scale == ScaleOf::kRow ? m->columns : group;
                                           for (int64_t i = 0; i < size; i += step)
                                             Squeeze(out + i, step, grid, LargestIn(out + i, step), storage);
                                         }});
}

double Reinterpreted(double value, DType from, DType as) {
  const uint16_t bits = from == DType::kBF16 ? FromFloat<BF16>(static_cast<float>(value)).bits
                                             : FromFloat<F16>(static_cast<float>(value)).bits;
  return as == DType::kBF16 ? ToFloat(BF16{bits}) : ToFloat(F16{bits});
}

}  // namespace lockstep
