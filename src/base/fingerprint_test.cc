#include "base/fingerprint.h"

#include <gmock/gmock.h>

#include <bit>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

namespace lockstep {
namespace {

std::string Hash(const std::vector<float>& values, int64_t columns) {
  return FingerprintOfMatrix(DType::kF32, reinterpret_cast<const std::byte*>(values.data()),
                             static_cast<int64_t>(values.size()) / columns, columns);
}

TEST(Fingerprint, IsTheFormula) {
  EXPECT_EQ(SplitMix64(0), 0xE220A8397B1DCDAFu);  // the first output of the published generator with seed 0
  const std::vector<float> values = {1, -2, 0.5f, 3, 4, 5};
  uint64_t expected = 0;
  for (uint64_t i = 0; i < 2; ++i) {
    uint64_t row = 0;
    for (uint64_t j = 0; j < 3; ++j) row += FingerprintFactor(j) * std::bit_cast<uint32_t>(values[i * 3 + j]);
    expected += FingerprintFactor(i + (uint64_t{1} << 32)) * row;
  }
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(expected));
  EXPECT_EQ(Hash(values, 3), text);
}

TEST(Fingerprint, ChangesWithEveryElementAndWithTheOrientation) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  const std::vector<float> transposed = {1, 4, 7, 2, 5, 8, 3, 6, 9};
  EXPECT_NE(Hash(values, 3), Hash(transposed, 3));
  EXPECT_NE(Hash(values, 3), Hash(values, 9));
  for (size_t i = 0; i < values.size(); ++i) {
    std::vector<float> changed = values;
    changed[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(changed[i]) ^ 0x80000000u);
    EXPECT_NE(Hash(values, 3), Hash(changed, 3)) << i;
  }
}

TEST(Fingerprint, IsTheSameForEveryStorageThatHoldsTheValues) {
  const std::vector<uint16_t> bf16 = {0x3F80, 0xC000, 0x3F00, 0x4040};  // 1, -2, 0.5, 3
  const auto* data = reinterpret_cast<const std::byte*>(bf16.data());
  EXPECT_EQ(FingerprintOfMatrix(DType::kBF16, data, 2, 2), Hash({1, -2, 0.5f, 3}, 2));
}

TEST(Fingerprint, OfRoundedValues) {
  const std::vector<float> values = {1.0f + 0x1p-8f, 1.0f + 0x1.8p-8f, 0x1p-20f, 3};
  const auto* data = reinterpret_cast<const std::byte*>(values.data());
  EXPECT_EQ(FingerprintOfMatrix(DType::kF32, data, 2, 2, DType::kF32), Hash(values, 2));
  EXPECT_EQ(FingerprintOfMatrix(DType::kF32, data, 2, 2, DType::kBF16), Hash({1, 1.0f + 0x1p-7f, 0x1p-20f, 3}, 2));
  EXPECT_EQ(FingerprintOfMatrix(DType::kF32, data, 2, 2, DType::kF16), Hash(values, 2));
  const std::vector<float> fine = {1.0f + 0x1p-11f, 1e6f};
  EXPECT_EQ(FingerprintOfMatrix(DType::kF32, reinterpret_cast<const std::byte*>(fine.data()), 1, 2, DType::kF16),
            Hash({1, std::numeric_limits<float>::infinity()}, 2));
}

}  // namespace
}  // namespace lockstep
