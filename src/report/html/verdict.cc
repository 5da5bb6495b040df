#include "report/html/verdict.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "report/finding.h"
#include "report/words.h"

namespace lockstep {
namespace {

std::string Name(const std::string& name) { return Shortened(Escaped(name), 64); }

// "attn_q_rope of layers 0–4"
std::string SubjectOf(const Finding& finding) {
  if (finding.layers.empty()) return Name(finding.point);
  return fmt::format("{} of layer{} {}", Name(finding.point), finding.layers.size() == 1 ? "" : "s",
                     LayersText(finding.layers, "–"));
}

// The finding whose op runs first says where it breaks; `who` is "candidate", or empty.
void AddFindings(const Diagnosis& diagnosis, const std::string& who, std::vector<std::string>* parts) {
  const ReplayResult& replay = diagnosis.replay;
  const std::string in = who.empty() ? "" : " of the " + who;
  if (!diagnosis.findings.empty()) {
    const Finding& first = diagnosis.findings.front();
    std::string text = fmt::format("{}{}{}", SubjectOf(first), in, first.cause ? " " : " is wrong, unexplained");
    if (first.cause) text += Escaped(first.cause->text);
    if (diagnosis.findings.size() > 1) text += " (and " + Count(diagnosis.findings.size() - 1, "more fault") + ")";
    parts->push_back(text);
  } else if (replay.first_faulty) {
    parts->push_back(fmt::format("{}{} faulty, the first {}", Count(replay.faulty, "op"), in,
                                 Name(replay.points[*replay.first_faulty].name)));
  }
  if (!replay.weights.empty()) {
    parts->push_back(fmt::format("{}{} not the checkpoint's", Count(replay.weights.size(), "weight"), in));
  }
}

// Beyond what the replays say.
void AddFailing(const Judged& judged, std::vector<std::string>* parts) {
  const std::vector<JudgedPoint> points = JudgedPoints(judged);
  const auto beyond = [](const JudgedPoint& point) { return point.fails && !point.faulty; };
  const auto first = std::find_if(points.begin(), points.end(), beyond);
  if (first == points.end()) return;
  const auto count = static_cast<size_t>(std::count_if(points.begin(), points.end(), beyond));
  parts->push_back(
      fmt::format("{} beyond tolerance, the first {}", Count(count, "point"), Name(first->compared->name)));
}

std::string Sentence(std::string text) {
  if (!text.empty() && text[0] >= 'a' && text[0] <= 'z' && text.find('_') > text.find(' ')) text[0] -= 'a' - 'A';
  return text + ".";
}

std::string SameSentence(const Judged& judged) {
  const CompareResult& result = judged.compare;
  if (result.points.empty()) return "Nothing differs, but no point is in common.";
  if (result.bit_identical == result.points.size()) {
    return fmt::format("All {} are equal to the bit.", Count(result.points.size(), "point"));
  }
  if (!judged.reference || !judged.candidate) {
    return fmt::format("All {} agree within their bounds.", Count(result.points.size(), "point"));
  }
  if (!judged.reference->layouts.empty() || !judged.candidate->layouts.empty()) {
    return "No op is faulty on either side; some points hold their values in another layout.";
  }
  const bool large = result.first_significant || result.first_failing;
  return large ? "No op is faulty on either side; what differs is rounding, passed on and added up."
               : "No op is faulty on either side, and all points agree within rounding.";
}

}  // namespace

std::string VerdictSentence(const Judged& judged) {
  if (judged.ExitCode() == 0) return SameSentence(judged);
  std::vector<std::string> parts;
  if (judged.reference) AddFindings(*judged.reference, "reference", &parts);
  if (judged.candidate) AddFindings(*judged.candidate, "candidate", &parts);
  AddFailing(judged, &parts);
  if (!judged.compare.failures.empty()) parts.push_back(Count(judged.compare.failures.size(), "completeness failure"));
  if (!judged.compare.weights.empty()) parts.push_back(Count(judged.compare.weights.size(), "different weight"));
  return Sentence(fmt::format("{}", fmt::join(parts, "; ")));
}

std::string VerdictSentence(const Diagnosis& diagnosis) {
  if (diagnosis.ExitCode() == 0) {
    const size_t judged = diagnosis.replay.points.size() - diagnosis.replay.not_observable;
    return judged == 0 ? "No op could be judged."
                       : fmt::format("None of the {} is faulty.", Count(judged, "judged op"));
  }
  std::vector<std::string> parts;
  AddFindings(diagnosis, "", &parts);
  return Sentence(fmt::format("{}", fmt::join(parts, "; ")));
}

}  // namespace lockstep
