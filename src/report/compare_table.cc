#include "report/compare_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "report/columns.h"
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

Column<JudgedPoint> Figure(const char* title, int keep, double PointResult::*value) {
  return {fmt::format("{:>9}", title), keep,
          [value](const JudgedPoint& point) { return fmt::format("{:>9.2e}", point.compared->*value); }};
}

// Worst row of the op alone, and its verdict.
Column<JudgedPoint> OpError(const char* side, int keep, const LocalError* JudgedPoint::*local, bool color) {
  return {fmt::format("{:>7} {:<7}", "op err", side), keep, [local, color](const JudgedPoint& point) {
            const LocalError* error = point.*local;
            if (error == nullptr) return fmt::format("{:>7} {:<7}", "", "-");
            const bool figure = error->rows > 0;
            return Paint(
                fmt::format("{:>7} {:<7}", figure ? NoiseCell(error->worst_row) : "", VerdictWord(error->verdict)),
                ColorOf(error->verdict), color);
          }};
}

class Table {
 public:
  Table(const std::vector<JudgedPoint>& points, size_t width, const TextOptions& options)
      : points_(points), options_(options) {
    size_t natural = 5;
    for (const JudgedPoint& point : points) {
      layer_width_ = std::max(layer_width_, LayerLabel(point.compared->layer, point.compared->name).size());
      natural = std::max(natural, TextWidth(Escaped(point.compared->point)));
      shape_width_ = std::max(shape_width_, PointShape(*point.compared).size());
    }
    MakeColumns();
    const size_t fixed = 2 + 17 + layer_width_ + 1 + 1 + shape_width_;
    const size_t room = width > fixed ? width - fixed : 0;
    if (replayed_) FitColumns(room > natural ? room - natural : 0, &columns_);
    const size_t figures = WidthOf(columns_);
    name_width_ = std::min(natural, std::max(room > figures ? room - figures : 0, kNarrowestName));
  }

  std::string Write() const {
    std::string out = fmt::format("  {:<16} {} {} {}{}\n", "class", Padded("layer", layer_width_),
                                  Padded("point", name_width_), Padded("shape", shape_width_), TitlesOf(columns_));
    const bool fold = !options_.all && points_.size() > kLongTable;
    for (size_t i = 0; i < points_.size();) {
      const size_t end = fold ? EndOfExcellent(i) : i;
      out += end > i ? Folded(i, end) : Row(points_[i]);
      i = std::max(end, i + 1);
    }
    return out;
  }

 private:
  void MakeColumns() {
    const auto any = [&](const LocalError* JudgedPoint::*side) {
      return std::any_of(points_.begin(), points_.end(), [&](const JudgedPoint& p) { return p.*side != nullptr; });
    };
    columns_ = {Figure("max_abs", 3, &PointResult::max_abs), Figure("max_rel", 0, &PointResult::max_rel)};
    columns_.push_back({fmt::format("{:>9}", "cos_sim"), 2,
                        [](const JudgedPoint& point) { return fmt::format("{:>9.6f}", point.compared->cosine); }});
    columns_.push_back(Figure("token_l2", 4, &PointResult::worst_token_relative_l2));
    if (any(&JudgedPoint::reference)) {
      columns_.push_back(OpError("ref", 1, &JudgedPoint::reference, options_.color));
    }
    if (any(&JudgedPoint::candidate)) {
      columns_.push_back(OpError("cand", 5, &JudgedPoint::candidate, options_.color));
    }
    replayed_ = columns_.size() > 4;
  }

  static bool NothingToTell(const JudgedPoint& point) {
    const auto wrong = [](const LocalError* error) {
      return error != nullptr && (error->verdict == OpVerdict::kSuspect || error->verdict == OpVerdict::kFaulty);
    };
    return point.compared->diff_class == DiffClass::kExcellent && point.compared->reasons.empty() && !point.fails &&
           !wrong(point.reference) && !wrong(point.candidate);
  }

  // The end of a run of whole layers, from `begin` on, that are EXCELLENT throughout; `begin` where there is none.
  size_t EndOfExcellent(size_t begin) const {
    const auto layer = [&](size_t i) { return points_[i].compared->layer; };
    size_t end = begin;
    if (layer(begin) < 0 || (begin > 0 && layer(begin - 1) == layer(begin))) return begin;
    while (end < points_.size() && layer(end) >= 0) {
      size_t next = end;
      while (next < points_.size() && layer(next) == layer(end)) {
        if (!NothingToTell(points_[next])) return end;
        ++next;
      }
      end = next;
    }
    return end;
  }

  std::string Folded(size_t begin, size_t end) const {
    const std::string layers = LayerRange(points_[begin].compared->layer, points_[end - 1].compared->layer);
    return fmt::format("  {} {} all {}\n", Paint(fmt::format("{:<16}", "EXCELLENT"), Color::kGood, options_.color),
                       Padded(layers, layer_width_), Count(end - begin, "point"));
  }

  // The star marks a point that alone makes the run different.
  std::string Row(const JudgedPoint& point) const {
    const PointResult& compared = *point.compared;
    return fmt::format(
        "{} {} {} {} {}{}\n", point.fails ? '*' : ' ',
        Paint(fmt::format("{:<16}", DiffClassName(compared.diff_class)), ColorOf(compared.diff_class), options_.color),
        Padded(LayerLabel(compared.layer, compared.name), layer_width_),
        Padded(Shortened(Escaped(compared.point), name_width_), name_width_),
        Padded(PointShape(compared), shape_width_), CellsOf(columns_, point));
  }

  const std::vector<JudgedPoint>& points_;
  const TextOptions& options_;
  std::vector<Column<JudgedPoint>> columns_;
  bool replayed_ = false;
  size_t layer_width_ = 5, name_width_ = 0, shape_width_ = 5;
};

}  // namespace

std::string CompareTable(const std::vector<JudgedPoint>& points, size_t width, const TextOptions& options) {
  return Table(points, width, options).Write();
}

}  // namespace lockstep
