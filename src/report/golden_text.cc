// What `check` prints: one screen where all is well, else the first point that drifted and the table of those that did.
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "lockstep/report.h"
#include "report/columns.h"
#include "report/paint.h"
#include "report/words.h"

namespace lockstep {
namespace {

using DriftColumn = Column<CheckedPoint>;

std::string ErrorText(double value) { return fmt::format("{:.2e}", value); }

std::string RowsText(const BlockDrift& block) {
  const Place &first = block.first, &last = block.last;
  if (block.rows == 1) return fmt::format("sequence {}, position {}", first.sequence, first.position);
  return fmt::format("sequence {}, positions {} to {}", first.sequence, first.position, last.position);
}

std::string PlacesCell(const CheckedPoint& point) {
  const BlockDrift& block = point.worst;
  if (block.rows == 0) return "-";
  if (block.rows == 1) return fmt::format("{}:{}", block.first.sequence, block.first.position);
  return fmt::format("{}:{}-{}", block.first.sequence, block.first.position, block.last.position);
}

std::vector<DriftColumn> AllColumns() {
  return {{fmt::format("{:>13}", "same blocks"), 1,
           [](const CheckedPoint& p) {
             return fmt::format("{:>13}", fmt::format("{} of {}", p.identical_blocks, p.blocks));
           }},
          {fmt::format("{:>9}", "rel_l2"), 4,
           [](const CheckedPoint& p) { return fmt::format("{:>9}", ErrorText(p.relative_l2)); }},
          {fmt::format("{:>9}", "+-"), 2,
           [](const CheckedPoint& p) { return fmt::format("{:>9}", ErrorText(p.standard_error)); }},
          {fmt::format("{:>9}", "worst"), 5,
           [](const CheckedPoint& p) { return fmt::format("{:>9}", ErrorText(p.worst.relative_l2)); }},
          {fmt::format("{:>9}", "bound"), 3,
           [](const CheckedPoint& p) { return fmt::format("{:>9}", p.bound ? ErrorText(*p.bound) : "-"); }},
          {fmt::format("{:>16}", "worst rows"), 6,
           [](const CheckedPoint& p) { return fmt::format("{:>16}", PlacesCell(p)); }}};
}

class CheckWriter {
 public:
  CheckWriter(const CheckResult& result, const TextOptions& options)
      : result_(result),
        options_(options),
        width_(std::max(kNarrowest, static_cast<size_t>(std::max(0, options.width)))) {}

  std::string Write() {
    Rule();
    Line("CHECK AGAINST A GOLDEN", Color::kStrong);
    Rule();
    WriteHeader();
    WriteFailures();
    if (options_.all || result_.drifted > 0) WriteTable();
    Rule();
    WriteFirstDrift();
    WriteLargestDrift();
    for (const std::string& note : result_.notes) Line("note: " + Message(note));
    WriteVerdict();
    Rule();
    return std::move(out_);
  }

 private:
  void Line(const std::string& text, Color color = Color::kNone) { out_ += Paint(text, color, options_.color) + "\n"; }
  void Rule() { Line(std::string(std::min<size_t>(width_, 120), '=')); }
  static std::string Name(const std::string& name) { return Shortened(Escaped(name), 64); }
  static std::string Message(const std::string& text) { return Shortened(Escaped(text), 600); }

  void WriteHeader() {
    Line(fmt::format("golden     {}  ({}, {})", Message(result_.golden), Name(result_.golden_producer),
                     Name(result_.golden_model)));
    for (const std::string& trace : result_.traces) {
      Line(fmt::format("trace      {}  ({})", Message(trace), Name(result_.producer)));
    }
    size_t tokens = 0;
    for (const SequencePair& pair : result_.pairs) tokens += pair.tokens;
    Line(fmt::format("compared   {}, {}, {}", Count(result_.pairs.size(), "sequence"), Count(tokens, "token"),
                     Count(result_.points.size(), "point")));
    Line(result_.failures.empty() ? "complete   yes" : "complete   NO: " + Count(result_.failures.size(), "failure"),
         result_.failures.empty() ? Color::kNone : Color::kBad);
  }

  void WriteFailures() {
    constexpr size_t kShown = 20;
    const size_t shown = options_.all ? result_.failures.size() : std::min(kShown, result_.failures.size());
    for (size_t i = 0; i < shown; ++i) {
      const Failure& failure = result_.failures[i];
      const std::string who = failure.point.empty() ? "" : Name(failure.point) + ": ";
      Line(fmt::format("FAILURE    {}: {}{}", FailureKindName(failure.kind), who, Message(failure.text)), Color::kBad);
    }
    if (shown < result_.failures.size())
      Line(fmt::format("           and {} more (--all)", result_.failures.size() - shown));
    if (!result_.arithmetic.empty()) {
      out_ += Paint(Wrapped("ARITHMETIC ", Message(result_.arithmetic), width_), Color::kBad, options_.color);
    }
    if (result_.weights_compared > 0 && result_.weights.empty()) {
      Line(fmt::format("weights    {} compared, all equal", result_.weights_compared));
    }
    for (const WeightDifference& weight : result_.weights) {
      Line(fmt::format("WEIGHT     {}: {}", Name(weight.name), Message(weight.text)), Color::kBad);
    }
  }

  void WriteTable() {
    std::vector<const CheckedPoint*> rows;
    for (const CheckedPoint& point : result_.points) {
      if (options_.all || !point.reasons.empty()) rows.push_back(&point);
    }
    size_t natural = kNarrowestName, layer_width = 5;
    for (const CheckedPoint* point : rows) {
      natural = std::max(natural, TextWidth(Escaped(point->point)));
      layer_width = std::max(layer_width, LayerLabel(point->layer, point->name).size());
    }
    std::vector<DriftColumn> columns = AllColumns();
    const size_t fixed = 2 + layer_width + 1;
    FitColumns(width_ > fixed + natural ? width_ - fixed - natural : 0, &columns);
    const size_t figures = fixed + WidthOf(columns);
    const size_t name_width = std::min(natural, std::max(width_ > figures ? width_ - figures : 0, kNarrowestName));
    Rule();
    Line(fmt::format("  {} {}{}", Padded("layer", layer_width), Padded("point", name_width), TitlesOf(columns)));
    constexpr size_t kShown = 20;
    const size_t shown = options_.all ? rows.size() : std::min(kShown, rows.size());
    for (size_t i = 0; i < shown; ++i) {
      const CheckedPoint& point = *rows[i];
      const std::string line = fmt::format(
          "{} {} {}{}", point.reasons.empty() ? " " : "*", Padded(LayerLabel(point.layer, point.name), layer_width),
          Padded(Shortened(Escaped(point.point), name_width), name_width), CellsOf(columns, point));
      Line(line, point.reasons.empty() ? Color::kNone : Color::kBad);
    }
    if (shown < rows.size()) Line(fmt::format("  and {} more drifted points behind them (--all)", rows.size() - shown));
  }

  void WriteFirstDrift() {
    if (!result_.first_drifted) return;
    const CheckedPoint& point = result_.points[*result_.first_drifted];
    Line("FIRST POINT THAT DRIFTED: " + Name(point.name), Color::kStrong);
    for (const std::string& reason : point.reasons) out_ += Wrapped("   ", Message(reason), width_);
    if (point.worst.rows > 0) Line("   worst rows: " + RowsText(point.worst));
    Line(fmt::format("   relative L2 of the point {:.3g} +- {:.2g}; {} of {} the same to the bit", point.relative_l2,
                     point.standard_error, point.identical_blocks, Count(point.blocks, "block")));
    Line(fmt::format("   std {:.6g}, in the golden {:.6g}; largest {:.6g}, in the golden {:.6g}", point.candidate.std,
                     point.golden.std, point.candidate.max, point.golden.max));
    if (*result_.first_drifted > 0) {
      Line("   the last point before it that is within its bound: " +
           Name(result_.points[*result_.first_drifted - 1].name));
    }
  }

  // Of what is within its bound: how near rounding came.
  void WriteLargestDrift() {
    Line(fmt::format("{} of {} the same to the bit", result_.bit_identical, Count(result_.points.size(), "point")));
    const CheckedPoint* largest = nullptr;
    for (const CheckedPoint& point : result_.points) {
      if (!point.reasons.empty() || point.bit_identical() || !point.bound || *point.bound == 0) continue;
      const auto share = [](const CheckedPoint& p) { return p.worst.relative_l2 / *p.bound; };
      if (largest == nullptr || share(point) > share(*largest)) largest = &point;
    }
    if (largest == nullptr) return;
    out_ += Wrapped(
        "",
        fmt::format("largest drift within its bound: {} at {}, relative L2 {} of {} allowed", Name(largest->name),
                    RowsText(largest->worst), ErrorText(largest->worst.relative_l2), ErrorText(*largest->bound)),
        width_);
  }

  void WriteVerdict() {
    if (result_.ExitCode() == 0) {
      const bool bits = result_.bit_identical == result_.points.size();
      return Line(bits ? "VERDICT: SAME (to the bit)" : "VERDICT: SAME (within rounding)", Color::kGood);
    }
    std::vector<std::string> parts;
    if (result_.first_drifted) {
      parts.push_back(fmt::format("{} drifted, the first {}", Count(result_.drifted, "point"),
                                  Name(result_.points[*result_.first_drifted].name)));
    }
    if (!result_.failures.empty()) parts.push_back(Count(result_.failures.size(), "completeness failure"));
    if (!result_.weights.empty()) parts.push_back(Count(result_.weights.size(), "different weight"));
    if (!result_.arithmetic.empty()) parts.push_back("another arithmetic");
    out_ += Paint(Wrapped("VERDICT: ", fmt::format("DRIFTED ({})", fmt::join(parts, "; ")), width_), Color::kBad,
                  options_.color);
  }

  const CheckResult& result_;
  const TextOptions& options_;
  const size_t width_;
  std::string out_;
};

}  // namespace

std::string TextReport(const CheckResult& result, const TextOptions& options) {
  return CheckWriter(result, options).Write();
}

}  // namespace lockstep
