#include "base/convert.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <vector>

#include "lockstep/error.h"

namespace lockstep {
namespace {

constexpr uint32_t kPatterns = 1u << 16;

// The slow twins: by the definition of the formats.
double SlowValue(uint32_t bits, int fraction_bits, int bias) {
  const int exponent_bits = 15 - fraction_bits;
  const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const double fraction = bits & ((1u << fraction_bits) - 1);
  const double sign = bits & 0x8000u ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1)
    return fraction ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp(1 + std::ldexp(fraction, -fraction_bits), exponent - bias);
}

template <typename T>
struct Format;
template <>
struct Format<BF16> {
  static constexpr int kFraction = 7, kBias = 127;
  static constexpr uint16_t kInfinity = 0x7F80;
};
template <>
struct Format<F16> {
  static constexpr int kFraction = 10, kBias = 15;
  static constexpr uint16_t kInfinity = 0x7C00;
};

template <typename T>
class ConvertTest : public testing::Test {};
using Formats = testing::Types<BF16, F16>;
TYPED_TEST_SUITE(ConvertTest, Formats);

TYPED_TEST(ConvertTest, EveryPatternWidensExactlyAndComesBack) {
  using F = Format<TypeParam>;
  for (uint32_t bits = 0; bits < kPatterns; ++bits) {
    const TypeParam value{static_cast<uint16_t>(bits)};
    const float wide = ToFloat(value);
    const double expected = SlowValue(bits, F::kFraction, F::kBias);
    const uint16_t back = FromFloat<TypeParam>(wide).bits;
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(wide)) << bits;
      ASSERT_TRUE(std::isnan(ToFloat(TypeParam{back}))) << bits;
    } else {
      ASSERT_EQ(wide, expected) << bits;
      ASSERT_EQ(std::signbit(wide), (bits & 0x8000u) != 0) << bits;
      ASSERT_EQ(back, bits);
    }
  }
}

TYPED_TEST(ConvertTest, RoundsToNearestEven) {
  using F = Format<TypeParam>;
  for (uint32_t bits = 0; bits + 1 < F::kInfinity; ++bits) {
    const double below = SlowValue(bits, F::kFraction, F::kBias);
    const double above = SlowValue(bits + 1, F::kFraction, F::kBias);
    const auto tie = static_cast<float>((below + above) / 2);
    ASSERT_EQ(tie, (below + above) / 2) << "a tie is exact in f32";
    const auto round = [](float value) { return FromFloat<TypeParam>(value).bits; };
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    ASSERT_EQ(round(tie), even);
    ASSERT_EQ(round(-tie), even | 0x8000u);
    ASSERT_EQ(round(std::nextafter(tie, 0.0f)), bits);
    ASSERT_EQ(round(std::nextafter(tie, INFINITY)), bits + 1);
  }
}

TYPED_TEST(ConvertTest, OverflowsToInfinityAtHalfAStepBeyondTheLargest) {
  using F = Format<TypeParam>;
  const double largest = SlowValue(F::kInfinity - 1, F::kFraction, F::kBias);
  const double step = largest - SlowValue(F::kInfinity - 2, F::kFraction, F::kBias);
  const auto limit = static_cast<float>(largest + step / 2);
  EXPECT_EQ(FromFloat<TypeParam>(limit).bits, F::kInfinity);
  EXPECT_EQ(FromFloat<TypeParam>(-limit).bits, F::kInfinity | 0x8000u);
  EXPECT_EQ(FromFloat<TypeParam>(std::nextafter(limit, 0.0f)).bits, F::kInfinity - 1);
  EXPECT_EQ(FromFloat<TypeParam>(std::numeric_limits<float>::max()).bits, F::kInfinity);
}

TYPED_TEST(ConvertTest, EveryNaNStaysOne) {
  for (const uint32_t bits : {0x7F800001u, 0x7FBFFFFFu, 0x7FC00000u, 0x7FFFFFFFu, 0xFF800001u, 0xFFFFFFFFu}) {
    EXPECT_TRUE(std::isnan(ToFloat(FromFloat<TypeParam>(std::bit_cast<float>(bits))))) << std::hex << bits;
  }
}

template <typename T>
float WidenOne(DType dtype, T value) {
  std::byte memory[1 + sizeof(T)];  // odd address
  std::memcpy(memory + 1, &value, sizeof(T));
  float out = 0;
  WidenToFloat(dtype, memory + 1, 1, &out);
  return out;
}

TEST(WidenToFloat, TakesEveryNumberAtAnyAddress) {
  EXPECT_EQ(WidenOne(DType::kF64, 0.1), 0.1f);
  EXPECT_EQ(WidenOne(DType::kF32, -2.5f), -2.5f);
  EXPECT_EQ(WidenOne<uint16_t>(DType::kBF16, 0x3FC0), 1.5f);
  EXPECT_EQ(WidenOne<uint16_t>(DType::kF16, 0x3E00), 1.5f);
  EXPECT_EQ(WidenOne<int64_t>(DType::kI64, -5), -5.0f);
  EXPECT_EQ(WidenOne<uint64_t>(DType::kU64, ~uint64_t{0}), 0x1p64f);
  EXPECT_EQ(WidenOne<int32_t>(DType::kI32, -7), -7.0f);
  EXPECT_EQ(WidenOne<uint32_t>(DType::kU32, 7), 7.0f);
  EXPECT_EQ(WidenOne<int16_t>(DType::kI16, -9), -9.0f);
  EXPECT_EQ(WidenOne<uint16_t>(DType::kU16, 65535), 65535.0f);
  EXPECT_EQ(WidenOne<int8_t>(DType::kI8, -128), -128.0f);
  EXPECT_EQ(WidenOne<uint8_t>(DType::kU8, 255), 255.0f);
  EXPECT_EQ(WidenOne<uint8_t>(DType::kBool, 1), 1.0f);
  EXPECT_THROW(WidenOne<uint8_t>(DType::kF8E4M3, 0), Error);
}

TEST(NarrowFromFloat, WritesStorageTypes) {
  const std::vector<float> values = {1.0f, -2.0f, 3.140625f};
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    std::vector<std::byte> memory(values.size() * DTypeSize(dtype));
    NarrowFromFloat(dtype, values.data(), values.size(), memory.data());
    std::vector<float> back(values.size());
    WidenToFloat(dtype, memory.data(), values.size(), back.data());
    EXPECT_EQ(back, values) << DTypeName(dtype);
  }
}

TEST(DTypes, HaveNamesAndSizes) {
  for (int i = 0; i < kNumDTypes; ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(ParseDType(DTypeName(dtype)), dtype);
    const std::string name = DTypeName(dtype);
    const size_t digits = name.find_first_of("0123456789");
    const size_t size = name == "BOOL" || name.starts_with("F8") ? 1 : std::stoul(name.substr(digits)) / 8;
    EXPECT_EQ(DTypeSize(dtype), size) << name;
  }
  EXPECT_EQ(ParseDType("bf16"), DType::kBF16);
  EXPECT_FALSE(ParseDType("bfloat16"));
  EXPECT_FALSE(ParseDType(""));
}

}  // namespace
}  // namespace lockstep
