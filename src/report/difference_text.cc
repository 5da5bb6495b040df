#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "report/text_parts.h"
#include "report/words.h"

namespace lockstep {
namespace {

constexpr const char* kIndent = "   ";

void WriteOpErrors(const JudgedPoint& point, Page* page) {
  std::vector<std::string> sides;
  const auto add = [&](const char* side, const LocalError* error) {
    if (error == nullptr) return;
    const std::string figure = error->rows == 0 ? "" : NoiseText(error->worst_row) + " ";
    sides.push_back(fmt::format("{} {}{}", side, figure, VerdictWord(error->verdict)));
  };
  add("reference", point.reference);
  add("candidate", point.candidate);
  if (!sides.empty()) page->Line(kIndent, fmt::format("op error in noise units: {}", fmt::join(sides, ", ")));
}

void WriteEvidence(const JudgedPoint& judged, Page* page) {
  const PointResult& point = *judged.compared;
  WriteOpErrors(judged, page);
  for (const std::string& reason : point.reasons) page->Line(kIndent, MessageText(reason));
  if (point.elements > 0) {
    page->Line(kIndent, fmt::format("largest difference at {}: reference {}, candidate {}", PlaceText(point.worst),
                                    point.worst_reference, point.worst_candidate));
    page->Line(kIndent,
               fmt::format("worst token at {}: relative L2 {:.3g}; smallest token cosine {:.6f}",
                           PlaceText(point.worst_token), point.worst_token_relative_l2, point.min_token_cosine));
  }
  if (point.worst_head >= 0) {
    page->Line(kIndent, fmt::format("worst head {}: relative L2 {:.3g}; smallest head cosine {:.6f}", point.worst_head,
                                    point.worst_head_relative_l2, point.min_head_cosine));
  }
  if (point.first_non_finite_mismatch) {
    page->Line(kIndent, "first NaN or infinity on one side only at " + PlaceText(*point.first_non_finite_mismatch));
  }
  if (point.first_mask_mismatch) {
    page->Line(kIndent, "masks first differ at " + PlaceText(*point.first_mask_mismatch));
  }
}

void WriteSignificant(const JudgedPoint& judged, bool all, Page* page) {
  const PointResult& point = *judged.compared;
  std::string line = "FIRST MAJOR DIFFERENCE DETECTED AT ";
  if (point.layer >= 0) line += fmt::format("LAYER {}: ", point.layer);
  line += NameText(point.name);
  if (point.reasons.empty() && point.bound && judged.reference == nullptr) {
    line += fmt::format(", within {:.2e}, the bound for 16-bit arithmetic at this depth", *point.bound);
  }
  page->Line("", line, Color::kStrong);
  if (judged.fails || all) WriteEvidence(judged, page);
}

// A large difference, and yet no op is wrong.
void WriteInheritedRounding(const Judged& judged, Page* page) {
  const CompareResult& result = judged.compare;
  const bool large = result.first_significant || result.first_failing;
  if (!judged.reference || !judged.candidate || !large || judged.ExitCode() != 0) return;
  // Points in another basis differ by more than rounding.
  if (!judged.reference->layouts.empty() || !judged.candidate->layouts.empty()) return;
  std::string line = "INHERITED ROUNDING: no op is faulty on either side";
  if (result.growth) {
    const Growth& growth = *result.growth;
    const auto at = [](const Growth::At& layer) { return fmt::format("{:.2e} (L{})", layer.relative_l2, layer.layer); };
    line += fmt::format("; relative L2 of layer_output: {}, {}, {}: a factor of {:.3g} a layer", at(growth.first),
                        at(growth.middle), at(growth.last), growth.per_layer);
  }
  page->Line("", line, Color::kStrong);
}

}  // namespace

void WriteFirstDifference(const Judged& judged, const std::vector<JudgedPoint>& points, bool all, Page* page) {
  const JudgedPoint* significant =
      judged.compare.first_significant ? &points[*judged.compare.first_significant] : nullptr;
  if (significant != nullptr) WriteSignificant(*significant, all, page);
  const auto failing = std::find_if(points.begin(), points.end(), [](const JudgedPoint& point) { return point.fails; });
  if (failing != points.end() && &*failing != significant) {
    page->Line("", "FIRST POINT THAT FAILS: " + NameText(failing->compared->name), Color::kStrong);
    WriteEvidence(*failing, page);
  }
  WriteInheritedRounding(judged, page);
}

}  // namespace lockstep
