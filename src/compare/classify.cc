#include "compare/classify.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "lockstep/points.h"

namespace lockstep {
namespace {

constexpr double kExcellent = 1e-4;
constexpr double kGood = 1e-3;
constexpr double kAcceptable = 1e-2;
constexpr double kAcceptableCosine = 0.999;

constexpr double kF32Roundoff = 0x1p-16;

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g", value);
  return text;
}

std::string Count(int64_t count, const char* what) { return std::to_string(count) + " " + what; }

}  // namespace

std::string_view DiffClassName(DiffClass diff_class) {
  switch (diff_class) {
    case DiffClass::kExcellent: return "EXCELLENT";
    case DiffClass::kGood: return "GOOD";
    case DiffClass::kAcceptable: return "ACCEPTABLE";
    case DiffClass::kSignificant: return "SIGNIFICANT DIFF";
  }
  return "";
}

DiffClass Classify(const PointResult& point) {
  if (point.mask_mismatches > 0 || point.non_finite_mismatches > 0) return DiffClass::kSignificant;
  if (point.max_abs < kExcellent) return DiffClass::kExcellent;
  if (point.max_abs < kGood) return DiffClass::kGood;
  if (point.max_abs < kAcceptable) return DiffClass::kAcceptable;
  const bool aligned = point.min_token_cosine > kAcceptableCosine && point.min_head_cosine > kAcceptableCosine;
  return aligned ? DiffClass::kAcceptable : DiffClass::kSignificant;
}

double UnitRoundoff(DType dtype) {
  switch (dtype) {
    case DType::kBF16: return 0x1p-8;
    case DType::kF16: return 0x1p-11;
    case DType::kF8E4M3: return 0x1p-4;
    case DType::kF8E5M2: return 0x1p-3;
    case DType::kF32: return kF32Roundoff;
    default: return 0;
  }
}

double DeclaredRoundoff(const TraceMeta& meta) {
  if (!meta.has_arithmetic) return 0;
  return std::max({UnitRoundoff(meta.arithmetic.storage), UnitRoundoff(meta.arithmetic.operands),
                   UnitRoundoff(meta.arithmetic.cache)});
}

double RelativeL2Bound(double unit_roundoff, int layer) {
  return kBoundFactor * unit_roundoff * std::sqrt(2.0 * std::max(0, layer) + 1);
}

int DepthOf(const std::string& name, int num_layers) {
  const int layer = LayerOf(name);
  if (layer >= 0) return layer;
  return name == PointName(Point::kInputEmbeddings) ? 0 : num_layers;
}

void Judge(double unit_roundoff, int num_layers, PointResult* point) {
  point->diff_class = Classify(*point);
  point->reasons.clear();
  if (unit_roundoff <= kF32Roundoff && point->diff_class == DiffClass::kSignificant) {
    point->reasons.push_back("SIGNIFICANT DIFF");
  }
  if (unit_roundoff > 0) {
    const int depth = DepthOf(point->name, num_layers);
    point->bound = RelativeL2Bound(unit_roundoff, depth);
    if (point->worst_token_relative_l2 > *point->bound) {
      point->reasons.push_back("relative L2 of the worst token " + Number(point->worst_token_relative_l2) +
                               " is above " + Number(*point->bound) + ", the bound for " +
                               (unit_roundoff > kF32Roundoff ? "16-bit" : "f32") + " arithmetic at depth " +
                               std::to_string(depth));
    }
  }
  if (point->non_finite_mismatches > 0) {
    point->reasons.push_back(Count(point->non_finite_mismatches, "NaN or infinity on one side only"));
  }
  if (point->mask_mismatches > 0) point->reasons.push_back(Count(point->mask_mismatches, "mask entries differ"));
  if (point->user_tolerance_missed) {
    point->reasons.push_back("the tolerance asked for is missed by " + Number(100 * (1 - *point->within_user)) +
                             " % of the elements");
  }
}

}  // namespace lockstep
