#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "lockstep/dtype.h"
#include "lockstep/report.h"
#include "report/columns.h"
#include "report/finding.h"
#include "report/fold.h"
#include "report/page.h"
#include "report/verdict.h"
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

bool Matters(const LocalError& point) {
  return point.verdict == OpVerdict::kSuspect || point.verdict == OpVerdict::kFaulty;
}

// A line of the table: an op, or a run of them by the worst figures in it.
struct ErrorRow {
  LocalError error;
  std::string layer, name;
  bool folded = false;
};

void AddWorst(const LocalError& error, LocalError* worst) {
  worst->verdict = std::max(worst->verdict, error.verdict);
  if (error.rows == 0) return;
  worst->rows = std::max(worst->rows, error.rows);
  worst->worst_row = Worse(error.worst_row, worst->worst_row);
  worst->worst_head = Worse(error.worst_head, worst->worst_head);
  if (error.worst_head_at.head >= 0) worst->worst_head_at = error.worst_head_at;
  worst->whole = Worse(error.whole, worst->whole);
  worst->max = Worse(error.max, worst->max);
  if (worst->scale_error == 0 || std::abs(error.scale) > std::abs(worst->scale)) {
    worst->scale = error.scale;
    worst->scale_error = error.scale_error;
  }
}

// "L0-L27", "504 ops, 1 FAULTY, 28 n.o."
ErrorRow RunOf(const std::vector<LocalError>& points, const Stretch& stretch) {
  const LocalError &first = points[stretch.begin], &last = points[stretch.end - 1];
  ErrorRow row;
  row.folded = true;
  row.error.layer = first.layer;
  row.layer = first.layer == last.layer ? LayerLabel(first.layer, first.name) : LayerRange(first.layer, last.layer);
  size_t faulty = 0, suspect = 0, not_observable = 0;
  for (size_t i = stretch.begin; i < stretch.end; ++i) {
    faulty += points[i].verdict == OpVerdict::kFaulty;
    suspect += points[i].verdict == OpVerdict::kSuspect;
    not_observable += points[i].verdict == OpVerdict::kNotObservable;
    if (points[i].verdict != OpVerdict::kNotObservable) AddWorst(points[i], &row.error);
  }
  row.name = Count(stretch.end - stretch.begin, "op");
  if (faulty > 0) row.name += fmt::format(", {} FAULTY", faulty);
  if (suspect > 0) row.name += fmt::format(", {} SUSPECT", suspect);
  if (not_observable > 0) row.name += fmt::format(", {} n.o.", not_observable);
  if (row.error.rows == 0) row.error.verdict = OpVerdict::kNotObservable;
  return row;
}

class ReplayTable {
 public:
  ReplayTable(const std::vector<LocalError>& points, bool all, Page* page) : page_(page) {
    const FoldedRows rows = {points.size(), [&](size_t i) { return Matters(points[i]); },
                             [&](size_t i) { return points[i].layer >= 0; }};
    size_t natural = 5, op_width = 2;
    for (const Stretch& stretch : Fold(rows, all)) {
      const LocalError& point = points[stretch.begin];
      const ErrorRow& row = rows_.emplace_back(
          stretch.folded() ? RunOf(points, stretch)
                           : ErrorRow{point, LayerLabel(point.layer, point.name), Escaped(point.point)});
      layer_width_ = std::max(layer_width_, row.layer.size());
      natural = std::max(natural, TextWidth(row.name));
      op_width = std::max(op_width, row.error.op.size());
    }
    columns_ = AllColumns(op_width);
    name_width_ = FitNames(page->width(), 2 + 8 + layer_width_ + 1, natural, &columns_);
  }

  void Write() {
    page_->Add(WithoutBlanksAtTheEnd(fmt::format("  verdict {} {}{}", Padded("layer", layer_width_),
                                                 Padded("point", name_width_), TitlesOf(columns_))) +
               "\n");
    for (const ErrorRow& row : rows_) WriteRow(row);
  }

 private:
  void WriteRow(const ErrorRow& row) {
    const LocalError& error = row.error;
    const std::string verdict = fmt::format("{:<7}", VerdictWord(error.verdict));
    const std::string cells = error.rows > 0 ? CellsOf(columns_, error) : columns_.empty() ? "" : " " + error.op;
    page_->Add(WithoutBlanksAtTheEnd(fmt::format("  {} {} {}{}", Paint(verdict, ColorOf(error.verdict), page_->color()),
                                                 Padded(row.layer, layer_width_),
                                                 Padded(Shortened(row.name, name_width_), name_width_), cells)) +
               "\n");
    const std::string indent(10, ' ');
    if (error.bridged) page_->Line(indent, "recomputed from " + Listed(error.from));
    if (!error.reasons.empty()) page_->Line(indent, MessageText(fmt::format("{}", fmt::join(error.reasons, "; "))));
  }

  static std::string Listed(const std::vector<std::string>& names) {
    constexpr size_t kShown = 6;
    std::string text;
    for (size_t i = 0; i < std::min(names.size(), kShown); ++i) {
      text.append(i == 0 ? "" : ", ").append(NameText(names[i]));
    }
    return names.size() > kShown ? text + fmt::format(" and {} more", names.size() - kShown) : text;
  }

  Page* page_;
  std::vector<ErrorRow> rows_;
  std::vector<ErrorColumn> columns_;
  size_t layer_width_ = 5, name_width_ = 0;
};

}  // namespace

std::string TextReport(const Diagnosis& diagnosis, const TextOptions& options) {
  const ReplayResult& replay = diagnosis.replay;
  Page page(options);
  page.Line("", "REPLAY OF EVERY OP", Color::kStrong);
  page.Rule();
  for (const std::string& trace : replay.traces) page.Line("trace      ", MessageText(trace));
  page.Line("model      ", MessageText(replay.model));
  page.Line("arithmetic ", ArithmeticText(replay));
  page.Line("replay     ", ReplayCounts(replay));
  WriteFindings(diagnosis, "", options.all, &page);
  page.Rule();
  if (!replay.points.empty()) {
    ReplayTable(replay.points, options.all, &page).Write();
    page.Rule();
  }
  for (const std::string& note : replay.notes) page.Line("note: ", MessageText(note));
  page.Line("VERDICT: ", VerdictText(diagnosis), diagnosis.ExitCode() == 0 ? Color::kGood : Color::kBad);
  return page.Take();
}

}  // namespace lockstep
