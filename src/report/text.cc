#include <fmt/format.h>

#include <string>
#include <vector>

#include "lockstep/dtype.h"
#include "lockstep/report.h"
#include "report/compare_table.h"
#include "report/finding.h"
#include "report/text_parts.h"
#include "report/verdict.h"

namespace lockstep {
namespace {

void WriteSide(const char* label, const SideSummary& side, Page* page) {
  std::string traces;
  for (const std::string& trace : side.traces) traces.append(traces.empty() ? "" : ", ").append(MessageText(trace));
  page->Line(label,
             fmt::format("{}: {}, {}, {}{}, {}, {}, {}, {}{}", traces,
                         NameText(side.producer.empty() ? "unnamed producer" : side.producer),
                         NameText(side.model_type.empty() ? "unnamed model" : side.model_type), DTypeName(side.storage),
                         side.has_arithmetic ? "" : " (undeclared)", Count(side.steps, "step"),
                         Count(side.sequences, "sequence"), Count(side.tokens, "token"), Count(side.points, "point"),
                         side.closed ? "" : ", NOT CLOSED"));
}

void WriteHeader(const CompareResult& result, Page* page) {
  WriteSide("reference  ", result.reference, page);
  WriteSide("candidate  ", result.candidate, page);
  size_t tokens = 0;
  for (const SequencePair& pair : result.pairs) tokens += pair.tokens;
  std::string text =
      fmt::format("{}, {}, {}; {}", Count(result.pairs.size(), "sequence"), Count(tokens, "token"),
                  Count(result.points.size(), "point"), result.failures.empty() ? "complete" : "NOT COMPLETE");
  if (result.weights_compared > 0 && result.weights.empty()) {
    text += fmt::format("; {}, all equal", Count(result.weights_compared, "weight"));
  }
  page->Line("compared   ", text);
}

std::string ReplayText(const char* side, const Diagnosis& diagnosis) {
  return fmt::format("{}: {}", side, ReplayCounts(diagnosis.replay));
}

void WriteReplays(const Judged& judged, Page* page) {
  const auto &reference = judged.reference, &candidate = judged.candidate;
  if (reference && candidate && reference->ExitCode() == 0 && candidate->ExitCode() == 0) {
    page->Line("replay     ", ReplayText("reference", *reference) + "; " + ReplayText("candidate", *candidate));
    return;
  }
  const auto write = [&](const char* name, const std::optional<Diagnosis>& side) {
    if (side) page->Line("replay     ", ReplayText(name, *side), side->ExitCode() == 0 ? Color::kNone : Color::kBad);
  };
  write("reference", reference);
  write("candidate", candidate);
}

void WriteReplayNotes(const std::optional<Diagnosis>& side, const char* name, Page* page) {
  if (!side) return;
  for (const std::string& note : side->replay.notes) {
    page->Line("note: ", fmt::format("replay of the {}: {}", name, MessageText(note)));
  }
}

void WriteCounts(const CompareResult& result, Page* page) {
  if (result.points.empty()) return;
  const auto count = [&](DiffClass c) { return result.class_counts[static_cast<size_t>(c)]; };
  page->Line("", fmt::format("EXCELLENT {} ({} to the bit), GOOD {}, ACCEPTABLE {}, SIGNIFICANT DIFF {}",
                             count(DiffClass::kExcellent), result.bit_identical, count(DiffClass::kGood),
                             count(DiffClass::kAcceptable), count(DiffClass::kSignificant)));
}

}  // namespace

std::string TextReport(const CompareResult& result, const TextOptions& options) {
  return TextReport(Judged{result}, options);
}

std::string TextReport(const Judged& judged, const TextOptions& options) {
  const CompareResult& result = judged.compare;
  const std::vector<JudgedPoint> points = JudgedPoints(judged);
  Page page(options);
  page.Line("", "TENSOR COMPARISON SUMMARY", Color::kStrong);
  page.Rule();
  WriteHeader(result, &page);
  WriteReplays(judged, &page);
  // What was found stands before the table.
  WriteFailures(result, options.all, &page);
  if (judged.reference) WriteFindings(*judged.reference, "reference: ", options.all, &page);
  if (judged.candidate) WriteFindings(*judged.candidate, "candidate: ", options.all, &page);
  WriteFirstDifference(judged, points, options.all, &page);
  page.Rule();
  if (!points.empty()) {
    page.Add(CompareTable(points, page.width(), options));
    page.Rule();
  }
  WriteTokens(result, &page);
  WriteOneSided(result, options.all, &page);
  for (const std::string& note : result.notes) page.Line("note: ", MessageText(note));
  WriteReplayNotes(judged.reference, "reference", &page);
  WriteReplayNotes(judged.candidate, "candidate", &page);
  WriteCounts(result, &page);
  page.Line("VERDICT: ", VerdictText(judged), judged.ExitCode() == 0 ? Color::kGood : Color::kBad);
  return page.Take();
}

}  // namespace lockstep
