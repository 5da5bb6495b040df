#include <algorithm>
#include <map>
#include <string_view>

#include "lockstep/report.h"

namespace lockstep {
namespace {

using ByName = std::map<std::string_view, const LocalError*>;

ByName IndexOf(const std::optional<Diagnosis>& side) {
  ByName index;
  if (!side) return index;
  for (const LocalError& point : side->replay.points) index[point.name] = &point;
  return index;
}

const LocalError* Find(const ByName& index, const std::string& name) {
  const auto found = index.find(name);
  return found == index.end() ? nullptr : found->second;
}

bool IsFaulty(const LocalError* point) { return point != nullptr && point->verdict == OpVerdict::kFaulty; }

// In all of its rows.
bool WasJudged(const LocalError* point) {
  return point != nullptr && point->verdict != OpVerdict::kNotObservable && point->rows_not_observable == 0;
}

}  // namespace

std::vector<JudgedPoint> JudgedPoints(const Judged& judged) {
  const ByName reference = IndexOf(judged.reference), candidate = IndexOf(judged.candidate);
  std::vector<JudgedPoint> points;
  for (const PointResult& compared : judged.compare.points) {
    JudgedPoint point{&compared, Find(reference, compared.name), Find(candidate, compared.name)};
    const bool both = WasJudged(point.reference) && WasJudged(point.candidate);
    point.faulty = IsFaulty(point.reference) || IsFaulty(point.candidate);
    point.fails = point.faulty || compared.user_tolerance_missed || (!both && !compared.reasons.empty());
    points.push_back(point);
  }
  return points;
}

int Judged::ExitCode() const {
  const auto faulty = [](const std::optional<Diagnosis>& side) { return side && side->ExitCode() != 0; };
  if (faulty(reference) || faulty(candidate) || !compare.failures.empty() || !compare.weights.empty()) return 1;
  const std::vector<JudgedPoint> points = JudgedPoints(*this);
  return std::any_of(points.begin(), points.end(), [](const JudgedPoint& point) { return point.fails; }) ? 1 : 0;
}

}  // namespace lockstep
