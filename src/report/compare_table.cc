#include "report/compare_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <optional>

#include "report/columns.h"
#include "report/fold.h"
#include "report/paint.h"
#include "report/words.h"

namespace lockstep {
namespace {

Color ColorOf(DiffClass diff_class) {
  switch (diff_class) {
    case DiffClass::kExcellent:
    case DiffClass::kGood: return Color::kGood;
    case DiffClass::kAcceptable: return Color::kWarning;
    case DiffClass::kSignificant: return Color::kBad;
  }
  return Color::kNone;
}

// At most 16 characters, and 10 where the terminal is narrow: "SIGNIFICANT DIFF", "SIGN. DIFF"; of a run "EXC. to SIG."
std::string ClassText(DiffClass best, DiffClass worst, bool narrow) {
  if (best == worst) {
    return narrow && best == DiffClass::kSignificant ? "SIGN. DIFF" : std::string(DiffClassName(best));
  }
  constexpr const char* kShort[] = {"EXC.", "GOOD", "ACC.", "SIG."};
  return fmt::format("{}{}{}", kShort[static_cast<size_t>(best)], narrow ? "-" : " to ",
                     kShort[static_cast<size_t>(worst)]);
}

// A line of the table: a point, or a run of them by the worst figures in it.
struct TableRow {
  JudgedPoint point;
  DiffClass best = DiffClass::kExcellent, worst = DiffClass::kExcellent;
  std::string layer, name, shape;
  bool folded = false;
};

using TableColumn = Column<TableRow>;

TableColumn Figure(const char* title, int keep, double PointResult::*value) {
  return {fmt::format("{:>9}", title), keep,
          [value](const TableRow& row) { return fmt::format("{:>9.2e}", row.point.compared->*value); }};
}

// Worst row of the op alone, and its verdict.
TableColumn OpError(const char* side, int keep, const LocalError* JudgedPoint::*local, bool color) {
  return {fmt::format("{:>7} {:<7}", "op err", side), keep, [local, color](const TableRow& row) {
            const LocalError* error = row.point.*local;
            if (error == nullptr) return fmt::format("{:>7} {:<7}", "", "-");
            const bool figure = error->rows > 0;
            return Paint(
                fmt::format("{:>7} {:<7}", figure ? NoiseCell(error->worst_row) : "", VerdictWord(error->verdict)),
                ColorOf(error->verdict), color);
          }};
}

bool IsWrong(const LocalError* error) {
  return error != nullptr && (error->verdict == OpVerdict::kSuspect || error->verdict == OpVerdict::kFaulty);
}

bool Matters(const JudgedPoint& point) { return point.fails || IsWrong(point.reference) || IsWrong(point.candidate); }

void AddWorst(const PointResult& point, PointResult* worst) {
  worst->max_abs = Worse(point.max_abs, worst->max_abs);
  worst->max_rel = Worse(point.max_rel, worst->max_rel);
  worst->cosine = -Worse(-point.cosine, -worst->cosine);
  worst->worst_token_relative_l2 = Worse(point.worst_token_relative_l2, worst->worst_token_relative_l2);
}

// Of a run, a suspect op is worse than a clean one; what could not be observed says least.
int Rank(OpVerdict verdict) { return verdict == OpVerdict::kNotObservable ? -1 : static_cast<int>(verdict); }

void AddWorst(const LocalError* error, std::optional<LocalError>* worst) {
  if (error == nullptr) return;
  if (!*worst) *worst = *error;
  if ((*worst)->rows == 0 || Rank(error->verdict) > Rank((*worst)->verdict)) (*worst)->verdict = error->verdict;
  if (error->rows == 0) return;
  (*worst)->rows = std::max((*worst)->rows, error->rows);
  (*worst)->worst_row = Worse(error->worst_row, (*worst)->worst_row);
}

class Table {
 public:
  Table(const std::vector<JudgedPoint>& points, size_t width, const TextOptions& options)
      : points_(points), options_(options), narrow_(width < 100), class_width_(narrow_ ? 10 : 16) {
    const FoldedRows rows = {points.size(), [&](size_t i) { return Matters(points[i]); },
                             [&](size_t i) { return points[i].compared->layer >= 0; }};
    size_t natural = 5, shape_width = 5;
    for (const Stretch& stretch : Fold(rows, options.all)) {
      const TableRow& row = rows_.emplace_back(stretch.folded() ? RunOf(stretch) : RowOf(points[stretch.begin]));
      layer_width_ = std::max(layer_width_, row.layer.size());
      natural = std::max(natural, TextWidth(row.name));
      shape_width = std::max(shape_width, row.shape.size());
    }
    MakeColumns(shape_width);
    name_width_ = FitNames(width, 2 + class_width_ + 1 + layer_width_ + 1, natural, &columns_);
  }

  std::string Write() const {
    std::string out =
        WithoutBlanksAtTheEnd(fmt::format("  {:<{}} {} {}{}", "class", class_width_, Padded("layer", layer_width_),
                                          Padded("point", name_width_), TitlesOf(columns_))) +
        "\n";
    for (const TableRow& row : rows_) out += Line(row);
    return out;
  }

 private:
  void MakeColumns(size_t shape_width) {
    const auto any = [&](const LocalError* JudgedPoint::*side) {
      return std::any_of(points_.begin(), points_.end(), [&](const JudgedPoint& p) { return p.*side != nullptr; });
    };
    columns_.push_back({Padded("shape", shape_width), 1,
                        [shape_width](const TableRow& row) { return Padded(row.shape, shape_width); }});
    columns_.push_back(Figure("max_abs", 4, &PointResult::max_abs));
    columns_.push_back(Figure("max_rel", 0, &PointResult::max_rel));
    columns_.push_back({fmt::format("{:>9}", "cos_sim"), 3,
                        [](const TableRow& row) { return fmt::format("{:>9.6f}", row.point.compared->cosine); }});
    columns_.push_back(Figure("token_l2", 5, &PointResult::worst_token_relative_l2));
    if (any(&JudgedPoint::reference)) columns_.push_back(OpError("ref", 2, &JudgedPoint::reference, options_.color));
    if (any(&JudgedPoint::candidate)) columns_.push_back(OpError("cand", 6, &JudgedPoint::candidate, options_.color));
  }

  static TableRow RowOf(const JudgedPoint& point) {
    const PointResult& compared = *point.compared;
    return {point,
            compared.diff_class,
            compared.diff_class,
            LayerLabel(compared.layer, compared.name),
            Escaped(compared.point),
            PointShape(compared)};
  }

  TableRow RunOf(const Stretch& stretch) {
    TableRow row = RowOf(points_[stretch.begin]);
    PointResult& compared = compared_.emplace_back(*row.point.compared);
    row.point.compared = &compared;
    std::optional<LocalError> reference, candidate;
    size_t failing = 0;
    for (size_t i = stretch.begin; i < stretch.end; ++i) {
      const JudgedPoint& point = points_[i];
      AddWorst(*point.compared, &compared);
      AddWorst(point.reference, &reference);
      AddWorst(point.candidate, &candidate);
      row.best = std::min(row.best, point.compared->diff_class);
      row.worst = std::max(row.worst, point.compared->diff_class);
      failing += point.fails;
    }
    row.point.reference = Kept(reference);
    row.point.candidate = Kept(candidate);
    row.point.fails = failing > 0;
    row.folded = true;
    row.shape = "";
    const int last = points_[stretch.end - 1].compared->layer;
    if (last != compared.layer) row.layer = LayerRange(compared.layer, last);
    row.name = Count(stretch.end - stretch.begin, "point");
    if (failing > 0) row.name += fmt::format(", {} fail", failing);
    return row;
  }

  const LocalError* Kept(const std::optional<LocalError>& error) {
    return error ? &errors_.emplace_back(*error) : nullptr;
  }

  // The star marks a point that alone makes the run different.
  std::string Line(const TableRow& row) const {
    Color color = ColorOf(row.worst);
    if (row.folded && !row.point.fails && color == Color::kBad) color = Color::kWarning;
    const std::string diff_class = fmt::format("{:<{}}", ClassText(row.best, row.worst, narrow_), class_width_);
    return WithoutBlanksAtTheEnd(fmt::format("{} {} {} {}{}", row.point.fails ? '*' : ' ',
                                             Paint(diff_class, color, options_.color), Padded(row.layer, layer_width_),
                                             Padded(Shortened(row.name, name_width_), name_width_),
                                             CellsOf(columns_, row))) +
           "\n";
  }

  const std::vector<JudgedPoint>& points_;
  const TextOptions& options_;
  const bool narrow_;
  const size_t class_width_;
  std::deque<PointResult> compared_;  // of the runs
  std::deque<LocalError> errors_;
  std::vector<TableRow> rows_;
  std::vector<TableColumn> columns_;
  size_t layer_width_ = 5, name_width_ = 0;
};

}  // namespace

std::string CompareTable(const std::vector<JudgedPoint>& points, size_t width, const TextOptions& options) {
  return Table(points, width, options).Write();
}

}  // namespace lockstep
