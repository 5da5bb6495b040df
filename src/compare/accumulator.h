// What the pass over a point adds up; blocks of rows are added up apart and merged in order, so threads do not show in
// the sums.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "compare/kernels.h"
#include "lockstep/compare.h"

namespace lockstep {

// Enough for the cosine and the relative L2 of a part of the tensor. a is the candidate, b the reference.
struct Products {
  double aa = 0, bb = 0, ab = 0, dd = 0;

  void Add(const Products& other);
  double Cosine() const;
  double RelativeL2() const;
};

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

// An extreme and where it is; strict comparison keeps the first of equals.
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

  // REQUIRES: `later` holds rows after these.
  void Merge(const Totals& later);
};

void Fill(const Totals& totals, PointResult* result);

// Adds rows to Totals. Begin, then segments (a whole row, or one head after the other), then End.
class RowMeter {
 public:
  RowMeter(Totals* totals, const Limit* limits) : totals_(*totals), limits_(limits) {}

  void Begin(int32_t sequence, int32_t position);
  // channels: [count], or null for channel_begin, channel_begin + 1, …
  void Add(const float* a, const float* b, size_t count, int head, int channel_begin,
           const int32_t* channels = nullptr);
  void MaskMismatch(int head, int channel);
  void End();

  // Of the row that ended last; 0 where all values are zero.
  uint64_t hash_a() const { return zero_a_ ? 0 : hash_a_ | 1; }
  uint64_t hash_b() const { return zero_b_ ? 0 : hash_b_ | 1; }

 private:
  struct Span {
    const float* a;
    const float* b;
    size_t count;
    int head;
    int channel_begin;
    const int32_t* channels;

    int Channel(size_t i) const { return channels ? channels[i] : channel_begin + static_cast<int>(i); }
  };

  Place At(const Span& span, size_t i) const;
  void AddChunk(const Span& span);
  void AddFinite(const Span& span, bool equal);
  void AddNotFinite(const Span& span);
  void CountSide(const float* values, const Span& span, SideTotals* side);

  Totals& totals_;
  const Limit* limits_;
  Place row_;
  Products token_;
  uint64_t hash_a_ = 0, hash_b_ = 0;
  bool zero_a_ = true, zero_b_ = true;
};

}  // namespace lockstep
