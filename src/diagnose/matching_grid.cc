// Values that all lie somewhere special: at one number, at a bound, on a coarse grid.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>

#include "diagnose/matching.h"

namespace lockstep {
namespace {

constexpr int64_t kMinElements = 4;  // at one number
constexpr size_t kMinOnGrid = 64;    // values that a grid must hold
constexpr double kLogChance = -18;   // a chance of 1e-8 that values of one row lie on the grid by accident
constexpr double kMaxLevels = 32768;

// Significant bits of a number that f32 holds exactly; 64 of one that it does not.
int SignificantBits(double value) {
  const auto narrow = static_cast<float>(value);
  if (narrow != value) return 64;
  if (narrow == 0) return 0;
  int exponent = 0;
  const auto mantissa = static_cast<uint64_t>(std::ldexp(std::frexp(std::abs(value), &exponent), 53));
  return 53 - std::countr_zero(mantissa);
}

int StorageBits(DType storage) {
  switch (storage) {
    case DType::kBF16: return 8;
    case DType::kF16: return 11;
    default: return 24;
  }
}

std::string BitsText(int bits) {
  const char* dtype = bits == 11  ? " (f16 or tf32)"
                      : bits == 8 ? " (bf16)"
                      : bits == 4 ? " (fp8 e4m3)"
                      : bits == 3 ? " (fp8 e5m2)"
                                  : "";
  return std::to_string(bits) + " significant bits" + dtype;
}

// Captured values of the affected cells that are neither 0 nor infinite, of one row.
std::vector<double> Values(const Evidence& evidence, int64_t i, bool expected) {
  std::vector<double> out;
  const double* row = expected ? evidence.Expected(i) : evidence.Captured(i);
  for (int64_t c = 0; c < evidence.width(); ++c) {
    if (evidence.Affected(i, c) && std::isfinite(row[c]) && row[c] != 0) out.push_back(row[c]);
  }
  return out;
}

int MostBits(const Evidence& evidence, bool expected, size_t* count) {
  int bits = 0;
  for (const int64_t i : evidence.affected()) {
    const std::vector<double> values = Values(evidence, i, expected);
    for (const double value : values) bits = std::max(bits, SignificantBits(value));
    *count += values.size();
  }
  return bits;
}

// The step that all values are multiples of, up to their rounding to the storage; 0: there is none. Goes from small
// values, which tell it roughly, to large ones, which tell it exactly.
double StepOf(std::vector<double> values, int storage_bits) {
  if (values.size() < kMinOnGrid) return 0;
  for (double& value : values) value = std::abs(value);
  std::sort(values.begin(), values.end());
  const double relative = std::ldexp(0.5, 1 - storage_bits);
  for (int divisor = 1; divisor <= 3; ++divisor) {
    double cross = 0, square = 0, step = values.front() / divisor, log_chance = 0;
    bool fits = values.back() / step < kMaxLevels;
    for (size_t k = 0; k < values.size() && fits; ++k) {
      const double n = std::round(values[k] / step);
      const double tolerance = 1.5 * relative * n + 1e-9;
      // Chance counts only for what the smaller values have not settled already: repeated values say nothing new.
      fits = std::abs(values[k] / step - n) <= tolerance;
      if (k == 0 || values[k] != values[k - 1]) log_chance += std::log(std::min(1.0, 2 * tolerance));
      cross += values[k] * n / (n * n);
      square += 1;
      step = cross / square;
    }
    if (fits && log_chance < kLogChance) return step;
  }
  return 0;
}

// Whether the grid explains every affected value exactly. Near a border between two grid values noise decides; at least
// half of the values must be elsewhere, or the grid is too fine to tell.
bool GridExplains(const Evidence& evidence, const CoarseGrid& grid) {
  size_t exact = 0, count = 0;
  for (const int64_t i : evidence.affected()) {
    double largest = 0;
    for (int64_t c = 0; c < evidence.width(); ++c) largest = std::max(largest, std::abs(evidence.Expected(i)[c]));
    for (int64_t c = 0; c < evidence.width(); ++c) {
      const double y = evidence.Expected(i)[c],
                   noise = evidence.limits().max_suspect * std::sqrt(evidence.Variance(i, c));
      if (!evidence.Affected(i, c) || !std::isfinite(y)) continue;
      const double off = std::abs(evidence.Captured(i)[c] - grid.Round(y, largest)), step = grid.StepAt(y, largest);
      const bool border = grid.NearBorder(y, largest, noise);
      if (!(off <= (border ? noise + step : 1e-3 * step + (grid.bits == 0) * noise))) return false;
      exact += !border;
      ++count;
    }
  }
  return exact >= kMinOnGrid && 2 * exact >= count;
}

// The step of the subnormal numbers of a 16 or 8-bit float, where all captured values are multiples of it; else 0.
double SmallestOf(const Evidence& evidence, int bits) {
  const double step = bits == 11 ? 0x1p-24 : bits == 4 ? 0x1p-9 : bits == 3 ? 0x1p-16 : 0;
  for (const int64_t i : evidence.affected()) {
    for (const double value : Values(evidence, i, false)) {
      if (step > 0 && value / step != std::trunc(value / step)) return 0;
    }
  }
  return step;
}

double LargestCaptured(const Evidence& evidence) {
  double largest = 0;
  for (const int64_t i : evidence.affected()) {
    for (int64_t c = 0; c < evidence.width(); ++c) largest = std::max(largest, std::abs(evidence.Captured(i)[c]));
  }
  return largest;
}

std::optional<CoarseGrid> GridOfBits(const Evidence& evidence) {
  size_t count = 0, others = 0;
  const int bits = MostBits(evidence, false, &count);
  if (count < kMinOnGrid || bits == 0 || bits >= StorageBits(evidence.storage())) return std::nullopt;
  if (MostBits(evidence, true, &others) <= bits) return std::nullopt;  // what is expected lies on it, too
  CoarseGrid grid;
  grid.bits = bits;
  grid.smallest = SmallestOf(evidence, bits);
  grid.text = BitsText(bits);
  if (bits == 11 && LargestCaptured(evidence) == kLargestF16) {
    grid.most = kLargestF16;
    grid.text += ", clamped at 65504";
  }
  return grid;
}

std::optional<CoarseGrid> GridOfSteps(const Evidence& evidence) {
  const int storage_bits = StorageBits(evidence.storage());
  std::vector<double> steps, levels;
  for (const int64_t i : evidence.affected()) {
    const std::vector<double> values = Values(evidence, i, false);
    steps.push_back(StepOf(values, storage_bits));
    if (steps.back() == 0 || StepOf(Values(evidence, i, true), storage_bits) != 0) return std::nullopt;
    double largest = 0;
    for (const double value : values) largest = std::max(largest, std::abs(value));
    levels.push_back(std::round(largest / steps.back()));
  }
  if (steps.empty()) return std::nullopt;
  CoarseGrid grid;
  const auto [least, most] = std::minmax_element(steps.begin(), steps.end());
  if (*most - *least <= 4e-3 * *most) {
    grid.step = steps.front();
    grid.text = "multiples of " + Short(grid.step);
  } else if (std::all_of(levels.begin(), levels.end(), [&](double n) { return n == levels[0]; })) {
    grid.levels = static_cast<int>(levels[0]);
    grid.text = "multiples of each row's largest value / " + std::to_string(grid.levels);
  } else {
    return std::nullopt;
  }
  return grid;
}

}  // namespace

std::optional<double> FindConstant(const Evidence& evidence) {
  std::optional<double> value;
  int64_t count = 0;
  for (const int64_t i : evidence.affected()) {
    for (int64_t c = 0; c < evidence.width(); ++c) {
      if (!evidence.Off(i, c)) continue;
      const double captured = evidence.Captured(i)[c];
      if (!std::isfinite(captured) || (value && captured != *value)) return std::nullopt;
      value = captured;
      ++count;
    }
  }
  return count >= kMinElements ? value : std::nullopt;
}

std::optional<Clamp> FindClamp(const Evidence& evidence) {
  double high = -INFINITY, low = INFINITY;
  for (const int64_t i : evidence.affected()) {
    const double* captured = evidence.Captured(i);
    if (std::any_of(captured, captured + evidence.width(), [](double v) { return !std::isfinite(v); })) return {};
    const auto [least, most] = std::minmax_element(captured, captured + evidence.width());
    low = std::min(low, *least);
    high = std::max(high, *most);
  }
  if (!(low < high)) return std::nullopt;
  // Every element that is off is at a bound that it should have crossed.
  int64_t at_low = 0, at_high = 0;
  for (const int64_t i : evidence.affected()) {
    for (int64_t c = 0; c < evidence.width(); ++c) {
      if (!evidence.Off(i, c)) continue;
      const double captured = evidence.Captured(i)[c], expected = evidence.Expected(i)[c];
      if (captured == high && expected > high) {
        ++at_high;
      } else if (captured == low && expected < low) {
        ++at_low;
      } else {
        return std::nullopt;
      }
    }
  }
  if (at_low + at_high < kMinElements) return std::nullopt;
  Clamp clamp;
  if (at_low > 1) clamp.low = low;
  if (at_high > 1) clamp.high = high;
  if ((at_low == 1 && -low != high) || (at_high == 1 && -low != high)) return std::nullopt;
  if (low == -high) clamp.low = low, clamp.high = high;
  clamp.text = low == -high              ? "±" + Short(high)
               : clamp.low && clamp.high ? Short(low) + " and " + Short(high)
               : clamp.high              ? Short(high) + " from above"
                                         : Short(low) + " from below";
  return clamp;
}

double CoarseGrid::StepAt(double y, double largest) const {
  if (bits == 0) return step > 0 ? step : largest / levels;
  int exponent = 0;
  std::frexp(y, &exponent);
  return std::max(std::ldexp(1.0, exponent - bits), smallest);
}

bool CoarseGrid::NearBorder(double y, double largest, double reach) const {
  const double size = StepAt(y, largest);
  if (size == 0) return false;
  const double part = std::abs(y / size - std::trunc(y / size));
  return (toward_zero ? std::min(part, 1 - part) : std::abs(part - 0.5)) * size <= reach;
}

double CoarseGrid::Round(double y, double largest) const {
  const double size = StepAt(y, largest);
  if (size == 0) return y;
  return std::clamp((toward_zero ? std::trunc(y / size) : std::nearbyint(y / size)) * size, -most, most);
}

std::optional<CoarseGrid> FindCoarseGrid(const Evidence& evidence) {
  if (evidence.affected().empty()) return std::nullopt;
  std::optional<CoarseGrid> grid = GridOfBits(evidence);
  if (!grid) grid = GridOfSteps(evidence);
  if (!grid || GridExplains(evidence, *grid)) return grid;
  grid->toward_zero = true;
  if (GridExplains(evidence, *grid)) {
    grid->text += ", truncated";
    return grid;
  }
  grid->toward_zero = false;
  grid->explains = false;
  return grid;
}

}  // namespace lockstep
