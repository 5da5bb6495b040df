// The measurements' figures depend on the machine; that they are made, and of the right amount of work, does not.
#include "bench/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/parallel.h"
#include "bench/memory.h"
#include "bench/shapes.h"
#include "lockstep/bench.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

// No machine of today is slower than the lower bound or faster than the upper: a wrong unit or count is seen.
TEST(MachineTest, MeasuresPlausibleLimits) {
  const double per_thread = 1.0 / MaxThreads();
  const double bytes = ReadBandwidth().Measure();
  EXPECT_GT(bytes, 1e8);
  EXPECT_LT(bytes * per_thread, 1e12);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const PeakFlops peak(dtype);
    const double flops = peak.Measure();
    EXPECT_GT(flops, 1e8) << peak.loop();
    EXPECT_LT(flops * per_thread, 1e12) << peak.loop();
  }
}

TEST(MachineTest, WritesAndRemoves) {
  const std::string path = ::testing::TempDir() + "lockstep-write-bandwidth";
  EXPECT_GT(MeasureWriteBandwidth(path, 3'000'001), 1e5);
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_THROW(MeasureWriteBandwidth("/no/such/directory/file", 1), Error);
}

TEST(MemoryTest, SeesWhatTheProcessTakes) {
  const int64_t before = PeakMemory();
  const std::vector<char> block(size_t{64} << 20, 1);
  EXPECT_GE(PeakMemory(), std::max(before, static_cast<int64_t>(block.size())));
  EXPECT_GT(AvailableMemory(), 0);
}

TEST(MemoryTest, RefusesWhatDoesNotFit) {
  constexpr int64_t kMebibyte = 1 << 20;
  EXPECT_NO_THROW(RequireMemory("x", 10 * kMebibyte, 10 * kMebibyte));
  EXPECT_NO_THROW(RequireMemory("x", 10 * kMebibyte, -1));
  try {
    RequireMemory("qwen3-8b in F32", 10 * kMebibyte, 9 * kMebibyte);
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), ::testing::HasSubstr(
                              "qwen3-8b in F32: expected at least 10 MiB of memory, found 9 MiB available; take"));
  }
}

TEST(MemoryTest, CountsWeightsCacheAndTheLargerOfActivationsAndLogits) {
  const Config config = ConfigOfShape("qwen3-0.6b");
  const int64_t weights = 596'049'920 * 2;
  const int64_t cache = 28 * 2 * 8 * 128 * 100 * 2;  // layers, keys and values, heads, channels, tokens, bytes
  EXPECT_EQ(EngineMemory(config, DType::kBF16, 100, 0), weights + cache + 100 * (3 * 1024 + 2 * 3072) * 2);
  EXPECT_EQ(EngineMemory(config, DType::kBF16, 100, 50), weights + cache + 50 * 151936 * (2 + 4));
}

TEST(SamplesTest, MedianAndBest) {
  EXPECT_EQ((Samples{{3, 1, 2}}.Median()), 2);
  EXPECT_EQ((Samples{{4, 1, 2, 3}}.Median()), 2.5);
  EXPECT_EQ((Samples{{4, 1, 9, 3}}.Best()), 9);
  EXPECT_EQ(Samples{}.Median(), 0);
}

}  // namespace
}  // namespace lockstep
