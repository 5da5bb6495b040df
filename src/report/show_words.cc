#include "report/show_words.h"

#include <fmt/format.h>

#include "report/words.h"

namespace lockstep {

std::string BytesText(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto size = static_cast<double>(bytes);
  size_t unit = 0;
  while (size >= 1024 && unit + 1 < std::size(kUnits)) size /= 1024, ++unit;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.{}f} {}", size, size < 10 ? 2 : 1, kUnits[unit]);
}

std::string AilmentWord(AilmentKind kind) {
  switch (kind) {
    case AilmentKind::kNan: return "NaN";
    case AilmentKind::kInfinite: return "Inf";
    case AilmentKind::kAllZero: return "all zero";
    case AilmentKind::kZeroRows: return "zero rows";
    case AilmentKind::kFilledRows: return "never written";
    case AilmentKind::kConstantRows: return "constant rows";
    case AilmentKind::kSaturated: return "saturated";
    case AilmentKind::kHuge: return "huge";
    case AilmentKind::kTiny: return "tiny";
  }
  return "";
}

std::string AilmentText(const Ailment& ailment) {
  const auto what = [&]() -> std::string {
    const auto count = static_cast<size_t>(ailment.count);
    switch (ailment.kind) {
      case AilmentKind::kNan: return fmt::format("{} NaN", count);
      case AilmentKind::kInfinite: return fmt::format("{} Inf", count);
      case AilmentKind::kAllZero: return "all zero in " + Count(count, "step");
      case AilmentKind::kZeroRows: return Count(count, "row") + " of zeros";
      case AilmentKind::kFilledRows:
        return fmt::format("{} of bytes {:#04x}: memory that nobody wrote", Count(count, "row"),
                           static_cast<int>(ailment.value));
      case AilmentKind::kConstantRows:
        return fmt::format("{} of one value, {:.6g}", Count(count, "row"), ailment.value);
      case AilmentKind::kSaturated: return Count(count, "value") + " at the largest of F16, 65504";
      case AilmentKind::kHuge:
        return fmt::format("{} above {:g}, the largest {:.3g}", Count(count, "magnitude"), kHugeMagnitude,
                           ailment.value);
      case AilmentKind::kTiny: return fmt::format("nothing above {:.2g} in {}", ailment.value, Count(count, "step"));
    }
    return "";
  };
  std::string text = fmt::format("{}; first in step {}", what(), ailment.step);
  if (ailment.rank > 0) text += fmt::format(" of rank {}", ailment.rank);
  if (ailment.first.position >= 0) text += ", " + PlaceText(ailment.first);
  return text;
}

std::string AxesText(int64_t rows, const ListedPoint& point) {
  std::string text = fmt::format("[token {}", rows);
  for (size_t i = 0; i < point.row_shape.size(); ++i) {
    const bool varies = point.shapes_differ && i + 1 == point.row_shape.size();
    text += point.axes.empty() ? ", " : ", " + Shortened(Escaped(point.axes[i]), 16) + " ";
    text += varies ? "varies" : std::to_string(point.row_shape[i]);
  }
  return text + "]";
}

}  // namespace lockstep
