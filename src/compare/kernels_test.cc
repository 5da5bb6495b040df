#include "compare/kernels.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "base/convert.h"
#include "lockstep/compare.h"

namespace lockstep {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Values of one side in a format, at an odd address.
struct Values {
  Values(Format format, const std::vector<float>& values) : bytes(values.size() * FormatSize(format) + 1) {
    const DType dtype = format == Format::kBF16 ? DType::kBF16 : DType::kF32;
    NarrowFromFloat(dtype, values.data(), values.size(), bytes.data() + 1);
    floats.resize(values.size());
    WidenToFloat(dtype, bytes.data() + 1, values.size(), floats.data());
  }
  std::vector<std::byte> bytes;
  std::vector<float> floats;
};

struct Sides {
  Sides(Format format, size_t count, int seed) : a(format, Random(count, seed)), b(format, Near(a.floats, seed)) {
    pairs = {format, a.bytes.data() + 1, b.bytes.data() + 1, count};
  }
  static std::vector<float> Random(size_t count, int seed) {
    std::mt19937 generator(static_cast<unsigned>(seed));
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(generator) * std::exp2(static_cast<float>(generator() % 40) - 20);
    return values;
  }
  static std::vector<float> Near(std::vector<float> values, int seed) {
    std::mt19937 generator(static_cast<unsigned>(seed) + 1000);
    for (float& value : values) {
      const unsigned what = generator() % 8;
      if (what == 0) value = what & generator() ? 0.0f : -0.0f;
      if (what == 1) value = -value;
      if (what > 3) value *= 1 + std::exp2(-static_cast<float>(generator() % 20));
    }
    return values;
  }
  Values a, b;
  Pairs pairs;
};

const Limit kLimits[] = {{1e-5, 1e-5}, {1e-4, 1e-4}, {1e-3, 1e-3}, {1e-2, 1e-2}, {0, 0.25}};
const size_t kCounts[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 500, 2047, 2048};

template <typename Check>
void ForAll(Check check) {
  for (const Kernels* kernels : AvailableKernels()) {
    for (Format format : {Format::kBF16, Format::kF32}) {
      for (size_t count : kCounts) {
        SCOPED_TRACE(testing::Message() << kernels->name << (format == Format::kBF16 ? " bf16 " : " f32 ") << count);
        check(*kernels, format, count);
      }
    }
  }
}

TEST(KernelsTest, ScanTellsWhatTheValuesTell) {
  ForAll([](const Kernels& kernels, Format format, size_t count) {
    const Sides sides(format, count, 1);
    const ChunkScan scan = kernels.scan(sides.pairs);
    const std::vector<float>&a = sides.a.floats, &b = sides.b.floats;
    EXPECT_EQ(scan.min_a, *std::min_element(a.begin(), a.end()));
    EXPECT_EQ(scan.max_a, *std::max_element(a.begin(), a.end()));
    EXPECT_EQ(scan.min_b, *std::min_element(b.begin(), b.end()));
    EXPECT_EQ(scan.max_b, *std::max_element(b.begin(), b.end()));
    int64_t zeros = 0, mismatches = 0;
    for (size_t i = 0; i < count; ++i) zeros += b[i] == 0, mismatches += b[i] == 0 && a[i] != 0;
    EXPECT_EQ(scan.zeros_b, zeros);
    EXPECT_EQ(scan.zero_mismatches, mismatches);
    EXPECT_EQ(scan.equal, std::memcmp(a.data(), b.data(), count * sizeof(float)) == 0);
    EXPECT_TRUE(scan.finite);
    EXPECT_TRUE(kernels.scan({format, sides.pairs.a, sides.pairs.a, count}).equal);
  });
}

TEST(KernelsTest, OneValueAnywhereIsSeen) {
  ForAll([](const Kernels& kernels, Format format, size_t count) {
    for (size_t at : {size_t{0}, count / 2, count - 1}) {
      const std::vector<float> zeros(count, -0.0f);
      const Values b(format, zeros);
      const auto scan = [&](float value) {
        std::vector<float> changed = zeros;
        changed[at] = value;
        const Values a(format, changed);
        return kernels.scan({format, a.bytes.data() + 1, b.bytes.data() + 1, count});
      };
      for (float value : {kNan, -kNan, kInf, -kInf}) EXPECT_FALSE(scan(value).finite);
      EXPECT_TRUE(scan(3e38f).finite && scan(-3e38f).finite);
      EXPECT_FALSE(scan(1e-38f).zero_a);
      EXPECT_TRUE(scan(0.0f).zero_a && scan(0.0f).zero_b);
      EXPECT_FALSE(scan(0.0f).equal);
      EXPECT_NE(scan(1.0f).hash_a, scan(1.0f).hash_b);
      EXPECT_EQ(scan(1.0f).zero_mismatches, 1);
    }
  });
}

// The sums, slowly and one after the other.
struct Slow {
  explicit Slow(const Sides& sides, size_t begin, size_t end) {
    float max_rel_f32 = 0;
    double rel_f32 = 0;
    for (size_t i = begin; i < end; ++i) {
      const double x = sides.a.floats[i], y = sides.b.floats[i], d = std::abs(x - y);
      a += x, b += y, abs += d;
      magnitude_a += std::abs(x), magnitude_b += std::abs(y);
      products.Add({x * x, y * y, x * y, d * d});
      magnitude_ab += std::abs(x * y);
      if (y != 0) {
        const float relative = std::abs(sides.a.floats[i] - sides.b.floats[i]) / std::abs(sides.b.floats[i]);
        rel_f32 += relative, max_rel_f32 = std::max(max_rel_f32, relative);
        rel += d / std::abs(y), max_rel = std::max(max_rel, d / std::abs(y));
      }
      max_abs = std::max(max_abs, d);
      for (size_t k = 0; k < kNumLimits; ++k) within[k] += IsWithin(x, y, kLimits[k]);
    }
    if (std::isinf(max_rel_f32)) return;
    EXPECT_NEAR(rel_f32, rel, 2e-7 * rel);
    EXPECT_NEAR(max_rel_f32, max_rel, 2e-7 * max_rel);
    rel = rel_f32, max_rel = max_rel_f32;
  }
  static bool IsWithin(double x, double y, const Limit& limit) {
    return std::abs(x - y) <= limit.atol + limit.rtol * std::abs(y);
  }
  double a = 0, b = 0, abs = 0, rel = 0, max_abs = 0, max_rel = 0;
  double magnitude_a = 0, magnitude_b = 0, magnitude_ab = 0;
  int64_t within[kNumLimits] = {};
  Products products;
};

void ExpectSum(double expected, double actual, double magnitude) { EXPECT_NEAR(expected, actual, 1e-13 * magnitude); }

void ExpectProducts(const Slow& slow, const Products& actual) {
  ExpectSum(slow.products.aa, actual.aa, slow.products.aa);
  ExpectSum(slow.products.bb, actual.bb, slow.products.bb);
  ExpectSum(slow.products.ab, actual.ab, slow.magnitude_ab);
  ExpectSum(slow.products.dd, actual.dd, slow.products.dd);
}

TEST(KernelsTest, SumsAreThoseOfTheSlowWay) {
  ForAll([](const Kernels& kernels, Format format, size_t count) {
    const Sides sides(format, count, 2);
    const Slow slow(sides, 0, count);
    for (size_t num_limits : {kNumTolerances, kNumLimits}) {
      Products products;
      const ChunkSums sums = kernels.sum(sides.pairs, count, std::span(kLimits).first(num_limits), &products);
      ExpectSum(slow.a, sums.a, slow.magnitude_a);
      ExpectSum(slow.b, sums.b, slow.magnitude_b);
      ExpectSum(slow.abs, sums.abs, slow.abs);
      ExpectSum(slow.rel, sums.rel, slow.rel);
      EXPECT_EQ(sums.max_abs, slow.max_abs);
      EXPECT_EQ(sums.max_rel, slow.max_rel);
      for (size_t k = 0; k < num_limits; ++k) EXPECT_EQ(sums.within[k], slow.within[k]) << k;
      ExpectProducts(slow, products);
    }
  });
}

TEST(KernelsTest, PartsAreAddedUpApart) {
  for (const Kernels* kernels : AvailableKernels()) {
    for (size_t part : {1u, 3u, 8u, 13u, 48u, 128u}) {
      SCOPED_TRACE(testing::Message() << kernels->name << " parts of " << part);
      const Sides sides(Format::kBF16, 12 * part, 3);
      Products parts[12], equal[12];
      const ChunkSums sums = kernels->sum(sides.pairs, part, std::span<const Limit>(kLimits), parts);
      kernels->sum_equal({Format::kBF16, sides.pairs.b, sides.pairs.b, sides.pairs.count}, part, equal);
      EXPECT_EQ(sums.within[4], Slow(sides, 0, 12 * part).within[4]);
      for (size_t i = 0; i < 12; ++i) {
        const Slow slow(sides, i * part, (i + 1) * part);
        ExpectProducts(slow, parts[i]);
        ExpectSum(slow.products.bb, equal[i].aa, slow.products.bb);
        EXPECT_EQ(equal[i].dd, 0);
      }
    }
  }
}

// Values and their neighbours on both sides of a limit.
std::vector<std::pair<float, float>> PairsAround(const Limit& limit, Format format) {
  std::vector<std::pair<float, float>> pairs;
  for (float y : {0.0f, -0.0f, 1.0f, -0.7f, 1234.5f, 1e-30f, -3e-38f, 1e-40f, 1e-45f, 3e38f, -3.4e38f}) {
    y = Values(format, {y}).floats[0];
    const double size = limit.atol + limit.rtol * std::abs(static_cast<double>(y));
    for (double x : {0.0, y + size, y - size, 3e38, -3e38}) {
      if (std::abs(x) > std::numeric_limits<float>::max()) continue;
      float up = static_cast<float>(x), down = up;
      for (int step = 0; step < 40; ++step) {
        for (float value : {up, down}) {
          const float stored = Values(format, {value}).floats[0];
          if (std::isfinite(stored) && std::isfinite(y)) pairs.emplace_back(stored, y);
        }
        up = std::nextafter(up, 3e38f), down = std::nextafter(down, -3e38f);
      }
    }
  }
  return pairs;
}

// Each pair alone, so that no other one brings about the exact way.
TEST(KernelsTest, LimitsAreExact) {
  constexpr double kDenormal = 1e-40, kHuge = 3.3e38;
  const Limit limits[] = {{1e-5, 1e-5}, {1e-4, 1e-4}, {1e-3, 1e-3},   {1e-2, 1e-2},  {0, 0},           {0, 0.25},
                          {0.5, 0},     {1, 0},       {kHuge, kHuge}, {1e39, 0},     {kDenormal, 0},   {0, kDenormal},
                          {0, 1e39},    {-1, 0},      {-1e-3, 1e-3},  {1e-3, -1e-3}, {1e-30, 1.5e-38}, {kNan, 0}};
  for (const Limit& limit : limits) {
    const std::vector<Limit> all(kNumLimits, limit);
    for (Format format : {Format::kBF16, Format::kF32}) {
      for (const auto& [x, y] : PairsAround(limit, format)) {
        for (size_t count : {1, 16}) {
          const Values a(format, std::vector<float>(count, x)), b(format, std::vector<float>(count, y));
          const int64_t expected = Slow::IsWithin(x, y, limit) ? static_cast<int64_t>(count) : 0;
          for (const Kernels* kernels : AvailableKernels()) {
            Products products;
            const Pairs pairs{format, a.bytes.data() + 1, b.bytes.data() + 1, count};
            const ChunkSums sums = kernels->sum(pairs, count, all, &products);
            ASSERT_THAT(sums.within, testing::Each(expected))
                << kernels->name << " " << x << " " << y << " " << limit.atol << " " << limit.rtol;
          }
        }
      }
    }
  }
}

// What overflows in f32 is taken in f64.
TEST(KernelsTest, ExtremeValuesAreExact) {
  const std::vector<float> extremes = {3e38f, -3e38f, 1e-45f, -1e-40f, 1e-38f, 0.0f, 1.0f, 1e30f};
  ForAll([&](const Kernels& kernels, Format format, size_t count) {
    Sides sides(format, count, 5);
    std::vector<float> a = sides.a.floats, b = sides.b.floats;
    for (size_t i = 0; i < count; i += 3) a[i] = extremes[i % 8], b[i] = extremes[i / 8 % 8];
    sides.a = Values(format, a), sides.b = Values(format, b);
    const Slow slow(sides, 0, count);
    Products products;
    const Pairs pairs{format, sides.a.bytes.data() + 1, sides.b.bytes.data() + 1, count};
    const ChunkSums sums = kernels.sum(pairs, count, std::span<const Limit>(kLimits), &products);
    EXPECT_EQ(sums.max_abs, slow.max_abs);
    EXPECT_EQ(sums.max_rel, slow.max_rel);
    ExpectSum(slow.rel, sums.rel, slow.rel);
    EXPECT_THAT(sums.within, testing::ElementsAreArray(slow.within));
    ExpectProducts(slow, products);
  });
}

TEST(KernelsTest, TheFirstOfEqualDifferencesIsFound) {
  ForAll([](const Kernels& kernels, Format format, size_t count) {
    std::vector<float> values(count, 1.0f);
    values[count / 2] = values[count - 1] = 4.0f;
    const Values a(format, values), b(format, std::vector<float>(count, 1.0f));
    EXPECT_EQ(kernels.find({format, a.bytes.data() + 1, b.bytes.data() + 1, count}, 3.0), count / 2);
  });
}

// To the bit, so that a report does not tell where it was made.
TEST(KernelsTest, InstructionSetsDoNotShow) {
  const Kernels& baseline = *AvailableKernels().front();
  ForAll([&](const Kernels& kernels, Format format, size_t count) {
    const Sides sides(format, count, 4);
    Products products, expected_products;
    const ChunkSums sums = kernels.sum(sides.pairs, count, std::span<const Limit>(kLimits), &products);
    const ChunkSums expected = baseline.sum(sides.pairs, count, std::span<const Limit>(kLimits), &expected_products);
    EXPECT_EQ(std::memcmp(&sums, &expected, sizeof(sums)), 0);
    EXPECT_EQ(std::memcmp(&products, &expected_products, sizeof(products)), 0);
    const ChunkScan scan = kernels.scan(sides.pairs), expected_scan = baseline.scan(sides.pairs);
    EXPECT_EQ(scan.hash_a, expected_scan.hash_a);
    EXPECT_EQ(scan.hash_b, expected_scan.hash_b);
  });
}

TEST(KernelsTest, SoftmaxIsTheDefinitionAndTheSameOnEveryInstructionSet) {
  for (Format format : {Format::kBF16, Format::kF32}) {
    for (const size_t count : {size_t{16}, size_t{48}, kChunk}) {
      Sides sides(format, count, 3);
      std::vector<float>&a = sides.a.floats, &b = sides.b.floats;
      for (std::vector<float>* side : {&a, &b}) {
        for (float& value : *side) value = std::remainder(value * 37, 60.0f);
      }
      a[5] = b[7] = -1e38f;
      sides.a = Values(format, a), sides.b = Values(format, b);
      const Pairs pairs = {format, sides.a.bytes.data() + 1, sides.b.bytes.data() + 1, count};
      const double largest_a = *std::max_element(a.begin(), a.end()), largest_b = *std::max_element(b.begin(), b.end());
      long double sum_a = 0, sum_b = 0, weighted = 0;
      for (size_t i = 0; i < count; ++i) {
        const long double x = a[i] - static_cast<long double>(largest_a),
                          y = b[i] - static_cast<long double>(largest_b);
        sum_a += std::exp(x), sum_b += std::exp(y), weighted += std::exp(y) * (y - x);
      }
      const SoftmaxSums first = AvailableKernels()[0]->softmax(pairs, largest_a, largest_b);
      EXPECT_NEAR(first.a, static_cast<double>(sum_a), 1e-14 * first.a);
      EXPECT_NEAR(first.b, static_cast<double>(sum_b), 1e-14 * first.b);
      EXPECT_NEAR(first.weighted, static_cast<double>(weighted),
                  1e-13 * std::abs(static_cast<double>(weighted)) + 1e-13);
      for (const Kernels* kernels : AvailableKernels()) {
        const SoftmaxSums sums = kernels->softmax(pairs, largest_a, largest_b);
        EXPECT_EQ(sums.a, first.a) << kernels->name;
        EXPECT_EQ(sums.b, first.b) << kernels->name;
        EXPECT_EQ(sums.weighted, first.weighted) << kernels->name;
      }
    }
  }
}

}  // namespace
}  // namespace lockstep
