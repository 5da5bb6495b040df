// What the pass over a point adds up; blocks of rows are added up apart and merged in order, so threads do not show in
// the sums.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "compare/kernels.h"
#include "lockstep/compare.h"

namespace lockstep {

class MapMeter;

struct SideTotals {
  int64_t count = 0;  // of finite values
  double sum = 0;
  double squares = 0;
  double min = std::numeric_limits<double>::infinity();
  double max = -std::numeric_limits<double>::infinity();
  int64_t nans = 0, infs = 0;
  std::optional<Place> first_nan, first_inf;

  void Merge(const SideTotals& other);
};

// In order of sequence, position, head and channel.
bool IsBefore(const Place& a, const Place& b);

// Of values that are not both finite: NaNs, or the same infinity.
bool SameNonFinite(float a, float b);

// An extreme and where it is: the first place of equals, whatever the order in which they come.
struct Extreme {
  double value = 0;
  Place at;
  bool set = false;

  void Raise(double other, const Place& place);
  void Lower(double other, const Place& place);
};

struct Totals {
  int64_t elements = 0;
  Products products;
  double abs = 0, rel = 0, max_rel = 0;
  int64_t zero_b = 0, zero_mismatches = 0;
  int64_t within[kNumLimits] = {};
  Extreme max_abs;
  double worst_a = 0, worst_b = 0;
  bool identical = true;
  SideTotals a, b;
  std::vector<Products> heads;
  Extreme worst_token, min_token_cosine;
  int64_t mask_mismatches = 0, non_finite_mismatches = 0;
  std::optional<Place> first_mask_mismatch, first_non_finite_mismatch;

  void Merge(const Totals& other);
};

void Fill(const Totals& totals, PointResult* result);

// Pairs of one row that lie one after the other on each side: a whole row, one head, or several whole heads.
struct Segment {
  DType dtype_a = DType::kF32;
  const std::byte* a = nullptr;
  DType dtype_b = DType::kF32;
  const std::byte* b = nullptr;
  size_t count = 0;
  int head = -1;                      // the first; -1: the point has no heads
  size_t part = 0;                    // elements of a head; 0: all are of one
  int channel_begin = 0;              // of the first pair
  const int32_t* channels = nullptr;  // [count], or null for channel_begin, channel_begin + 1, …
};

// Adds rows to Totals: Begin, then segments, then End.
class RowMeter {
 public:
  // limits: kNumTolerances, or kNumLimits with the user's.
  // map: shown the same rows; null: not wanted.
  RowMeter(Totals* totals, std::span<const Limit> limits, MapMeter* map = nullptr)
      : totals_(*totals), limits_(limits), map_(map) {}

  void Begin(int32_t sequence, int32_t position);
  // REQUIRES: segment.count is a multiple of segment.part, unless that is 0.
  void Add(const Segment& segment);
  void MaskMismatch(int head, int channel);
  void End();

  // Of the row that ended last; 0 where all values are zero. Equal bytes of one dtype have equal hashes, whatever the
  // other side's dtype is.
  uint64_t hash_a() const { return zero_a_ ? 0 : hash_a_ | 1; }
  uint64_t hash_b() const { return zero_b_ ? 0 : hash_b_ | 1; }
  const Products& products() const { return token_; }

 private:
  // At most kChunk pairs in one format, and where they are.
  struct Chunk {
    Pairs pairs;
    int head;
    size_t part;
    int channel_begin;
    const int32_t* channels;
  };

  Place At(const Chunk& chunk, size_t i) const;
  void AddChunk(const Segment& segment);
  void AddHash(const Segment& segment, const ChunkScan& scan);
  void AddFinite(const Chunk& chunk, const ChunkScan& scan);
  void RaiseMaximum(const Chunk& chunk, double max_abs);
  void AddNotFinite(const Chunk& chunk);
  void AddNotFinitePart(const float* a, const float* b, const Chunk& chunk);
  void CountSide(const float* values, const Chunk& chunk, SideTotals* side);

  const Kernels& kernels_ = BestKernels();
  Totals& totals_;
  std::span<const Limit> limits_;
  MapMeter* map_;
  Place row_;
  Products token_;
  uint64_t hash_a_ = 0, hash_b_ = 0;
  bool zero_a_ = true, zero_b_ = true;
  alignas(64) float wide_a_[kChunk];  // where the two sides' dtypes differ, or neither is f32 nor bf16
  alignas(64) float wide_b_[kChunk];
};

}  // namespace lockstep
