#include "inspect/statistics.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace lockstep {
namespace {

// Ordered as the values are; -0 stands below +0.
uint32_t KeyOf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

float ValueOf(uint32_t key) { return std::bit_cast<float>((key & 0x80000000u) != 0 ? key & 0x7FFFFFFFu : ~key); }

// A quantile lies between two ranks.
struct Between {
  int64_t below = 0, above = 0;
  double share = 0;  // of the upper one
};

Between RanksOf(double quantile, int64_t count) {
  const double at = quantile * static_cast<double>(count - 1);
  const auto below = static_cast<int64_t>(at);
  return {below, std::min(below + 1, count - 1), at - static_cast<double>(below)};
}

// Bucket of `rank`; *rank becomes the rank inside it.
uint32_t BucketOf(const std::vector<int64_t>& counts, int64_t* rank) {
  uint32_t bucket = 0;
  while (*rank >= counts[bucket]) *rank -= counts[bucket++];
  return bucket;
}

}  // namespace

void Statistics::Add(float value, const Place& place) {
  if (upper_.empty()) upper_.assign(kHalf, 0);
  ++stats_.count;
  if (std::isnan(value)) {
    if (stats_.nans++ == 0) stats_.first_nan = place;
    return;
  }
  if (std::isinf(value)) {
    if (stats_.infs++ == 0) stats_.first_inf = place;
    return;
  }
  if (stats_.finite == 0 || value < stats_.min) stats_.min = value, stats_.min_at = place;
  if (stats_.finite == 0 || value > stats_.max) stats_.max = value, stats_.max_at = place;
  ++stats_.finite;
  sum_ += value;
  squares_ += static_cast<double>(value) * value;
  ++upper_[KeyOf(value) >> 16];
}

void Statistics::BeginSecondPass() {
  if (stats_.finite == 0) return;
  const auto count = static_cast<double>(stats_.finite);
  stats_.mean = sum_ / count;
  stats_.rms = std::sqrt(squares_ / count);
  refined_.assign(kHalf, nullptr);
  for (const double quantile : kQuantiles) {
    const Between ranks = RanksOf(quantile, stats_.finite);
    for (int64_t rank : {ranks.below, ranks.above}) {
      const uint32_t bucket = BucketOf(upper_, &rank);
      std::vector<int64_t>& counts = lower_[bucket];
      if (counts.empty()) counts.assign(kHalf, 0);
      refined_[bucket] = &counts;
    }
  }
}

void Statistics::AddAgain(float value) {
  if (!std::isfinite(value)) return;
  const double deviation = value - stats_.mean;
  deviations_ += deviation * deviation;
  const uint32_t key = KeyOf(value);
  if (std::vector<int64_t>* counts = refined_[key >> 16]) ++(*counts)[key & 0xFFFFu];
  const double width = stats_.max - stats_.min;
  if (width <= 0) return;
  const auto bin = static_cast<size_t>((value - stats_.min) / width * static_cast<double>(kHistogramBins));
  ++stats_.histogram[std::min(bin, kHistogramBins - 1)];
}

float Statistics::AtRank(int64_t rank) const {
  const uint32_t upper = BucketOf(upper_, &rank);
  return ValueOf(upper << 16 | BucketOf(lower_.at(upper), &rank));
}

ValueStats Statistics::Finish() {
  if (stats_.finite == 0) return stats_;
  stats_.std = std::sqrt(deviations_ / static_cast<double>(stats_.finite));
  for (size_t i = 0; i < kQuantiles.size(); ++i) {
    const Between ranks = RanksOf(kQuantiles[i], stats_.finite);
    const double below = AtRank(ranks.below), above = AtRank(ranks.above);
    stats_.quantiles[i] = below + (above - below) * ranks.share;
  }
  return stats_;
}

}  // namespace lockstep
