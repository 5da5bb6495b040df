// What a report draws of one point (lockstep/detail.h), gathered in the pass that adds up its figures.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "base/error_map.h"
#include "compare/accumulator.h"
#include "compare/metrics.h"
#include "lockstep/compare.h"

namespace lockstep {

// Of rows of the join or of a side.
template <typename Rows>
std::vector<RowKey> KeysOf(const Rows& rows) {
  std::vector<RowKey> keys;
  keys.reserve(rows.size());
  for (const auto& row : rows) keys.push_back({row.sequence, row.position});
  return keys;
}

// Of one point, over all calls of MeasureRows.
struct DetailSums {
  // rows: sequences are the reference's numbers. shape: of a row.
  DetailSums(std::vector<RowKey> rows, const std::vector<int64_t>& shape, RowKind kind);

  void AddPhase(Phase phase, const Products& products);
  std::shared_ptr<const DifferenceDetail> Finish() const;

  MapFold map;
  std::optional<Products> prefill, decode;  // none: no such rows
  ValueWindow window;
};

// Adds rows to a map, as RowMeter does to Totals; the same pairs are left out.
class MapMeter {
 public:
  explicit MapMeter(MapFold* map) : map_(*map), columns_(static_cast<size_t>(std::max<int64_t>(1, map->columns()))) {}

  void Begin(const RowKey& row);
  void Add(const Segment& segment);
  void MaskMismatch(int head) { columns_[ColumnOf(head)].differs = true; }
  void End();

 private:
  struct Column {
    double dd = 0, bb = 0;
    bool differs = false;  // in what is no number
  };

  size_t ColumnOf(int64_t index) const { return static_cast<size_t>(index / std::max<int64_t>(1, map_.per_column())); }
  // At most kChunk pairs, from `begin` on.
  void AddChunk(const Segment& segment, size_t begin, size_t count);
  static void AddRun(const float* a, const float* b, size_t count, Column* column);

  MapFold& map_;
  RowKey row_;
  std::vector<Column> columns_;
  alignas(64) float a_[kChunk];
  alignas(64) float b_[kChunk];
};

// The element that a window is read around: PointResult::worst, or the first that cannot be compared where no two
// numbers were.
std::optional<Place> WindowPlace(const Totals& totals);

// The values around a place, of the rows of the pass; empty where its row is none of them.
ValueWindow ReadWindow(const PointPass& pass, const Place& at);

}  // namespace lockstep
