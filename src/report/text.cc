#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "lockstep/report.h"
#include "report/words.h"

namespace lockstep {
namespace {

constexpr size_t kLongTable = 60;  // rows; beyond it, layers that are EXCELLENT throughout are folded
constexpr size_t kNarrowest = 80;

enum class Color { kNone, kGood, kWarning, kBad, kStrong };

class TextWriter {
 public:
  TextWriter(const CompareResult& result, const TextOptions& options)
      : result_(result),
        options_(options),
        width_(std::max(kNarrowest, static_cast<size_t>(std::max(0, options.width)))) {}

  std::string Write() {
    Rule();
    Line("TENSOR COMPARISON SUMMARY", Color::kStrong);
    Rule();
    WriteHeader();
    WriteFailures();
    WriteWeights();
    if (!result_.points.empty()) WriteTable();
    Rule();
    WriteFirstDifference();
    WriteNextTokens();
    WriteTokens();
    WriteOneSided(result_.only_reference, "reference");
    WriteOneSided(result_.only_candidate, "candidate");
    for (const std::string& note : result_.notes) Line("note: " + Message(note));
    WriteCounts();
    WriteVerdict();
    Rule();
    return std::move(out_);
  }

 private:
  std::string Paint(const std::string& text, Color color) const {
    if (!options_.color || color == Color::kNone) return text;
    constexpr const char* kCodes[] = {"", "\033[32m", "\033[33m", "\033[31m", "\033[1m"};
    return kCodes[static_cast<size_t>(color)] + text + "\033[0m";
  }

  void Line(const std::string& text, Color color = Color::kNone) { out_ += Paint(text, color) + "\n"; }
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
    MeasureColumns();
    Rule();
    Line(fmt::format("  {:<16} {:<{}} {} {} {:>9} {:>9} {:>9} {:>9}", "class", "layer", layer_width_,
                     Padded("point", name_width_), Padded("shape", shape_width_), "max_abs", "max_rel", "cos_sim",
                     "token_l2"));
    const std::vector<PointResult>& points = result_.points;
    const bool fold = !options_.all && points.size() > kLongTable;
    for (size_t i = 0; i < points.size();) {
      const size_t end = fold ? EndOfExcellent(i) : i;
      if (end > i) {
        WriteFolded(i, end);
        i = end;
      } else {
        WriteRow(points[i++]);
      }
    }
  }

  void MeasureColumns() {
    layer_width_ = 5, name_width_ = 5, shape_width_ = 5;
    for (const PointResult& point : result_.points) {
      layer_width_ = std::max(layer_width_, LayerLabel(point).size());
      name_width_ = std::max(name_width_, TextWidth(Escaped(point.point)));
      shape_width_ = std::max(shape_width_, PointShape(point).size());
    }
    const size_t others = 2 + 17 + layer_width_ + 1 + 1 + shape_width_ + 4 * 10;
    const size_t room = width_ > others ? width_ - others : 0;
    name_width_ = std::min(name_width_, std::max<size_t>(room, 12));
  }

  // The end of a run of whole layers, from `begin` on, that are EXCELLENT throughout; `begin` where there is none.
  size_t EndOfExcellent(size_t begin) const {
    const std::vector<PointResult>& points = result_.points;
    size_t end = begin;
    if (points[begin].layer < 0 || (begin > 0 && points[begin - 1].layer == points[begin].layer)) return begin;
    while (end < points.size() && points[end].layer >= 0) {
      size_t next = end;
      while (next < points.size() && points[next].layer == points[end].layer) {
        if (points[next].diff_class != DiffClass::kExcellent || !points[next].reasons.empty()) return end;
        ++next;
      }
      end = next;
    }
    return end;
  }

  void WriteFolded(size_t begin, size_t end) {
    const int first = result_.points[begin].layer, last = result_.points[end - 1].layer;
    const std::string layers = first == last ? fmt::format("L{}", first) : fmt::format("L{}-L{}", first, last);
    Line(fmt::format("  {} {} all {}", Paint(fmt::format("{:<16}", "EXCELLENT"), Color::kGood),
                     Padded(layers, layer_width_), Count(end - begin, "point")));
  }

  static Color ColorOf(const PointResult& point) {
    switch (point.diff_class) {
      case DiffClass::kExcellent:
      case DiffClass::kGood: return Color::kGood;
      case DiffClass::kAcceptable: return Color::kWarning;
      case DiffClass::kSignificant: return Color::kBad;
    }
    return Color::kNone;
  }

  // The star marks a point that alone makes the run different.
  void WriteRow(const PointResult& point) {
    Line(fmt::format("{} {} {} {} {} {:>9} {:>9} {:>9} {:>9}", point.reasons.empty() ? ' ' : '*',
                     Paint(fmt::format("{:<16}", DiffClassName(point.diff_class)), ColorOf(point)),
                     Padded(LayerLabel(point), layer_width_),
                     Padded(Shortened(Escaped(point.point), name_width_), name_width_),
                     Padded(PointShape(point), shape_width_), fmt::format("{:.2e}", point.max_abs),
                     fmt::format("{:.2e}", point.max_rel), fmt::format("{:.6f}", point.cosine),
                     fmt::format("{:.2e}", point.worst_token_relative_l2)));
  }

  // ---- the first difference

  void WriteFirstDifference() {
    if (result_.first_significant) {
      const PointResult& point = result_.points[*result_.first_significant];
      const std::string where = point.layer >= 0 ? fmt::format("LAYER {}: ", point.layer) : "";
      Line(fmt::format("FIRST MAJOR DIFFERENCE DETECTED AT {}{}", where, Name(point.name)), Color::kStrong);
      WriteEvidence(point);
      if (point.reasons.empty() && point.bound) {
        Line(fmt::format("   within {:.2e}, the bound for 16-bit arithmetic at this depth", *point.bound));
      }
    }
    if (result_.first_failing && result_.first_failing != result_.first_significant) {
      const PointResult& point = result_.points[*result_.first_failing];
      Line(fmt::format("FIRST POINT THAT FAILS: {}", Name(point.name)), Color::kStrong);
      WriteEvidence(point);
    }
  }

  void WriteEvidence(const PointResult& point) {
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
    if (result_.ExitCode() == 0) return Line("VERDICT: SAME", Color::kGood);
    std::vector<std::string> parts;
    if (result_.failing > 0) {
      parts.push_back(fmt::format("{} beyond tolerance, the first {}", Count(result_.failing, "point"),
                                  Name(result_.points[*result_.first_failing].name)));
    }
    if (!result_.failures.empty()) parts.push_back(Count(result_.failures.size(), "completeness failure"));
    if (!result_.weights.empty()) parts.push_back(Count(result_.weights.size(), "different weight"));
    Line(fmt::format("VERDICT: DIFFERENT ({})", fmt::join(parts, "; ")), Color::kBad);
  }

  const CompareResult& result_;
  const TextOptions& options_;
  size_t width_;
  size_t layer_width_ = 0, name_width_ = 0, shape_width_ = 0;
  std::string out_;
};

}  // namespace

std::string TextReport(const CompareResult& result, const TextOptions& options) {
  return TextWriter(result, options).Write();
}

}  // namespace lockstep
