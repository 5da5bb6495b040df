#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "lockstep/dtype.h"
#include "lockstep/report.h"
#include "report/columns.h"
#include "report/finding.h"
#include "report/paint.h"
#include "report/words.h"

namespace lockstep {
namespace {

using ErrorColumn = Column<LocalError>;

ErrorColumn Error(const char* title, int keep, double LocalError::*value) {
  return {fmt::format("{:>10}", title), keep,
          [value](const LocalError& point) { return fmt::format("{:>10}", NoiseCell(point.*value)); }};
}

std::vector<ErrorColumn> AllColumns(size_t op_width) {
  return {{Padded("op", op_width), 1, [op_width](const LocalError& p) { return Padded(p.op, op_width); }},
          {fmt::format("{:>6}", "rows"), 3, [](const LocalError& p) { return fmt::format("{:>6}", p.rows); }},
          Error("worst row", 6, &LocalError::worst_row),
          {fmt::format("{:>10}", "worst head"), 5,
           [](const LocalError& p) {
             return fmt::format("{:>10}", p.worst_head_at.head < 0 ? "-" : NoiseCell(p.worst_head));
           }},
          Error("whole", 2, &LocalError::whole),
          Error("max", 4, &LocalError::max),
          {fmt::format("{:>18}", "scale"), 0, [](const LocalError& p) {
             // The sign shows the way; "±" is two bytes and one character.
             const std::string text = ScaleText(p);
             return std::string(18 - std::min<size_t>(18, TextWidth(text)), ' ') + text;
           }}};
}

std::string ArithmeticText(const ReplayResult& replay) {
  const Arithmetic& a = replay.arithmetic;
  std::string text(DTypeName(a.storage));
  if (a.operands != a.storage) text += fmt::format(", operands {}", DTypeName(a.operands));
  if (a.cache != a.storage) text += fmt::format(", cache {}", DTypeName(a.cache));
  text += fmt::format(", accumulated in {}", DTypeName(a.accumulate));
  return text + (replay.has_arithmetic ? "" : " (not declared; inferred from the data)");
}

class ReplayWriter {
 public:
  ReplayWriter(const Diagnosis& diagnosis, const TextOptions& options)
      : diagnosis_(diagnosis),
        points_(diagnosis.replay.points),
        options_(options),
        width_(std::max(kNarrowest, static_cast<size_t>(std::max(0, options.width)))) {}

  std::string Write() {
    const ReplayResult& replay = diagnosis_.replay;
    Rule();
    Line("REPLAY OF EVERY OP", Color::kStrong);
    Rule();
    for (const std::string& trace : replay.traces) Line("trace      " + Message(trace));
    Line("model      " + Message(replay.model));
    Line("arithmetic " + ArithmeticText(replay));
    out_ += Wrapped("replay     ", ReplayCounts(replay), width_);
    out_ += FindingsText(diagnosis_, "", width_, options_.color);
    if (!points_.empty()) WriteTable();
    Rule();
    for (const std::string& note : replay.notes) Line("note: " + Message(note));
    WriteVerdict();
    Rule();
    return std::move(out_);
  }

 private:
  void Line(const std::string& text, Color color = Color::kNone) { out_ += Paint(text, color, options_.color) + "\n"; }
  void Rule() { Line(std::string(std::min<size_t>(width_, 120), '=')); }
  static std::string Message(const std::string& text) { return Shortened(Escaped(text), 600); }

  void WriteTable() {
    Measure();
    Rule();
    Line(fmt::format("  verdict {} {}{}", Padded("layer", layer_width_), Padded("point", name_width_),
                     TitlesOf(columns_)));
    const bool fold = !options_.all && points_.size() > kLongTable;
    for (size_t i = 0; i < points_.size();) {
      const size_t end = fold ? EndOfClean(i) : i;
      if (end > i) {
        WriteFolded(i, end);
      } else {
        WriteRow(points_[i]);
      }
      i = std::max(end, i + 1);
    }
  }

  void Measure() {
    size_t natural = 5, op_width = 2;
    for (const LocalError& point : points_) {
      layer_width_ = std::max(layer_width_, LayerLabel(point.layer, point.name).size());
      natural = std::max(natural, TextWidth(Escaped(point.point)));
      op_width = std::max(op_width, point.op.size());
    }
    columns_ = AllColumns(op_width);
    const size_t fixed = 2 + 8 + layer_width_ + 1;
    FitColumns(width_ > fixed + natural ? width_ - fixed - natural : 0, &columns_);
    const size_t figures = fixed + WidthOf(columns_);
    name_width_ = std::min(natural, std::max(width_ > figures ? width_ - figures : 0, kNarrowestName));
  }

  static bool NothingToTell(const LocalError& point) {
    return point.layer >= 0 && (point.verdict == OpVerdict::kClean || point.verdict == OpVerdict::kNotObservable);
  }

  // The end of a long run, from `begin` on, of ops of layers that are not suspect or faulty; `begin` where there is
  // none.
  size_t EndOfClean(size_t begin) const {
    constexpr size_t kLongRun = 4;
    size_t end = begin;
    while (end < points_.size() && NothingToTell(points_[end])) ++end;
    return end - begin >= kLongRun ? end : begin;
  }

  void WriteFolded(size_t begin, size_t end) {
    double row = 0, head = 0, max = 0;
    size_t not_observable = 0;
    for (size_t i = begin; i < end; ++i) {
      row = std::max(row, points_[i].worst_row);
      head = std::max(head, points_[i].worst_head);
      max = std::max(max, points_[i].max);
      not_observable += points_[i].verdict == OpVerdict::kNotObservable;
    }
    std::string text = fmt::format("{}: row <= {}, head <= {}, max <= {}", RunText(begin, end), NoiseCell(row),
                                   NoiseCell(head), NoiseCell(max));
    if (not_observable > 0) text += fmt::format("; {} not observable", not_observable);
    Line(fmt::format("  {} {} {}", Paint("clean  ", Color::kGood, options_.color),
                     Padded(LayerRange(points_[begin].layer, points_[end - 1].layer), layer_width_), text));
  }

  // "all 54 ops" of whole layers, else "7 ops from attn_k_rope to layer_output".
  std::string RunText(size_t begin, size_t end) const {
    const bool from_start = begin == 0 || points_[begin - 1].layer != points_[begin].layer;
    const bool to_end = end == points_.size() || points_[end].layer != points_[end - 1].layer;
    const std::string count = Count(end - begin, "op");
    if (from_start && to_end) return "all " + count;
    return fmt::format("{} from {} to {}", count, points_[begin].point, points_[end - 1].point);
  }

  void WriteRow(const LocalError& point) {
    const bool judged = point.rows > 0;
    const std::string verdict = fmt::format("{:<7}", VerdictWord(point.verdict));
    const std::string line = fmt::format("  {} {} {}", Paint(verdict, ColorOf(point.verdict), options_.color),
                                         Padded(LayerLabel(point.layer, point.name), layer_width_),
                                         Padded(Shortened(Escaped(point.point), name_width_), name_width_));
    Line(judged ? line + CellsOf(columns_, point) : line + " " + point.op);
    const std::string indent(10, ' ');
    if (point.bridged) out_ += Wrapped(indent, "recomputed from " + Listed(point.from), width_);
    if (!point.reasons.empty())
      out_ += Wrapped(indent, Message(fmt::format("{}", fmt::join(point.reasons, "; "))), width_);
  }

  static std::string Listed(const std::vector<std::string>& names) {
    constexpr size_t kShown = 6;
    std::string text;
    for (size_t i = 0; i < std::min(names.size(), kShown); ++i) {
      text.append(i == 0 ? "" : ", ").append(Shortened(Escaped(names[i]), 64));
    }
    return names.size() > kShown ? text + fmt::format(" and {} more", names.size() - kShown) : text;
  }

  void WriteVerdict() {
    const ReplayResult& replay = diagnosis_.replay;
    if (diagnosis_.ExitCode() == 0) {
      return Line(
          replay.suspect == 0 ? "VERDICT: CLEAN" : "VERDICT: CLEAN (" + Count(replay.suspect, "suspect op") + ")",
          Color::kGood);
    }
    std::vector<std::string> parts;
    if (replay.first_faulty) {
      const std::string& name = points_[*replay.first_faulty].name;
      parts.push_back(Count(replay.faulty, "op") + ", the first " + Shortened(Escaped(name), 64));
    }
    if (!replay.weights.empty()) parts.push_back(Count(replay.weights.size(), "weight") + " not the checkpoint's");
    Line(fmt::format("VERDICT: FAULTY ({})", fmt::join(parts, "; ")), Color::kBad);
  }

  const Diagnosis& diagnosis_;
  const std::vector<LocalError>& points_;
  const TextOptions& options_;
  const size_t width_;
  std::vector<ErrorColumn> columns_;
  size_t layer_width_ = 5, name_width_ = 0;
  std::string out_;
};

}  // namespace

std::string TextReport(const Diagnosis& diagnosis, const TextOptions& options) {
  return ReplayWriter(diagnosis, options).Write();
}

}  // namespace lockstep
