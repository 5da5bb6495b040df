#include "replay/grid.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <random>

#include "base/convert.h"

namespace lockstep {
namespace {

using testing::HasSubstr;
using testing::Optional;

std::vector<float> Normal(size_t count, int seed, float scale = 1) {
  std::mt19937 generator(static_cast<unsigned>(seed));
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = scale * normal(generator);
  return values;
}

std::vector<float> Rounded(std::vector<float> values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * DTypeSize(dtype));
  NarrowFromFloat(dtype, values.data(), values.size(), bytes.data());
  WidenToFloat(dtype, bytes.data(), values.size(), values.data());
  return values;
}

TEST(GridTest, TheCoarsestThatHoldsEveryValue) {
  for (const float scale : {1e-3f, 1.0f, 300.0f}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      EXPECT_THAT(GridOf(Rounded(Normal(1000, 1, scale), dtype)), Optional(dtype)) << scale;
    }
  }
}

TEST(GridTest, OneFinerValueIsEnough) {
  std::vector<float> values = Rounded(Normal(1000, 1), DType::kBF16);
  values[500] = 1.0f + 0x1p-10f;
  EXPECT_THAT(GridOf(values), Optional(DType::kF16));
  values[501] = 1.0f + 0x1p-11f;
  EXPECT_THAT(GridOf(values), Optional(DType::kF32));
  values[500] = 0, values[501] = 1e6f;  // beyond f16's range, on bf16's grid no more than 1e6f is
  EXPECT_THAT(GridOf(values), Optional(DType::kF32));
}

TEST(GridTest, NanAndInfinityDoNotCount) {
  std::vector<float> values = Rounded(Normal(100, 1), DType::kF16);
  values[3] = std::numeric_limits<float>::quiet_NaN();
  values[4] = -std::numeric_limits<float>::infinity();
  EXPECT_THAT(GridOf(values), Optional(DType::kF16));
}

TEST(GridTest, FewValuesProveNothing) {
  EXPECT_FALSE(GridOf({}));
  EXPECT_FALSE(GridOf(std::vector<float>(1000, 0.0f)));
  std::vector<float> values(1000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 64);
  EXPECT_FALSE(GridOf(values));  // zero does not count
  values[0] = 64;
  EXPECT_THAT(GridOf(values), Optional(DType::kBF16));
}

TEST(CoarserGridTest, FewBitsOfFraction) {
  std::vector<float> values = Normal(1000, 1);
  for (float& value : values) {
    int exponent = 0;
    const float fraction = std::frexp(value, &exponent);
    value = std::ldexp(std::round(fraction * 16) / 16, exponent);  // as E4M3 has
  }
  EXPECT_THAT(CoarserGrid(values, {100}, DType::kBF16),
              Optional(std::string("a grid of 3 bits of fraction, as of an 8-bit float")));
}

TEST(CoarserGridTest, PlainValuesAreNone) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int seed = 0; seed < 200; ++seed) {
      for (const int64_t last : {64, 128}) {
        EXPECT_FALSE(CoarserGrid(Rounded(Normal(1024, seed), dtype), {4, last}, dtype)) << DTypeName(dtype) << seed;
      }
      EXPECT_FALSE(CoarserGrid(Rounded(Normal(128, seed), dtype), {128}, dtype)) << DTypeName(dtype) << seed;
    }
  }
  // In one binade the steps are the dtype's own.
  std::vector<float> values = Normal(1024, 7, 0.1f);
  for (float& value : values) value = 1.5f + std::clamp(value, -0.4f, 0.4f);
  EXPECT_FALSE(CoarserGrid(Rounded(values, DType::kBF16), {128}, DType::kBF16));
  EXPECT_FALSE(CoarserGrid(std::vector<float>(1024, 1.0f), {128}, DType::kBF16));
  std::vector<float> powers;
  for (int i = 0; i < 1024; ++i) powers.push_back(std::ldexp(1.0f, -(i % 5)));
  EXPECT_FALSE(CoarserGrid(powers, {128}, DType::kBF16));
}

// Quantised to `levels` with one step for `part` values.
std::vector<float> Quantised(std::vector<float> values, size_t part, int levels, DType dtype) {
  for (size_t begin = 0; begin < values.size(); begin += part) {
    float largest = 0;
    for (size_t i = begin; i < begin + part; ++i) largest = std::max(largest, std::abs(values[i]));
    const float step = largest / static_cast<float>(levels);
    for (size_t i = begin; i < begin + part; ++i) values[i] = std::round(values[i] / step) * step;
  }
  return Rounded(values, dtype);
}

TEST(CoarserGridTest, MultiplesOfAStep) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int seed = 0; seed < 20; ++seed) {
      const std::vector<float> values = Normal(8192, seed);
      SCOPED_TRACE(testing::Message() << DTypeName(dtype) << " " << seed);
      EXPECT_THAT(CoarserGrid(Quantised(values, values.size(), 127, dtype), {8, 128}, dtype),
                  Optional(HasSubstr("multiples of one step up to ")));
      EXPECT_THAT(CoarserGrid(Quantised(values, 1024, 127, dtype), {8, 128}, dtype),
                  Optional(HasSubstr("multiples of one step a row up to ")));
      EXPECT_THAT(CoarserGrid(Quantised(values, 128, 127, dtype), {8, 128}, dtype),
                  Optional(HasSubstr("multiples of one step a head up to ")));
    }
  }
  std::vector<float> mixed = Quantised(Normal(2048, 1), 1024, 127, DType::kF32);
  std::copy_n(Normal(1024, 2).begin(), 1024, mixed.begin() + 1024);
  EXPECT_FALSE(CoarserGrid(mixed, {8, 128}, DType::kF32));
  EXPECT_THAT(CoarserGrid(Quantised(Normal(2048, 1), 2048, 7, DType::kF32), {8, 128}, DType::kF32),
              Optional(std::string("multiples of one step up to 7, as of an integer quantisation")));
}

}  // namespace
}  // namespace lockstep
