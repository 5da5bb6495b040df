#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "lockstep/report.h"
#include "report/columns.h"
#include "report/compare_table.h"
#include "report/finding.h"
#include "report/paint.h"
#include "report/words.h"

namespace lockstep {
namespace {

class TextWriter {
 public:
  TextWriter(const Judged& judged, const TextOptions& options)
      : judged_(judged),
        result_(judged.compare),
        points_(JudgedPoints(judged)),
        options_(options),
        width_(std::max(kNarrowest, static_cast<size_t>(std::max(0, options.width)))) {}

  std::string Write() {
    Rule();
    Line("TENSOR COMPARISON SUMMARY", Color::kStrong);
    Rule();
    WriteHeader();
    WriteFailures();
    WriteWeights();
    WriteReplays();
    if (!result_.points.empty()) WriteTable();
    Rule();
    WriteFirstDifference();
    WriteInheritedRounding();
    WriteNextTokens();
    WriteTokens();
    WriteOneSided(result_.only_reference, "reference");
    WriteOneSided(result_.only_candidate, "candidate");
    for (const std::string& note : result_.notes) Line("note: " + Message(note));
    WriteReplayNotes(judged_.reference, "reference");
    WriteReplayNotes(judged_.candidate, "candidate");
    WriteCounts();
    WriteVerdict();
    Rule();
    return std::move(out_);
  }

 private:
  void Line(const std::string& text, Color color = Color::kNone) { out_ += Paint(text, color, options_.color) + "\n"; }
  void Rule() { Line(std::string(std::min<size_t>(width_, 120), '=')); }

  std::string Name(const std::string& name) const { return Shortened(Escaped(name), 64); }
  static std::string Message(const std::string& text) { return Shortened(Escaped(text), 600); }

  // ---- who is compared

  void WriteHeader() {
    WriteSide("reference", result_.reference);
    WriteSide("candidate", result_.candidate);
    size_t tokens = 0;
    for (const SequencePair& pair : result_.pairs) tokens += pair.tokens;
    Line(fmt::format("compared   {}, {}, {}", Count(result_.pairs.size(), "sequence"), Count(tokens, "token"),
                     Count(result_.points.size(), "point")));
    if (result_.failures.empty()) {
      Line("complete   yes");
    } else {
      Line("complete   NO: " + Count(result_.failures.size(), "failure"), Color::kBad);
    }
  }

  void WriteSide(const char* label, const SideSummary& side) {
    std::string traces;
    for (const std::string& trace : side.traces) traces.append("  ").append(Message(trace));
    Line(label + traces);
    Line(fmt::format(
        "           {}, {}, {}{}, {}, {}, {}, {}{}", Name(side.producer.empty() ? "unnamed producer" : side.producer),
        Name(side.model_type.empty() ? "unnamed model" : side.model_type), DTypeName(side.storage),
        side.has_arithmetic ? "" : " (undeclared)", Count(side.steps, "step"), Count(side.sequences, "sequence"),
        Count(side.tokens, "token"), Count(side.points, "point"), side.closed ? "" : ", NOT CLOSED"));
  }

  // ---- what is missing

  void WriteFailures() {
    for (const Failure& failure : result_.failures) {
      const std::string who = failure.point.empty() ? "" : Name(failure.point) + ": ";
      Line(fmt::format("FAILURE    {} ({}): {}{}", FailureKindName(failure.kind), SideName(failure.side), who,
                       Message(failure.text)),
           Color::kBad);
    }
  }

  void WriteWeights() {
    if (result_.weights_compared > 0 && result_.weights.empty()) {
      Line(fmt::format("weights    {} compared, all equal", result_.weights_compared));
    }
    for (const WeightDifference& weight : result_.weights) {
      Line(fmt::format("WEIGHT     {}: {}", Name(weight.name), Message(weight.text)), Color::kBad);
    }
  }

  // ---- the table

  void WriteTable() {
    Rule();
    out_ += CompareTable(points_, width_, options_);
  }

  // ---- what the replay found

  void WriteReplays() {
    WriteReplay(judged_.reference, "reference");
    WriteReplay(judged_.candidate, "candidate");
    if (judged_.reference) out_ += FindingsText(*judged_.reference, "reference: ", width_, options_.color);
    if (judged_.candidate) out_ += FindingsText(*judged_.candidate, "candidate: ", width_, options_.color);
  }

  void WriteReplay(const std::optional<Diagnosis>& side, const char* name) {
    if (!side) return;
    out_ += Paint(Wrapped("replay     ", fmt::format("{}: {}", name, ReplayCounts(side->replay)), width_),
                  side->ExitCode() == 0 ? Color::kNone : Color::kBad, options_.color);
  }

  void WriteReplayNotes(const std::optional<Diagnosis>& side, const char* name) {
    if (!side) return;
    for (const std::string& note : side->replay.notes) {
      Line(fmt::format("note: replay of the {}: {}", name, Message(note)));
    }
  }

  // A large difference, and yet no op is wrong.
  void WriteInheritedRounding() {
    const bool large = result_.first_significant || result_.first_failing;
    if (!judged_.reference || !judged_.candidate || !large || judged_.ExitCode() != 0) return;
    Line("INHERITED ROUNDING: no op is faulty on either side; what differs is rounding, passed on and added up",
         Color::kStrong);
    if (!result_.growth) return;
    const Growth& growth = *result_.growth;
    const auto at = [](const Growth::At& layer) { return fmt::format("{:.2e} (L{})", layer.relative_l2, layer.layer); };
    Line(fmt::format("   relative L2 of layer_output: {}, {}, {}: a factor of {:.3g} a layer", at(growth.first),
                     at(growth.middle), at(growth.last), growth.per_layer));
  }

  // ---- the first difference

  void WriteFirstDifference() {
    const JudgedPoint* significant = nullptr;
    if (result_.first_significant) {
      significant = &points_[*result_.first_significant];
      const PointResult& point = *significant->compared;
      const std::string where = point.layer >= 0 ? fmt::format("LAYER {}: ", point.layer) : "";
      Line(fmt::format("FIRST MAJOR DIFFERENCE DETECTED AT {}{}", where, Name(point.name)), Color::kStrong);
      WriteEvidence(*significant);
      if (point.reasons.empty() && point.bound) {
        Line(fmt::format("   within {:.2e}, the bound for 16-bit arithmetic at this depth", *point.bound));
      }
    }
    const JudgedPoint* failing = FirstFailing();
    if (failing != nullptr && failing != significant) {
      Line(fmt::format("FIRST POINT THAT FAILS: {}", Name(failing->compared->name)), Color::kStrong);
      WriteEvidence(*failing);
    }
  }

  const JudgedPoint* FirstFailing() const {
    const auto found =
        std::find_if(points_.begin(), points_.end(), [](const JudgedPoint& point) { return point.fails; });
    return found == points_.end() ? nullptr : &*found;
  }

  void WriteEvidence(const JudgedPoint& judged) {
    const PointResult& point = *judged.compared;
    WriteOpErrors(judged);
    for (const std::string& reason : point.reasons) Line("   " + Message(reason));
    if (point.elements > 0) {
      Line(fmt::format("   largest difference at {}: reference {}, candidate {}", PlaceText(point.worst),
                       point.worst_reference, point.worst_candidate));
      Line(fmt::format("   worst token at {}: relative L2 {:.3g}; smallest token cosine {:.6f}",
                       PlaceText(point.worst_token), point.worst_token_relative_l2, point.min_token_cosine));
    }
    if (point.worst_head >= 0) {
      Line(fmt::format("   worst head {}: relative L2 {:.3g}; smallest head cosine {:.6f}", point.worst_head,
                       point.worst_head_relative_l2, point.min_head_cosine));
    }
    if (point.first_non_finite_mismatch) {
      Line("   first NaN or infinity on one side only at " + PlaceText(*point.first_non_finite_mismatch));
    }
    if (point.first_mask_mismatch) Line("   masks first differ at " + PlaceText(*point.first_mask_mismatch));
  }

  void WriteOpErrors(const JudgedPoint& point) {
    std::vector<std::string> sides;
    const auto add = [&](const char* side, const LocalError* error) {
      if (error == nullptr) return;
      const std::string figure = error->rows == 0 ? "" : NoiseText(error->worst_row) + " ";
      sides.push_back(fmt::format("{} {}{}", side, figure, VerdictWord(error->verdict)));
    };
    add("reference", point.reference);
    add("candidate", point.candidate);
    if (!sides.empty()) Line(fmt::format("   op error in noise units: {}", fmt::join(sides, ", ")));
  }

  // ---- the rest

  void WriteNextTokens() {
    const NextTokens& tokens = result_.next_tokens;
    if (tokens.compared == 0) return;
    std::string line = fmt::format("next tokens: {} of {} agree", tokens.agree, tokens.compared);
    if (!tokens.differences.empty() && !HasLogits(tokens.differences.front())) {
      const NextTokens::Difference& first = tokens.differences.front();
      line += fmt::format("; the first that differs follows sequence {}, position {}: reference {}, candidate {}",
                          first.sequence, first.position, first.reference, first.candidate);
    }
    Line(line, tokens.agree == tokens.compared ? Color::kNone : Color::kWarning);
  }

  // Then the first different token stands with the logits.
  bool HasLogits(const NextTokens::Difference& difference) const {
    const TokenComparison& tokens = result_.tokens;
    if (!tokens.first_different) return false;
    const TokenRow& row = tokens.rows[*tokens.first_different];
    return row.sequence == difference.sequence && row.position == difference.position;
  }

  void WriteTokens() {
    const TokenComparison& tokens = result_.tokens;
    if (tokens.rows.empty()) return;
    Line(fmt::format("logits: {}; the largest agrees in {}; {}; of the 5 largest {:.3g} in common, of the 10 {:.3g}",
                     Count(tokens.rows.size(), "row"), tokens.same_top,
                     Count(static_cast<size_t>(tokens.near_ties), "near tie"), tokens.mean_common_top5,
                     tokens.mean_common_top10));
    if (tokens.max_kl_row) {
      const TokenRow& row = tokens.rows[*tokens.max_kl_row];
      Line(fmt::format("   KL divergence: mean {:.3g} nats, largest {:.3g} at {}", tokens.mean_kl, row.kl,
                       PlaceText({row.sequence, row.position})));
    }
    if (tokens.first_different) WriteFirstDifferentToken(tokens.rows[*tokens.first_different]);
  }

  void WriteFirstDifferentToken(const TokenRow& row) {
    Line(fmt::format("first different token after {}: reference {} (margin {:.3g}), candidate {} (margin {:.3g}); "
                     "logit noise {:.3g}: {}",
                     PlaceText({row.sequence, row.position}), row.reference.next, row.reference.margin,
                     row.candidate.next, row.candidate.margin, row.noise_rms,
                     row.near_tie       ? "a near tie"
                     : row.within_noise ? "noise that rounding does not explain"
                                        : "NOT a near tie"),
         row.near_tie ? Color::kNone : Color::kWarning);
  }

  void WriteOneSided(const std::vector<OneSidedPoint>& points, const char* side) {
    if (points.empty()) return;
    std::string line = fmt::format("only in the {}: {}", side, Count(points.size(), "point"));
    constexpr size_t kShown = 4;
    for (size_t i = 0; i < points.size() && (options_.all || i < kShown); ++i) {
      line += fmt::format("{} {} ({})", i == 0 ? ":" : ",", Name(points[i].name), points[i].why);
    }
    if (!options_.all && points.size() > kShown) line += ", …";
    Line(line);
  }

  void WriteCounts() {
    if (result_.points.empty()) return;
    const auto count = [&](DiffClass c) { return result_.class_counts[static_cast<size_t>(c)]; };
    Line(fmt::format("EXCELLENT {} ({} to the bit), GOOD {}, ACCEPTABLE {}, SIGNIFICANT DIFF {}",
                     count(DiffClass::kExcellent), result_.bit_identical, count(DiffClass::kGood),
                     count(DiffClass::kAcceptable), count(DiffClass::kSignificant)));
  }

  void WriteVerdict() {
    if (judged_.ExitCode() == 0) {
      const bool both = judged_.reference && judged_.candidate;
      return Line(both ? "VERDICT: SAME (no faulty op on either side)" : "VERDICT: SAME", Color::kGood);
    }
    std::vector<std::string> parts;
    AddFaulty(judged_.reference, "reference", &parts);
    AddFaulty(judged_.candidate, "candidate", &parts);
    AddBeyondTolerance(&parts);
    if (!result_.failures.empty()) parts.push_back(Count(result_.failures.size(), "completeness failure"));
    if (!result_.weights.empty()) parts.push_back(Count(result_.weights.size(), "different weight"));
    const std::string text = fmt::format("DIFFERENT ({})", fmt::join(parts, "; "));
    out_ += Paint(Wrapped("VERDICT: ", text, width_), Color::kBad, options_.color);
  }

  void AddFaulty(const std::optional<Diagnosis>& side, const char* name, std::vector<std::string>* parts) const {
    if (!side || !side->replay.first_faulty) return;
    parts->push_back(fmt::format("{} in the {}, the first {}", Count(side->replay.faulty, "faulty op"), name,
                                 Name(side->replay.points[*side->replay.first_faulty].name)));
  }

  void AddBeyondTolerance(std::vector<std::string>* parts) const {
    size_t count = 0;
    const JudgedPoint* first = nullptr;
    for (const JudgedPoint& point : points_) {
      if (!point.fails || point.faulty) continue;
      if (count++ == 0) first = &point;
    }
    if (first == nullptr) return;
    parts->push_back(
        fmt::format("{} beyond tolerance, the first {}", Count(count, "point"), Name(first->compared->name)));
  }

  const Judged& judged_;
  const CompareResult& result_;
  std::vector<JudgedPoint> points_;
  const TextOptions& options_;
  size_t width_;
  std::string out_;
};

}  // namespace

std::string TextReport(const CompareResult& result, const TextOptions& options) {
  return TextReport(Judged{result}, options);
}

std::string TextReport(const Judged& judged, const TextOptions& options) { return TextWriter(judged, options).Write(); }

}  // namespace lockstep
