#include "report/html/cells.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "report/json_values.h"

namespace lockstep {
namespace {

size_t ColumnsOf(const ErrorMap& map) { return map.columns > 0 ? static_cast<size_t>(map.columns) : 1; }

// NaN counts as more than everything.
float Worse(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<float>::infinity();
  return std::max(a, b);
}

struct Folded {
  std::vector<ErrorMap::Band> bands;
  std::vector<float> values;
};

Folded Fold(const ErrorMap& map, size_t fold) {
  Folded out;
  const size_t columns = ColumnsOf(map);
  size_t in_band = 0;
  for (size_t i = 0; i < map.bands.size(); ++i) {
    const bool joins = in_band % fold != 0 && out.bands.back().sequence == map.bands[i].sequence;
    if (!joins) {
      in_band = 0;
      out.bands.push_back(map.bands[i]);
      out.values.resize(out.values.size() + columns, 0.0f);
    }
    ++in_band;
    out.bands.back().last = map.bands[i].last;
    float* row = out.values.data() + out.values.size() - columns;
    for (size_t c = 0; c < columns; ++c) row[c] = Worse(row[c], map.values[i * columns + c]);
  }
  return out;
}

struct Range {
  double low = 1, high = 1;
};

// Of the finite values above 0.
Range RangeOf(std::span<const float> values) {
  Range range{std::numeric_limits<double>::infinity(), 0};
  for (const float value : values) {
    if (!(value > 0) || !std::isfinite(value)) continue;
    range.low = std::min<double>(range.low, value);
    range.high = std::max<double>(range.high, value);
  }
  return range.high > 0 ? range : Range{};
}

char LevelOf(float value, const Range& range) {
  if (value == 0) return kLevelDigits[0];
  if (!std::isfinite(value)) return kLevelDigits[63];
  const double span = std::log(range.high / range.low);
  const double share = span > 0 ? std::log(value / range.low) / span : 1;
  return kLevelDigits[1 + std::lround(61 * std::clamp(share, 0.0, 1.0))];
}

}  // namespace

size_t FoldOf(std::span<const ErrorMap* const> maps, size_t budget) {
  for (size_t fold = 1;; ++fold) {
    size_t cells = 0;
    for (const ErrorMap* map : maps) cells += (map->bands.size() + fold - 1) / fold * ColumnsOf(*map);
    if (cells <= budget || fold >= ErrorMap::kMaxBands) return fold;
  }
}

Json MapJson(const ErrorMap& map, size_t fold) {
  // A map that is not what it says is left out, not read beyond its end.
  if (map.bands.empty() || map.values.size() != map.bands.size() * ColumnsOf(map)) return nullptr;
  const Folded folded = Fold(map, fold);
  const Range range = RangeOf(folded.values);
  std::string cells;
  cells.reserve(folded.values.size());
  for (const float value : folded.values) cells += LevelOf(value, range);
  return {
      {"bands", ListJson(folded.bands,
                         [](const ErrorMap::Band& band) -> Json { return {band.sequence, band.first, band.last}; })},
      {"heads", map.heads},
      {"columns", map.columns},
      {"per_column", map.per_column},
      {"low", range.low},
      {"high", range.high},
      {"cells", cells}};
}

std::string FloatsText(std::span<const float> values) {
  std::vector<uint8_t> bytes;
  for (const float value : values) {
    const auto bits = std::bit_cast<uint32_t>(value);
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(bits >> shift & 0xFF);
  }
  const size_t padding = (3 - bytes.size() % 3) % 3;
  bytes.insert(bytes.end(), padding, 0);
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const uint32_t group = bytes[i] << 16 | bytes[i + 1] << 8 | bytes[i + 2];
    for (int shift = 18; shift >= 0; shift -= 6) text += kLevelDigits[group >> shift & 63];
  }
  std::fill_n(text.rbegin(), padding, '=');
  return text;
}

}  // namespace lockstep
