#include "replay/noise.h"

#include <gtest/gtest.h>

#include <random>

#include "base/convert.h"

namespace lockstep {
namespace {

template <typename T>
double Stored(double x) {
  return ToFloat(FromFloat<T>(static_cast<float>(x)));
}

// Numbers of all sizes, so that subnormal results and overflow are among them.
TEST(GridTest, RoundsAsStoringDoes) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> mantissa(1, 2), exponent(-45, 30);
  for (int i = 0; i < 20000; ++i) {
    const double x =
        static_cast<float>((i % 2 ? -1 : 1) * std::ldexp(mantissa(random), static_cast<int>(exponent(random))));
    EXPECT_EQ(Grid(DType::kBF16).Round(x), Stored<BF16>(x)) << x;
    EXPECT_EQ(Grid(DType::kF16).Round(x), Stored<F16>(x)) << x;
    EXPECT_EQ(Grid(DType::kF32).Round(x), x);
    EXPECT_EQ(Grid(DType::kF64).Round(x), x);
  }
  EXPECT_EQ(Grid(DType::kF32).Round(1 + 0x1p-25), 1);
  EXPECT_EQ(Grid(DType::kF16).Round(65519), 65504);
  EXPECT_EQ(Grid(DType::kF16).Round(65520), INFINITY);
  EXPECT_TRUE(std::isnan(Grid(DType::kBF16).Round(NAN)));
  EXPECT_EQ(Grid(DType::kBF16).Round(-INFINITY), -INFINITY);
}

TEST(GridTest, TheVarianceIsThatOfRounding) {
  std::mt19937 random(2);
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    const Grid grid(dtype);
    std::uniform_real_distribution<double> values(1, 2);
    double squares = 0;
    constexpr int kCount = 20000;
    for (int i = 0; i < kCount; ++i) {
      const double x = values(random), error = grid.Round(x) - x;
      squares += error * error;
    }
    EXPECT_NEAR(squares / kCount / grid.Rounding(1.5), 1, 0.03);
  }
}

TEST(GridTest, SmallNumbersOfF32MayBeFlushed) {
  EXPECT_GT(Grid(DType::kF32).Rounding(1e-40), Grid(DType::kF16).Rounding(0) * 1e-70);
  EXPECT_GE(std::sqrt(Grid(DType::kBF16).Rounding(0)), 0x1p-126 / 4);
}

}  // namespace
}  // namespace lockstep
