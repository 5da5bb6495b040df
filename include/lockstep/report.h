// Printing a comparison and a replay. Nothing is computed here: every figure stands in the results.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lockstep/compare.h"
#include "lockstep/diagnose.h"
#include "lockstep/golden.h"
#include "lockstep/inspect.h"

namespace lockstep {

// A comparison, and what the replay of either side's trace says (Diagnose). A side that was not replayed has none.
struct Judged {
  CompareResult compare;
  std::optional<Diagnosis> reference, candidate;

  // 0: the same; 1: a locally faulty op on either side, a completeness failure, a different weight, or a point that
  // fails (JudgedPoint).
  int ExitCode() const;
};

struct JudgedPoint {
  const PointResult* compared = nullptr;
  const LocalError* reference = nullptr;  // null: not replayed
  const LocalError* candidate = nullptr;
  bool faulty = false;  // on either side
  // This point alone makes the run different: it is faulty, or misses the user's tolerance. Where the replay judged
  // every row of both sides, the classes and bounds of the comparison only describe; else they decide, too.
  bool fails = false;
};
// One for each of judged.compare.points. REQUIRES: `judged` outlives them.
std::vector<JudgedPoint> JudgedPoints(const Judged& judged);

struct TextOptions {
  bool color = false;
  int width = 120;   // of the terminal; long names are shortened to fit
  bool all = false;  // every point; else layers without anything to tell are folded when the table is long
};

std::string TextReport(const CompareResult& result, const TextOptions& options = {});
std::string TextReport(const Judged& judged, const TextOptions& options = {});
std::string TextReport(const Diagnosis& diagnosis, const TextOptions& options = {});
// With `all`, every tensor of every step.
std::string TextReport(const TraceListing& listing, const TextOptions& options = {});
// One tensor whole, several as a line each.
std::string TextReport(const std::vector<TensorLook>& looks, const TextOptions& options = {});
std::string TextReport(const CheckResult& result, const TextOptions& options = {});

// Everything, as one object; numbers that JSON lacks are the strings "NaN", "Infinity" and "-Infinity". "schema":
// "lockstep-compare/1", of a diagnosis alone "lockstep-replay/1", of a check
// "lockstep-check/1" (docs/compare.md, docs/replay.md, docs/golden.md).
std::string JsonReport(const CompareResult& result);
std::string JsonReport(const Judged& judged);
std::string JsonReport(const Diagnosis& diagnosis);
// "lockstep-show/1" (docs/show.md).
std::string JsonReport(const TraceListing& listing);
std::string JsonReport(const std::vector<TensorLook>& looks);
std::string JsonReport(const CheckResult& result);

// JUnit's XML: a test case a point; what makes the run different is a failure, what was not judged is skipped. Valid
// whatever the names hold.
std::string JunitReport(const Judged& judged);
std::string JunitReport(const Diagnosis& diagnosis);

// A page for the summary of a CI run, below 60 KB: verdict, findings, worst points, tokens. Nothing from a trace can
// become markup in it.
std::string MarkdownReport(const Judged& judged);
std::string MarkdownReport(const Diagnosis& diagnosis);

struct HtmlOptions {
  std::string command_line;                        // as it was given; may be empty
  std::function<std::string(int32_t)> token_text;  // empty: tokens are shown as ids
};
// One self-contained page (docs/report.md): no network, nothing from a trace can run in it. It holds the object of
// JsonReport, and draws what CompareOptions::details and ReplayOptions::details add; without them it says so.
std::string HtmlReport(const Judged& judged, const HtmlOptions& options = {});
std::string HtmlReport(const Diagnosis& diagnosis, const HtmlOptions& options = {});

// One line, escaped: "layer 0..27 attn_q_rope: op error 3.1e+04 noise units (clean: < 4), exact at position 0, grows
// with position -> rotates interleaved pairs instead of halves (explains it: 0.9; next best, theta 10000: 2.2e+04).
// Usual fix: …"
std::string FindingSentence(const Finding& finding);

// Names and messages come from traces and are not trusted: control characters (C0, DEL, C1), direction overrides, other
// invisible characters and bytes that are no UTF-8 become \xNN or \u{NNNN}, so that nothing moves a terminal's cursor.
std::string Escaped(std::string_view text);

}  // namespace lockstep
