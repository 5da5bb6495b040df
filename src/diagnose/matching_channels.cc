// Permutations of a row's channels, found by their values: first the maps that mistakes are made of, which hold on a
// single row, then heads as a whole, then any map at all, which needs values that are told apart.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "diagnose/matching.h"

namespace lockstep {
namespace {

constexpr int64_t kMaxWidth = 16384;  // of a row for the search of any map
constexpr int64_t kMinDisplaced = 8;  // values that a map must have moved
constexpr double kMinUnique = 0.8;    // share of them that fit in one place only
constexpr size_t kMaxRows = 8;        // that candidates are checked on
constexpr double kWindow = 8;         // noise units around a value in which its source is looked for

using Map = std::vector<int32_t>;

Map Identity(int64_t n) {
  Map map(static_cast<size_t>(n));
  std::iota(map.begin(), map.end(), 0);
  return map;
}

// [a, b] read as [b, a]: out[j * a + i] = in[i * b + j]
Map Transposed(int64_t a, int64_t b) {
  Map map(static_cast<size_t>(a * b));
  for (int64_t i = 0; i < a; ++i) {
    for (int64_t j = 0; j < b; ++j) map[static_cast<size_t>(j * a + i)] = static_cast<int32_t>(i * b + j);
  }
  return map;
}

Map Rotated(int64_t n, int64_t by) {
  Map map(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) map[static_cast<size_t>(i)] = static_cast<int32_t>((i + by) % n);
  return map;
}

Map Reversed(int64_t n) {
  Map map = Identity(n);
  std::reverse(map.begin(), map.end());
  return map;
}

// The same map within each of `count` groups.
Map InEach(int64_t count, const Map& map) {
  const auto n = static_cast<int64_t>(map.size());
  Map out;
  for (int64_t g = 0; g < count; ++g) {
    for (const int32_t from : map) out.push_back(static_cast<int32_t>(g * n + from));
  }
  return out;
}

// Groups of `size` moved as a whole.
Map OfGroups(const Map& groups, int64_t size) {
  Map out;
  for (const int32_t from : groups) {
    for (int64_t i = 0; i < size; ++i) out.push_back(static_cast<int32_t>(from * size + i));
  }
  return out;
}

bool Fits(const Evidence& evidence, int64_t i, int64_t channel, int64_t from, double* units) {
  const double expected = evidence.Expected(i)[from];
  *units = NoiseUnits(evidence.Captured(i)[channel], expected, evidence.Variance(i, from));
  return std::abs(*units) <= evidence.limits().max_faulty;
}

// Whether the map leaves only noise in every affected row, and has moved enough.
bool MapFits(const Evidence& evidence, const Map& map) {
  for (const int64_t i : evidence.affected()) {
    double squares = 0;
    int64_t displaced = 0;
    for (int64_t c = 0; c < evidence.width(); ++c) {
      double units = 0;
      const int64_t from = map[static_cast<size_t>(c)];
      if (!Fits(evidence, i, c, from, &units)) return false;
      squares += units * units;
      displaced += from != c && evidence.Off(i, c);
    }
    if (displaced < kMinDisplaced) return false;
    if (std::sqrt(squares / static_cast<double>(evidence.width())) > evidence.limits().row_suspect) return false;
  }
  return true;
}

std::string Arrows(const Map& map) {
  std::string out;
  int shown = 0;
  for (size_t i = 0; i < map.size(); ++i) {
    if (map[i] == static_cast<int32_t>(i)) continue;
    if (shown++ == 4) return out + ", …";
    out += (out.empty() ? "" : ", ") + std::to_string(map[i]) + "->" + std::to_string(i);
  }
  return out;
}

bool IsPermutation(const Map& map) {
  std::vector<char> seen(map.size());
  for (const int32_t from : map) {
    if (seen[static_cast<size_t>(from)]++) return false;
  }
  return true;
}

// by > 0 where from[i] = i + by, around the end.
int64_t RotationOf(const Map& map) {
  return map.size() > 1 && map == Rotated(static_cast<int64_t>(map.size()), map[0]) ? map[0] : 0;
}

std::string MapText(const Map& map, const char* what) {
  if (const int64_t by = RotationOf(map)) {
    return std::string(what) + " rotated by " + std::to_string(by) + " of " + std::to_string(map.size());
  }
  if (!IsPermutation(map)) return std::string(what) + " copied to others: " + Arrows(map);
  return std::string(what) + " permuted: " + Arrows(map);
}

// A head's source by its values: in every affected row.
std::optional<ChannelMap> MatchHeads(const Evidence& evidence) {
  const int64_t heads = evidence.call().heads;
  if (heads < 2) return std::nullopt;
  const int64_t d = evidence.cell_width();
  const auto holds = [&](int64_t head, int64_t from) {
    for (const int64_t i : evidence.affected()) {
      double squares = 0;
      for (int64_t k = 0; k < d; ++k) {
        double units = 0;
        if (!Fits(evidence, i, head * d + k, from * d + k, &units)) return false;
        squares += units * units;
      }
      if (std::sqrt(squares / static_cast<double>(d)) > evidence.limits().cell_suspect) return false;
    }
    return true;
  };
  Map map;
  for (int64_t head = 0; head < heads; ++head) {
    int64_t from = head;
    if (!holds(head, head)) {
      for (from = 0; from < heads && !holds(head, from);) ++from;
    }
    if (from == heads) return std::nullopt;
    map.push_back(static_cast<int32_t>(from));
  }
  const Map whole = OfGroups(map, d);
  if (!MapFits(evidence, whole)) return std::nullopt;
  return ChannelMap{whole, MapText(map, "heads"), true};
}

// Channels of a row in the order of what is expected there.
class Sorted {
 public:
  Sorted(const Evidence& evidence, int64_t i) : values_(evidence.Expected(i)), order_(Identity(evidence.width())) {
    std::sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) { return values_[a] < values_[b]; });
  }
  // Calls found(channel) for those within `reach` of value; stops where it returns false.
  template <typename Found>
  void Near(double value, double reach, Found&& found) const {
    auto at = std::lower_bound(order_.begin(), order_.end(), value - reach,
                               [&](int32_t a, double bound) { return values_[a] < bound; });
    for (; at != order_.end() && values_[*at] <= value + reach; ++at) {
      if (!found(*at)) return;
    }
  }

 private:
  const double* values_;
  Map order_;
};

// Any map: each value that is off has a source that fits in every affected row, nearly always just one.
std::optional<Map> MatchAny(const Evidence& evidence) {
  const int64_t width = evidence.width();
  if (width > kMaxWidth) return std::nullopt;
  std::vector<int64_t> rows = evidence.affected();
  rows.resize(std::min(rows.size(), kMaxRows));
  const int64_t first = rows.front();
  const Sorted sorted(evidence, first);
  Map map = Identity(width);
  int64_t displaced = 0, unique = 0;
  for (int64_t c = 0; c < width; ++c) {
    if (std::none_of(rows.begin(), rows.end(), [&](int64_t i) { return evidence.Off(i, c); })) continue;
    const double value = evidence.Captured(first)[c];
    if (!std::isfinite(value)) return std::nullopt;
    const double reach = kWindow * std::sqrt(evidence.Variance(first, c) + StorageRounding(evidence.storage(), value));
    int sources = 0;
    double best = INFINITY;
    sorted.Near(value, reach, [&](int32_t from) {
      double worst = 0;
      for (const int64_t i : rows) {
        double units = 0;
        if (!Fits(evidence, i, c, from, &units)) return true;
        worst = std::max(worst, std::abs(units));
      }
      if (worst < best) best = worst, map[static_cast<size_t>(c)] = from;
      ++sources;
      return true;
    });
    if (sources == 0) return std::nullopt;
    ++displaced;
    unique += sources == 1;
  }
  if (displaced < kMinDisplaced || static_cast<double>(unique) < kMinUnique * static_cast<double>(displaced)) {
    return std::nullopt;
  }
  return map;
}

// The map within one head, where it is the same in all.
std::optional<Map> WithinHeads(const Map& map, int64_t heads) {
  if (heads < 2) return std::nullopt;
  const Map first(map.begin(), map.begin() + static_cast<int64_t>(map.size()) / heads);
  const auto d = static_cast<int32_t>(first.size());
  if (std::any_of(first.begin(), first.end(), [&](int32_t from) { return from >= d; })) return std::nullopt;
  return InEach(heads, first) == map ? std::optional(first) : std::nullopt;
}

void AddOfGroup(int64_t count, int64_t size, const std::string& whose, std::vector<ChannelMap>* out) {
  if (size % 2 == 0 && size > 2) {
    out->push_back({InEach(count, Transposed(size / 2, 2)), whose + "interleaved pairs taken apart into halves"});
    out->push_back({InEach(count, Transposed(2, size / 2)), whose + "halves interleaved into pairs"});
    out->push_back({InEach(count, Rotated(size, size / 2)), whose + "halves swapped"});
  }
  out->push_back({InEach(count, Reversed(size)), whose + "channels reversed"});
}

}  // namespace

std::vector<ChannelMap> KnownMaps(int64_t width, int64_t heads) {
  std::vector<ChannelMap> out;
  AddOfGroup(1, width, "the row's ", &out);
  if (heads < 1 || width % heads != 0) return out;
  const int64_t d = width / heads;
  AddOfGroup(heads, d, "each head's ", &out);
  const std::string shape = "[" + std::to_string(heads) + ", " + std::to_string(d) + "]";
  out.push_back({Transposed(heads, d), shape + " transposed: channels of a head " + std::to_string(heads) + " apart"});
  out.push_back({Transposed(d, heads), "[" + std::to_string(d) + ", " + std::to_string(heads) + "] read as " + shape});
  out.push_back({OfGroups(Reversed(heads), d), "heads reversed", true});
  for (int64_t group = 2; group < heads; ++group) {
    if (heads % group != 0) continue;
    out.push_back(
        {OfGroups(Transposed(heads / group, group), d),
         "heads tiled: every " + std::to_string(group) + "th together instead of in groups of " + std::to_string(group),
         true});
  }
  for (int64_t by = 1; by < heads; ++by) {
    out.push_back({OfGroups(Rotated(heads, by), d), MapText(Rotated(heads, by), "heads"), true});
  }
  return out;
}

std::optional<ChannelMap> MatchChannels(const Evidence& evidence) {
  if (evidence.affected().empty() || evidence.everything()) return std::nullopt;
  const int64_t heads = evidence.call().heads, width = evidence.width();
  for (ChannelMap& known : KnownMaps(width, heads)) {
    if (MapFits(evidence, known.from)) return std::move(known);
  }
  if (std::optional<ChannelMap> match = MatchHeads(evidence)) return match;
  const std::optional<Map> map = MatchAny(evidence);
  if (!map || !MapFits(evidence, *map)) return std::nullopt;
  if (const std::optional<Map> within = WithinHeads(*map, heads)) {
    return ChannelMap{*map, "within each head, " + MapText(*within, "channels")};
  }
  return ChannelMap{*map, MapText(*map, "channels")};
}

}  // namespace lockstep
