// Errors of rows and columns folded into an ErrorMap. A cell keeps the largest of what falls into it, so neither the
// order in which rows come nor the number of threads shows.
#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <vector>

#include "lockstep/detail.h"

namespace lockstep {

struct RowKey {
  int32_t sequence = 0;
  int32_t position = 0;
  auto operator<=>(const RowKey&) const = default;
};

class MapFold {
 public:
  // rows: all that may come; width: heads or channels of a row. Takes four bytes a column and band; there are more
  // than kMaxBands bands only where there are more sequences.
  MapFold(std::vector<RowKey> rows, bool heads, int64_t width);

  int64_t columns() const { return map_.columns; }
  int64_t per_column() const { return map_.per_column; }

  // values: [columns], or one without columns; none is NaN or negative. From any thread.
  // REQUIRES: the row is one of those announced.
  void Raise(const RowKey& row, std::span<const float> values);

  // Without the bands that no row fell into; of more than kMaxBands, those with the largest values.
  ErrorMap Finish() const;

 private:
  size_t stride() const { return map_.columns > 0 ? static_cast<size_t>(map_.columns) : 1; }
  std::vector<size_t> BandsToShow() const;

  ErrorMap map_;  // a band without rows holds -1
};

}  // namespace lockstep
