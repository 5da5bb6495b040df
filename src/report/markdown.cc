// A page for the summary of a CI run: verdict, findings, worst points, tokens. What comes from a trace or a checkpoint
// stands in code spans, where Markdown knows no markup, no link and no mention. Lists are cut, so that the page stays
// below 60 KB.
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "lockstep/report.h"
#include "report/fold.h"
#include "report/verdict.h"
#include "report/words.h"

namespace lockstep {
namespace {

constexpr size_t kMostFindings = 12, kMostRows = 15;
constexpr size_t kMostBytes = 5000;  // of a table, less its last row; there are at most seven

// A code span that neither ends early nor breaks a table.
std::string Code(const std::string& text, size_t width) {
  std::string out;
  for (const char byte : Escaped(text)) {
    if (byte == '`' || byte == '|') {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
    } else {
      out += byte;
    }
  }
  out = Shortened(out, width);
  return "`" + (out.find_first_not_of(' ') == std::string::npos ? "-" : out) + "`";
}

std::string Name(const std::string& name) { return Code(name, 64); }
std::string Text(const std::string& text) { return Code(text, 240); }

// A table of at most `most` rows; nothing where the list is empty.
template <typename List, typename ToRow>
std::string Table(const std::string& title, const std::string& head, const List& list, size_t most, ToRow to_row) {
  if (list.empty()) return "";
  std::string out = fmt::format("\n### {}\n\n{}\n|", title, head);
  for (long column = std::count(head.begin(), head.end(), '|'); column > 1; --column) out += "---|";
  out += "\n";
  size_t shown = 0;
  for (const auto& item : list) {
    if (shown == most || out.size() > kMostBytes) break;
    out += to_row(item) + "\n";
    ++shown;
  }
  if (list.size() > shown) out += fmt::format("\n… and {} more\n", list.size() - shown);
  return out;
}

std::string OpCell(const LocalError* error) {
  if (error == nullptr) return "-";
  return (error->rows == 0 ? "" : NoiseCell(error->worst_row) + " ") + VerdictWord(error->verdict);
}

std::string Findings(const Diagnosis& diagnosis, const std::string& title) {
  std::string out = Table(title, "| op | layers | op error | cause | usual fix |", diagnosis.findings, kMostFindings,
                          [](const Finding& finding) {
                            const std::string layers =
                                finding.layers.empty() ? "-"
                                : finding.layers.front() == finding.layers.back()
                                    ? fmt::format("{}", finding.layers.front())
                                    : fmt::format("{}..{}", finding.layers.front(), finding.layers.back());
                            return fmt::format("| {} | {} | {} (clean: < {}) | {} | {} |", Name(finding.point), layers,
                                               NoiseText(finding.error), NoiseText(finding.clean),
                                               Text(finding.cause ? finding.cause->text : "unexplained"),
                                               Text(finding.cause ? finding.cause->advice : ""));
                          });
  return out + Table(title + ": weights", "| weight | |", diagnosis.replay.weights, kMostRows,
                     [](const WeightMismatch& weight) {
                       return fmt::format("| {} | {} |", Name(weight.name), Text(weight.text));
                     });
}

// Those that fail; where none does, the five that differ most.
std::string Points(const Judged& judged) {
  std::vector<JudgedPoint> points = JudgedPoints(judged), failing;
  std::copy_if(points.begin(), points.end(), std::back_inserter(failing), [](const JudgedPoint& p) { return p.fails; });
  const bool fail = !failing.empty();
  if (!fail) {
    std::stable_sort(points.begin(), points.end(), [](const JudgedPoint& a, const JudgedPoint& b) {
      return IsWorse(a.compared->worst_token_relative_l2, b.compared->worst_token_relative_l2);
    });
    points.resize(std::min<size_t>(points.size(), 5));
  }
  return Table(fail ? "Points that fail" : "Largest differences",
               "| point | class | max_abs | cos_sim | token_l2 | op err ref | op err cand |", fail ? failing : points,
               kMostRows, [](const JudgedPoint& judged_point) {
                 const PointResult& point = *judged_point.compared;
                 return fmt::format("| {} | {} | {:.2e} | {:.6f} | {:.2e} | {} | {} |", Name(point.name),
                                    DiffClassName(point.diff_class), point.max_abs, point.cosine,
                                    point.worst_token_relative_l2, OpCell(judged_point.reference),
                                    OpCell(judged_point.candidate));
               });
}

std::string Ops(const ReplayResult& replay) {
  std::vector<LocalError> points;
  std::copy_if(replay.points.begin(), replay.points.end(), std::back_inserter(points), [](const LocalError& error) {
    return error.verdict == OpVerdict::kSuspect || error.verdict == OpVerdict::kFaulty;
  });
  const bool wrong = !points.empty();
  if (!wrong) {
    points = replay.points;
    std::stable_sort(points.begin(), points.end(),
                     [](const LocalError& a, const LocalError& b) { return IsWorse(a.worst_row, b.worst_row); });
    points.resize(std::min<size_t>(points.size(), 5));
  }
  return Table(wrong ? "Ops that are faulty or suspect" : "Largest errors",
               "| point | op | verdict | worst row | worst head | max |", points, kMostRows,
               [](const LocalError& error) {
                 return fmt::format("| {} | {} | {} | {} | {} | {} |", Name(error.name), Name(error.op),
                                    VerdictWord(error.verdict), NoiseCell(error.worst_row), NoiseCell(error.worst_head),
                                    NoiseCell(error.max));
               });
}

std::string Tokens(const CompareResult& result) {
  std::string out;
  if (result.next_tokens.compared > 0) {
    out += fmt::format("\nNext tokens: {} of {} agree.\n", result.next_tokens.agree, result.next_tokens.compared);
  }
  const TokenComparison& tokens = result.tokens;
  if (tokens.rows.empty()) return out;
  out +=
      fmt::format("\nLogits: {}; the largest agrees in {}; {}; KL mean {:.3g} nats", Count(tokens.rows.size(), "row"),
                  tokens.same_top, Count(static_cast<size_t>(tokens.near_ties), "near tie"), tokens.mean_kl);
  if (tokens.max_kl_row) out += fmt::format(", largest {:.3g}", tokens.rows[*tokens.max_kl_row].kl);
  return out + ".\n";
}

std::string Missing(const CompareResult& result) {
  std::string out =
      Table("Completeness", "| what | side | point | |", result.failures, kMostRows, [](const Failure& failure) {
        return fmt::format("| {} | {} | {} | {} |", FailureKindName(failure.kind), SideName(failure.side),
                           Name(failure.point), Text(failure.text));
      });
  return out +
         Table("Weights that differ", "| weight | |", result.weights, kMostRows, [](const WeightDifference& weight) {
           return fmt::format("| {} | {} |", Name(weight.name), Text(weight.text));
         });
}

std::string Traces(const std::vector<std::string>& traces) {
  std::string out;
  for (size_t i = 0; i < std::min<size_t>(traces.size(), 4); ++i) out += (i == 0 ? "" : ", ") + Code(traces[i], 120);
  return traces.size() > 4 ? out + fmt::format(" and {} more", traces.size() - 4) : out;
}

}  // namespace

std::string MarkdownReport(const Judged& judged) {
  const CompareResult& result = judged.compare;
  std::string out = fmt::format("## Lockstep: {}\n\n{}\n\n", judged.ExitCode() == 0 ? "same" : "different",
                                Code(VerdictText(judged), 400));
  out += fmt::format("{} (reference) and {} (candidate): {}, {}.\n", Traces(result.reference.traces),
                     Traces(result.candidate.traces), Count(result.points.size(), "point"),
                     result.failures.empty() ? "complete" : "not complete");
  out += Missing(result);
  if (judged.reference) out += Findings(*judged.reference, "Findings in the reference");
  if (judged.candidate) out += Findings(*judged.candidate, "Findings in the candidate");
  return out + Points(judged) + Tokens(result);
}

std::string MarkdownReport(const Diagnosis& diagnosis) {
  const ReplayResult& replay = diagnosis.replay;
  std::string out = fmt::format("## Lockstep replay: {}\n\n{}\n\n", diagnosis.ExitCode() == 0 ? "clean" : "faulty",
                                Code(VerdictText(diagnosis), 400));
  out += fmt::format("{}: {}, {} clean, {} suspect, {} faulty, {} not observable.\n", Traces(replay.traces),
                     Count(replay.points.size(), "op"), replay.clean, replay.suspect, replay.faulty,
                     replay.not_observable);
  return out + Findings(diagnosis, "Findings") + Ops(replay);
}

}  // namespace lockstep
