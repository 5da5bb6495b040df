#include "report/finding.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/ranges.h"
#include "lockstep/report.h"
#include "report/words.h"

namespace lockstep {
namespace {

std::string Fits(const Explanation& explanation, const char* verb) {
  return fmt::format("{}{}: {}", verb, Escaped(explanation.text), NoiseText(explanation.explained));
}

std::string CauseText(const Finding& finding) {
  if (!finding.cause) {
    if (!finding.next) return "unexplained";
    return fmt::format("unexplained (the best of the known mistakes, {}, leaves {})", Escaped(finding.next->text),
                       NoiseText(finding.next->explained));
  }
  std::string text = Escaped(finding.cause->text);
  // Where the values themselves show the cause (NaN, rows of another width), nothing was recomputed with it.
  const bool recomputed = finding.cause->explained > 0 || (finding.error > 0 && std::isfinite(finding.error));
  if (recomputed) {
    text += fmt::format(" (explains it: {}", NoiseText(finding.cause->explained));
    for (const Explanation& other : finding.also) text += "; " + Fits(other, "as does ");
    if (finding.next) text += "; " + Fits(*finding.next, "next best, ");
    text += ")";
  }
  if (!finding.cause->advice.empty()) text += ". Usual fix: " + Escaped(finding.cause->advice);
  return text;
}

std::string SubjectOf(const Finding& finding) {
  if (finding.layers.empty()) return Escaped(finding.point);
  return fmt::format("layer {} {}", LayersText(finding.layers, ".."), Escaped(finding.point));
}

// Where it is worst, and the other figures of its first point: a single value or a scale may be all that is wrong.
std::string EvidenceOf(const Finding& finding, const ReplayResult& replay) {
  const auto first = std::find_if(replay.points.begin(), replay.points.end(), [&](const LocalError& point) {
    return !finding.names.empty() && point.name == finding.names.front();
  });
  if (first == replay.points.end() || first->rows == 0) return "";
  return fmt::format("Worst at {}. {}: largest value {} at {}, scale {}.", PlaceText(finding.worst),
                     NameText(first->name), NoiseText(first->max), PlaceText(first->max_at), ScaleText(*first));
}

}  // namespace

std::string ScaleText(const LocalError& point) {
  return fmt::format("{:+.1e} ± {:.0e}", point.scale, point.scale_error);
}

std::string LayersText(const std::vector<int>& layers, const char* dash) { return RangesText(layers, ",", dash); }

std::string FindingSentence(const Finding& finding) {
  std::string text = SubjectOf(finding);
  if (finding.error > 0) {
    text += fmt::format(": op error {} noise units (clean: < {})", NoiseText(finding.error), NoiseText(finding.clean));
  }
  for (const Pattern& pattern : finding.patterns) text += ", " + Escaped(pattern.text);
  return text + " -> " + CauseText(finding);
}

void WriteFindings(const Diagnosis& diagnosis, const std::string& who, bool all, Page* page) {
  constexpr size_t kMost = 10;
  const auto write = [&](const char* label, const auto& list, Color color, const auto& write_item) {
    for (size_t i = 0; i < list.size() && (all || i < kMost); ++i) write_item(list[i]);
    if (!all && list.size() > kMost) page->Line(label, who + MoreText(list.size() - kMost), color);
  };
  write("WEIGHT     ", diagnosis.replay.weights, Color::kBad, [&](const WeightMismatch& weight) {
    page->Line("WEIGHT     ", who + NameText(weight.name) + ": " + MessageText(weight.text), Color::kBad);
  });
  write("FAULT      ", diagnosis.findings, Color::kBad, [&](const Finding& finding) {
    page->Line("FAULT      ", who + FindingSentence(finding), Color::kBad);
    const std::string evidence = EvidenceOf(finding, diagnosis.replay);
    if (!evidence.empty()) page->Line("           ", evidence);
  });
  write("LAYOUT     ", diagnosis.layouts, Color::kNone,
        [&](const std::string& layout) { page->Line("LAYOUT     ", who + MessageText(layout)); });
}

std::string ReplayCounts(const ReplayResult& replay) {
  std::string text = fmt::format("{}, {} clean", Count(replay.points.size(), "op"), replay.clean);
  if (replay.suspect > 0) text += fmt::format(", {} SUSPECT", replay.suspect);
  if (replay.faulty > 0) text += fmt::format(", {} FAULTY", replay.faulty);
  if (replay.not_observable > 0) text += fmt::format(", {} not observable", replay.not_observable);
  if (replay.first_faulty) text += "; the first faulty one " + NameText(replay.points[*replay.first_faulty].name);
  return text;
}

}  // namespace lockstep
