#include "inspect/names.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "lockstep/error.h"
#include "lockstep/points.h"

namespace lockstep {
namespace {

constexpr size_t kLongest = 100;  // of names in messages and guesses

// Levenshtein's.
size_t Distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t substituted = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

std::string Nearest(const PointMap& points, const std::string& name) {
  constexpr size_t kShown = 3;
  std::vector<std::pair<size_t, std::string>> found;
  for (const auto& [other, steps] : points) {
    if (other.size() > kLongest) continue;
    const size_t distance = Distance(name, other);
    const bool contained = !name.empty() && other.find(name) != other.npos;
    if (contained || distance <= std::max<size_t>(2, name.size() / 4)) found.emplace_back(distance, other);
  }
  std::sort(found.begin(), found.end());
  std::string text;
  for (size_t i = 0; i < std::min(kShown, found.size()); ++i) text += (i ? ", " : "") + found[i].second;
  return text;
}

}  // namespace

ChosenNamesOf ChosenNames(const PointMap& points, const std::string& what, const std::string& trace) {
  if (points.contains(what)) return {{what}, {what, {}}};
  Slice slice = ParseSlice(what);
  if (points.contains(slice.name)) return {{slice.name}, std::move(slice)};
  std::vector<std::string> names;
  for (const auto& [name, steps] : points) {
    if (MatchesPattern(slice.name, name)) names.push_back(name);
  }
  if (names.empty()) ThrowUnknown(points, slice.name, trace);
  return {InExecutionOrder(std::move(names)), std::move(slice)};
}

void ThrowUnknown(const PointMap& points, const std::string& name, const std::string& trace) {
  const std::string near = Nearest(points, name.substr(0, kLongest));
  throw Error(trace + ": no step holds " + name.substr(0, kLongest) + (near.empty() ? "" : "; did you mean " + near) +
              "; `lockstep show " + trace + "` lists what there is");
}

}  // namespace lockstep
