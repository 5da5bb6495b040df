#include "replay/grid.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <unordered_set>

#include "base/convert.h"

namespace lockstep {
namespace {

template <typename T>
bool OnGrid(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(),
                     [](float value) { return !std::isfinite(value) || ToFloat(FromFloat<T>(value)) == value; });
}

bool EnoughDistinct(std::span<const float> values) {
  std::unordered_set<uint32_t> seen;
  for (const float value : values) {
    if (value == 0 || !std::isfinite(value)) continue;
    seen.insert(std::bit_cast<uint32_t>(value));
    if (seen.size() == kEnoughDistinct) return true;
  }
  return false;
}

// The most bits of fraction that a value needs.
int UsedFractionBits(std::span<const float> values) {
  uint32_t used = 0;
  for (const float value : values) {
    if (std::isfinite(value)) used |= std::bit_cast<uint32_t>(value) & 0x7FFFFFu;
  }
  return used == 0 ? 0 : 23 - std::countr_zero(used);
}

// Distinct magnitudes that are not zero, sorted; empty where `values` hold too few to tell.
std::vector<double> Magnitudes(std::span<const float> values) {
  constexpr size_t kLooked = 2048;
  std::vector<double> out;
  const size_t count = std::min(kLooked, values.size());
  for (size_t i = 0; i < count; ++i) {
    const float value = values[i * values.size() / count];
    if (value != 0 && std::isfinite(value)) out.push_back(std::abs(static_cast<double>(value)));
  }
  if (out.size() < kEnoughDistinct) return {};
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

struct Steps {
  int levels = 0;      // of the largest magnitude; 0: they are no multiples of a step
  size_t telling = 0;  // magnitudes that could have shown it
  bool clear = false;  // a dozen are telling, or most of a few levels
};

// Whether all magnitudes are whole multiples of `step`, as far as rounding of both (relative error `roundoff`) lets
// tell: values that small are near a multiple by chance in one case of eight.
Steps StepsOf(const std::vector<double>& magnitudes, double step, double roundoff) {
  constexpr double kMostLevels = 255;
  const auto count = static_cast<double>(magnitudes.size());
  const double levels = magnitudes.back() / step;
  const bool few = count <= 16;
  if (!(levels <= std::min(kMostLevels, (few ? 2 : 4) * count))) return {};  // most levels occur
  Steps steps;
  for (const double magnitude : magnitudes) {
    const double multiple = magnitude / step, slack = 2 * roundoff * multiple;
    if (slack > 0.125) break;
    if (std::abs(multiple - std::round(multiple)) > slack + 1e-9) return {};
    ++steps.telling;
  }
  steps.levels = static_cast<int>(std::lround(levels));
  steps.clear = steps.telling >= 12 || (few && steps.telling >= 6);
  return steps;
}

Steps StepsOf(const std::vector<double>& magnitudes, DType dtype) {
  const double roundoff = std::ldexp(1.0, -FractionBits(dtype) - 1);
  for (int multiple = 1; multiple <= 4; ++multiple) {  // that the smallest one is
    const Steps steps = StepsOf(magnitudes, magnitudes.front() / multiple, roundoff);
    if (steps.levels > 0) return steps;
  }
  return {};
}

// The most levels of a part, if the values of every part that can tell are multiples of a step of its own; else 0.
int LevelsOfParts(std::span<const float> values, size_t part, DType dtype) {
  constexpr size_t kTelling = 4, kTellingTogether = 24;
  Steps all;
  for (size_t begin = 0; begin + part <= values.size(); begin += part) {
    const std::vector<double> magnitudes = Magnitudes(values.subspan(begin, part));
    if (magnitudes.empty()) continue;
    const Steps steps = StepsOf(magnitudes, dtype);
    if (steps.levels == 0) return 0;
    if (steps.telling < kTelling) continue;
    all.levels = std::max(all.levels, steps.levels);
    all.telling += steps.telling;
    all.clear = all.clear || steps.clear;
  }
  return all.clear || all.telling >= kTellingTogether ? all.levels : 0;
}

}  // namespace

std::optional<DType> GridOf(std::span<const float> values) {
  if (!EnoughDistinct(values)) return std::nullopt;
  if (OnGrid<BF16>(values)) return DType::kBF16;
  return OnGrid<F16>(values) ? DType::kF16 : DType::kF32;
}

std::optional<std::string> CoarserGrid(std::span<const float> values, const std::vector<int64_t>& row_shape,
                                       DType dtype) {
  constexpr int kFewBits = 5;
  const int bits = UsedFractionBits(values);
  if (bits <= kFewBits && EnoughDistinct(values)) {
    return "a grid of " + std::to_string(bits) + (bits == 1 ? " bit" : " bits") + " of fraction, as of an 8-bit float";
  }
  size_t row = 1;
  for (const int64_t extent : row_shape) row *= static_cast<size_t>(extent);
  const auto text = [](int levels, const char* scope) {
    return "multiples of one step" + std::string(scope) + " up to " + std::to_string(levels) +
           ", as of an integer quantisation";
  };
  if (values.empty() || row == 0) return std::nullopt;
  if (const int levels = LevelsOfParts(values, values.size(), dtype)) return text(levels, "");
  if (const int levels = LevelsOfParts(values, row, dtype)) return text(levels, " a row");
  const auto last = static_cast<size_t>(row_shape.empty() ? 1 : row_shape.back());
  const int levels = last < row ? LevelsOfParts(values, last, dtype) : 0;
  return levels > 0 ? std::optional(text(levels, " a head")) : std::nullopt;
}

}  // namespace lockstep
