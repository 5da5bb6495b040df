#include "inspect/statistics.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace lockstep {
namespace {

using testing::Each;

ValueStats Of(const std::vector<float>& values) {
  Statistics statistics;
  for (size_t i = 0; i < values.size(); ++i) statistics.Add(values[i], {0, static_cast<int>(i)});
  statistics.BeginSecondPass();
  for (const float value : values) statistics.AddAgain(value);
  return statistics.Finish();
}

// The slow twin: sorts.
double Quantile(std::vector<float> values, double quantile) {
  std::sort(values.begin(), values.end());
  const double at = quantile * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(at);
  const double low = values[below], high = values[std::min(below + 1, values.size() - 1)];
  return low + (high - low) * (at - static_cast<double>(below));
}

TEST(Statistics, AgreeWithSorting) {
  std::mt19937 generator(1);
  for (const size_t count : {1, 2, 3, 10, 1000, 12345}) {
    for (const float scale : {1e-30f, 1.f, 1e30f}) {
      std::normal_distribution<float> normal(0.3f, 1.f);
      std::vector<float> values(count);
      for (float& value : values) value = normal(generator) * scale;
      const ValueStats stats = Of(values);
      double sum = 0, squares = 0;
      for (const float value : values) sum += value;
      const double mean = sum / static_cast<double>(count);
      for (const float value : values) squares += (value - mean) * (value - mean);
      EXPECT_DOUBLE_EQ(stats.mean, mean);
      EXPECT_DOUBLE_EQ(stats.std, std::sqrt(squares / static_cast<double>(count)));
      EXPECT_EQ(stats.min, *std::min_element(values.begin(), values.end()));
      EXPECT_EQ(stats.max, *std::max_element(values.begin(), values.end()));
      for (size_t i = 0; i < kQuantiles.size(); ++i) {
        EXPECT_EQ(stats.quantiles[i], Quantile(values, kQuantiles[i])) << count << " " << kQuantiles[i];
      }
      const int64_t binned = std::accumulate(stats.histogram.begin(), stats.histogram.end(), int64_t{0});
      EXPECT_EQ(binned, count > 1 ? static_cast<int64_t>(count) : 0);
    }
  }
}

TEST(Statistics, LeaveOutWhatIsNotFinite) {
  const float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  const ValueStats stats = Of({1, nan, 3, -inf, inf, nan});
  EXPECT_EQ(stats.count, 6);
  EXPECT_EQ(stats.finite, 2);
  EXPECT_EQ(stats.nans, 2);
  EXPECT_EQ(stats.infs, 2);
  EXPECT_EQ(stats.first_nan->position, 1);
  EXPECT_EQ(stats.first_inf->position, 3);
  EXPECT_EQ(stats.mean, 2);
  EXPECT_EQ(stats.max_at.position, 2);
  EXPECT_EQ(Of({nan, inf}).finite, 0);
  EXPECT_EQ(Of({}).count, 0);
}

TEST(Statistics, OfOneValueHaveNoHistogram) {
  const ValueStats stats = Of({5, 5, 5});
  EXPECT_THAT(stats.histogram, Each(0));
  EXPECT_THAT(stats.quantiles, Each(5));
  EXPECT_EQ(stats.std, 0);
}

}  // namespace
}  // namespace lockstep
