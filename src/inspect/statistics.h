// Statistics of values that are read twice, in constant memory, with exact order statistics.
//
// Quantiles: each value as f32 is mapped to 32 bits in the order of the values. The first pass counts by the upper
// half, the second by the lower half, in just the buckets where a wanted rank lies. Rejected: nth_element (memory of
// the whole tensor) and sketches (not exact).
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "lockstep/inspect.h"

namespace lockstep {

class Statistics {
 public:
  // First pass.
  void Add(float value, const Place& place);
  void AddMasked() { ++stats_.masked; }
  // Between the passes.
  void BeginSecondPass();
  // The same values again.
  void AddAgain(float value);
  ValueStats Finish();

 private:
  static constexpr size_t kHalf = size_t{1} << 16;
  float AtRank(int64_t rank) const;

  ValueStats stats_;
  double sum_ = 0, squares_ = 0;
  double deviations_ = 0;                           // second pass: squared, from the mean
  std::vector<int64_t> upper_;                      // [kHalf]
  std::map<uint32_t, std::vector<int64_t>> lower_;  // by upper half
  std::vector<std::vector<int64_t>*> refined_;      // [kHalf], into lower_
};

}  // namespace lockstep
