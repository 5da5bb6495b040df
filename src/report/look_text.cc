#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/ranges.h"
#include "report/columns.h"
#include "report/paint.h"
#include "report/words.h"

namespace lockstep {
namespace {

constexpr size_t kCell = 11;  // characters of a value, with the blank before it

std::string ValueText(double value) { return fmt::format("{:>{}.4g}", value, kCell); }

std::string SliceText(const TensorLook& look) {
  std::string text = fmt::format("{} {}", look.rows, look.rows == 1 ? "token" : "tokens");
  text +=
      fmt::format(" of sequence{} {}", look.sequences.size() == 1 ? "" : "s", RangesText(look.sequences, ", ", "-", 6));
  for (const ChosenAxis& axis : look.axes) {
    const bool whole = static_cast<int64_t>(axis.index.size()) == axis.size;
    text += ", " + Shortened(Escaped(axis.name), 24) + " ";
    text += whole ? std::to_string(axis.size) : RangesText(axis.index, ",", "-", 6) + fmt::format(" of {}", axis.size);
  }
  return text;
}

class LookText {
 public:
  LookText(const TensorLook& look, const TextOptions& options)
      : look_(look), options_(options), width_(std::max(static_cast<size_t>(options.width), kNarrowest)) {}

  std::string Write() {
    out_ += Paint(Shortened(Escaped(look_.name), width_ - 8), Color::kStrong, options_.color) + " " +
            DTypeName(look_.dtype) + "\n";
    Say("chosen", SliceText(look_));
    for (const std::string& problem : look_.problems) {
      Say("problem", Paint(Shortened(Escaped(problem), 300), Color::kBad, options_.color));
    }
    if (look_.other) {
      Side("reference", look_.stats);
      Side("candidate", *look_.other);
      Difference(*look_.difference);
    } else {
      Stats(look_.stats);
      Histogram(look_.stats);
    }
    Values();
    return std::move(out_);
  }

 private:
  void Say(const std::string& label, const std::string& text) {
    out_ += Wrapped(fmt::format("{:<11}", label), text, width_);
  }

  void NotFinite(const ValueStats& stats) {
    if (stats.masked > 0) Say("masked", fmt::format("{} scores, in no figure", stats.masked));
    if (stats.first_nan) {
      Say("NaN", Paint(fmt::format("{}, the first at {}", stats.nans, PlaceText(*stats.first_nan)), Color::kBad,
                       options_.color));
    }
    if (stats.first_inf) {
      Say("Inf", Paint(fmt::format("{}, the first at {}", stats.infs, PlaceText(*stats.first_inf)), Color::kBad,
                       options_.color));
    }
  }

  void Stats(const ValueStats& stats) {
    Say("values", fmt::format("{}{}", stats.count, stats.finite == stats.count ? ", all finite" : ""));
    NotFinite(stats);
    if (stats.finite == 0) return;
    Say("mean", fmt::format("{:.6g}  std {:.6g}  rms {:.6g}", stats.mean, stats.std, stats.rms));
    Say("min", fmt::format("{:.6g} at {}", stats.min, PlaceText(stats.min_at)));
    Say("max", fmt::format("{:.6g} at {}", stats.max, PlaceText(stats.max_at)));
    std::string quantiles;
    for (size_t i = 0; i < kQuantiles.size(); ++i) {
      quantiles += fmt::format("{}{:g}% {:.4g}", i ? "  " : "", kQuantiles[i] * 100, stats.quantiles[i]);
    }
    Say("quantiles", quantiles);
  }

  // Blocks of eight heights; the square root keeps thin tails visible.
  void Histogram(const ValueStats& stats) {
    if (stats.finite == 0 || stats.min == stats.max) return;
    constexpr const char* kBlocks[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    const auto most = static_cast<double>(*std::max_element(stats.histogram.begin(), stats.histogram.end()));
    std::string bars;
    for (const int64_t count : stats.histogram) {
      bars += kBlocks[static_cast<size_t>(std::ceil(8 * std::sqrt(static_cast<double>(count) / most)))];
    }
    out_ += fmt::format("{:<11}{:.4g} |{}| {:.4g}  (height: square root of the count, the highest {:.0f})\n",
                        "histogram", stats.min, bars, stats.max, most);
  }

  void Side(const char* name, const ValueStats& stats) {
    if (stats.finite > 0) {
      Say(name, fmt::format("mean {:.6g}  std {:.6g}  rms {:.6g}  min {:.6g}  max {:.6g}", stats.mean, stats.std,
                            stats.rms, stats.min, stats.max));
    }
    NotFinite(stats);
  }

  void Difference(const SliceDifference& difference) {
    if (difference.identical) {
      Say("difference", Paint(fmt::format("none in {} values", difference.elements), Color::kGood, options_.color));
    } else {
      Say("difference",
          fmt::format("max abs {:.6g}  mean abs {:.6g}  relative L2 {:.6g}  cosine {:.8f}", difference.max_abs,
                      difference.mean_abs, difference.relative_l2, difference.cosine));
    }
    if (difference.first_mismatch) {
      Say("mismatch", Paint(fmt::format("{} values NaN, infinite or masked on one side only, the first at {}",
                                        difference.mismatches, PlaceText(*difference.first_mismatch)),
                            Color::kBad, options_.color));
    }
    for (size_t i = 0; i < difference.largest.size(); ++i) {
      const auto& element = difference.largest[i];
      Say(i == 0 ? "largest" : "",
          fmt::format("{}: reference {:.9g}, candidate {:.9g}, difference {:.3g}", PlaceText(element.place),
                      element.reference, element.candidate, element.candidate - element.reference));
    }
    const size_t only = difference.only_reference + difference.only_candidate;
    if (only > 0) {
      Say("one side",
          fmt::format("{} of the reference and {} of the candidate have no partner in the whole tensor",
                      Count(difference.only_reference, "token"), Count(difference.only_candidate, "token")));
    }
  }

  void Values() {
    out_ += "\n";
    const size_t room = std::max<size_t>(1, (width_ - kLabel - 2) / kCell);
    size_t last = 0;
    for (const Excerpt::Row& row : look_.excerpt.rows) {
      if (row.number > last + 1) out_ += fmt::format("  … {}\n", Count(look_.excerpt.left_out, "more row"));
      last = row.number;
      const std::string label = fmt::format("seq {} pos {}", row.token.sequence, row.token.position);
      Line(label, row.values, room);
      if (row.other.empty()) continue;
      Line("  candidate", row.other, room);
      std::vector<double> differences(row.values.size());
      for (size_t i = 0; i < differences.size(); ++i) differences[i] = row.other[i] - row.values[i];
      Line("  difference", differences, room);
    }
  }

  // A row alone is shown on as many lines as it takes, others as far as the terminal goes.
  void Line(const std::string& label, const std::vector<double>& values, size_t room) {
    const bool alone = look_.excerpt.rows.size() == 1 && look_.excerpt.rows.front().other.empty();
    const size_t shown = alone ? values.size() : std::min(room, values.size());
    for (size_t begin = 0; begin < shown; begin += room) {
      out_ += fmt::format("{:<{}}", begin == 0 ? label : "", kLabel);
      const size_t end = std::min(begin + room, shown);
      for (size_t i = begin; i < end; ++i) out_ += ValueText(values[i]);
      const bool more = end == shown && static_cast<int64_t>(shown) < look_.excerpt.row_values;
      out_ += more ? " …\n" : "\n";
    }
  }

  static constexpr size_t kLabel = 18;
  const TensorLook& look_;
  const TextOptions& options_;
  size_t width_;
  std::string out_;
};

// A line each.
std::string Lines(const std::vector<TensorLook>& looks, const TextOptions& options) {
  const bool differ = looks.front().difference.has_value();
  size_t name_width = 5;
  for (const TensorLook& look : looks) name_width = std::max(name_width, TextWidth(Escaped(look.name)));
  const size_t width = std::max(static_cast<size_t>(options.width), kNarrowest);
  const size_t figures = 6 + 1 + 6 * 11;
  name_width = std::min(name_width, std::max<size_t>(kNarrowestName, width > figures ? width - figures : 0));
  std::string out = fmt::format("{} {:<5}", Padded("point", name_width), "dtype");
  for (const char* title : {"mean", "std", "min", "max"}) out += fmt::format("{:>11}", title);
  if (differ) {
    out += fmt::format("{:>11}{:>11}\n", "max_abs", "rel_l2");
  } else {
    out += fmt::format("{:>11}{:>11}\n", "median", "NaN+Inf");
  }
  for (const TensorLook& look : looks) {
    const ValueStats& stats = look.stats;
    out +=
        fmt::format("{} {:<5}", Padded(Shortened(Escaped(look.name), name_width), name_width), DTypeName(look.dtype));
    for (const double value : {stats.mean, stats.std, stats.min, stats.max}) out += ValueText(value);
    const int64_t bad = stats.nans + stats.infs;
    if (differ) {
      out += ValueText(look.difference->max_abs) + ValueText(look.difference->relative_l2);
    } else {
      out += ValueText(stats.quantiles[kQuantiles.size() / 2]) +
             Paint(fmt::format("{:>11}", bad), bad > 0 ? Color::kBad : Color::kNone, options.color);
    }
    out += look.problems.empty() ? "\n" : "  " + Shortened(Escaped(look.problems.front()), 60) + "\n";
  }
  return out;
}

}  // namespace

std::string TextReport(const std::vector<TensorLook>& looks, const TextOptions& options) {
  if (looks.empty()) return "";
  return looks.size() == 1 ? LookText(looks.front(), options).Write() : Lines(looks, options);
}

}  // namespace lockstep
