#include "report/verdict.h"

#include <fmt/format.h>

#include <vector>

#include "report/words.h"

namespace lockstep {
namespace {

using Parts = std::vector<std::string>;

void AddFaulty(const std::optional<Diagnosis>& side, const char* name, Parts* parts) {
  if (!side || !side->replay.first_faulty) return;
  parts->push_back(fmt::format("{} in the {}, the first {}", Count(side->replay.faulty, "faulty op"), name,
                               NameText(side->replay.points[*side->replay.first_faulty].name)));
}

void AddWeights(const std::optional<Diagnosis>& side, const char* name, Parts* parts) {
  if (!side || side->replay.weights.empty()) return;
  parts->push_back(
      fmt::format("{} of the {} not the checkpoint's", Count(side->replay.weights.size(), "weight"), name));
}

void AddBeyondTolerance(const Judged& judged, Parts* parts) {
  size_t count = 0;
  std::string first;
  for (const JudgedPoint& point : JudgedPoints(judged)) {
    if (!point.fails || point.faulty) continue;
    if (count++ == 0) first = NameText(point.compared->name);
  }
  if (count > 0) parts->push_back(fmt::format("{} beyond tolerance, the first {}", Count(count, "point"), first));
}

}  // namespace

std::string VerdictText(const Judged& judged) {
  if (judged.ExitCode() == 0) {
    return judged.reference && judged.candidate ? "SAME (no faulty op on either side)" : "SAME";
  }
  Parts parts;
  AddFaulty(judged.reference, "reference", &parts);
  AddFaulty(judged.candidate, "candidate", &parts);
  AddWeights(judged.reference, "reference", &parts);
  AddWeights(judged.candidate, "candidate", &parts);
  AddBeyondTolerance(judged, &parts);
  const CompareResult& result = judged.compare;
  if (!result.failures.empty()) parts.push_back(Count(result.failures.size(), "completeness failure"));
  if (!result.weights.empty()) parts.push_back(Count(result.weights.size(), "different weight"));
  return fmt::format("DIFFERENT ({})", fmt::join(parts, "; "));
}

std::string VerdictText(const Diagnosis& diagnosis) {
  const ReplayResult& replay = diagnosis.replay;
  if (diagnosis.ExitCode() == 0) {
    return replay.suspect == 0 ? "CLEAN" : "CLEAN (" + Count(replay.suspect, "suspect op") + ")";
  }
  Parts parts;
  if (replay.first_faulty) {
    parts.push_back(fmt::format("{}, the first {}", Count(replay.faulty, "op"),
                                NameText(replay.points[*replay.first_faulty].name)));
  }
  if (!replay.weights.empty()) parts.push_back(Count(replay.weights.size(), "weight") + " not the checkpoint's");
  return fmt::format("FAULTY ({})", fmt::join(parts, "; "));
}

}  // namespace lockstep
