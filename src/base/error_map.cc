#include "base/error_map.h"

#include <algorithm>
#include <atomic>

#include "base/round.h"

namespace lockstep {
namespace {

// Numbers of rows of one sequence after the other.
std::vector<size_t> RowsBySequence(const std::vector<RowKey>& rows) {
  std::vector<size_t> counts;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i == 0 || rows[i].sequence != rows[i - 1].sequence) counts.push_back(0);
    ++counts.back();
  }
  return counts;
}

// The fewest rows a band that leave at most kMaxBands bands, or one a sequence.
size_t RowsPerBand(const std::vector<size_t>& counts) {
  const size_t longest = counts.empty() ? 1 : *std::max_element(counts.begin(), counts.end());
  if (counts.size() > ErrorMap::kMaxBands) return longest;
  size_t most = 1;
  for (; most < longest; ++most) {
    size_t bands = 0;
    for (const size_t count : counts) bands += CeilDiv(count, most);
    if (bands <= ErrorMap::kMaxBands) break;
  }
  return most;
}

void RaiseTo(float* cell, float value) {
  std::atomic_ref<float> at(*cell);
  float now = at.load(std::memory_order_relaxed);
  while (now < value && !at.compare_exchange_weak(now, value, std::memory_order_relaxed)) {
  }
}

}  // namespace

MapFold::MapFold(std::vector<RowKey> rows, bool heads, int64_t width) {
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  map_.heads = heads;
  map_.per_column = CeilDiv(width, static_cast<int64_t>(ErrorMap::kMaxColumns));
  map_.columns = width > 0 ? CeilDiv(width, map_.per_column) : 0;
  const std::vector<size_t> counts = RowsBySequence(rows);
  const size_t most = RowsPerBand(counts);
  size_t begin = 0;
  for (const size_t count : counts) {
    for (size_t i = 0; i < count; i += most) {
      const RowKey &first = rows[begin + i], &last = rows[begin + std::min(i + most, count) - 1];
      map_.bands.push_back({first.sequence, first.position, last.position});
    }
    begin += count;
  }
  map_.values.assign(map_.bands.size() * stride(), -1.0f);
}

void MapFold::Raise(const RowKey& row, std::span<const float> values) {
  const auto after = std::upper_bound(
      map_.bands.begin(), map_.bands.end(), row,
      [](const RowKey& key, const ErrorMap::Band& band) { return key < RowKey{band.sequence, band.first}; });
  float* cells = map_.values.data() + static_cast<size_t>(after - map_.bands.begin() - 1) * stride();
  for (size_t i = 0; i < values.size(); ++i) RaiseTo(cells + i, values[i]);
}

std::vector<size_t> MapFold::BandsToShow() const {
  std::vector<size_t> shown;
  std::vector<float> worst;
  for (size_t i = 0; i < map_.bands.size(); ++i) {
    const auto begin = map_.values.begin() + static_cast<ptrdiff_t>(i * stride());
    worst.push_back(*std::max_element(begin, begin + static_cast<ptrdiff_t>(stride())));
    if (worst.back() >= 0) shown.push_back(i);
  }
  if (shown.size() <= ErrorMap::kMaxBands) return shown;
  std::stable_sort(shown.begin(), shown.end(), [&](size_t i, size_t j) { return worst[i] > worst[j]; });
  shown.resize(ErrorMap::kMaxBands);
  std::sort(shown.begin(), shown.end());
  return shown;
}

ErrorMap MapFold::Finish() const {
  ErrorMap out = map_;
  out.bands.clear();
  out.values.clear();
  for (const size_t i : BandsToShow()) {
    out.bands.push_back(map_.bands[i]);
    const auto begin = map_.values.begin() + static_cast<ptrdiff_t>(i * stride());
    out.values.insert(out.values.end(), begin, begin + static_cast<ptrdiff_t>(stride()));
  }
  return out;
}

}  // namespace lockstep
