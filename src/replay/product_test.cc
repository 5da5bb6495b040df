#include "replay/product.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace lockstep {
namespace {

// Rows with room between them, which nobody may touch.
template <typename T>
void MatchesPlainLoops(int64_t rows, int64_t columns, int64_t depth) {
  std::mt19937 random(static_cast<unsigned>(rows + 31 * columns + 997 * depth));
  std::uniform_int_distribution<int> values(-8, 8);  // sums of these are exact in any order
  const int64_t x_stride = depth + 3, w_stride = depth + 1, y_stride = columns + 2;
  std::vector<T> x(static_cast<size_t>(rows * x_stride)), w(static_cast<size_t>(columns * w_stride));
  for (T& value : x) value = static_cast<T>(values(random));
  for (T& value : w) value = static_cast<T>(values(random));
  std::vector<T> y(static_cast<size_t>(rows * y_stride), T{77});
  Product(Strided<const T>{x.data(), x_stride}, rows, Strided<const T>{w.data(), w_stride}, columns, depth,
          Strided<T>{y.data(), y_stride});
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < y_stride; ++j) {
      T sum = j < columns ? 0 : 77;
      for (int64_t k = 0; j < columns && k < depth; ++k) sum += x[r * x_stride + k] * w[j * w_stride + k];
      ASSERT_EQ(y[r * y_stride + j], sum) << rows << "x" << columns << "x" << depth << " at " << r << ", " << j;
    }
  }
}

TEST(ProductTest, MatchesPlainLoops) {
  for (const int64_t rows : {1, 3, 8, 9, 17}) {
    for (const int64_t columns : {1, 7, 16, 33, 65}) {
      for (const int64_t depth : {0, 1, 5, 256, 257, 700}) {
        MatchesPlainLoops<double>(rows, columns, depth);
        MatchesPlainLoops<float>(rows, columns, depth);
      }
    }
  }
}

TEST(AddScaledTest, Adds) {
  const std::vector<double> x = {1, -2, 3};
  std::vector<double> y = {10, 20, 30};
  AddScaled(2, x.data(), 3, y.data());
  EXPECT_EQ(y, (std::vector<double>{12, 16, 36}));
}

}  // namespace
}  // namespace lockstep
