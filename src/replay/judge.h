// Captured rows against recomputed ones, in noise units.
#pragma once

#include <cmath>
#include <vector>

#include "lockstep/replay.h"
#include "replay/evaluator.h"
#include "replay/op_call.h"

namespace lockstep {

// What a point's errors must keep to be clean (at most) and what makes them faulty (above), in noise units; calibrated
// on correct implementations (docs/accuracy.md).
struct Limits {
  double row_suspect, row_faulty;      // worst row's root mean square
  double cell_suspect, cell_faulty;    // worst head's, or block of channels'
  double max_suspect, max_faulty;      // single value
  double scale_suspect, scale_faulty;  // |scale|, where it is also 8 standard errors from 0
};
Limits LimitsOf(Op op, const Arithmetic& arithmetic, bool bridged);

inline constexpr int64_t kCellWidth = 64;  // channels, of points without heads

// The errors of one point by row and cell. A cell is a head, or a block of kCellWidth channels.
struct PointErrors {
  OpCall call;
  Arithmetic arithmetic;
  int64_t cells = 0;            // of a row
  std::vector<TokenAt> tokens;  // [rows] that could be judged
  std::vector<float> row;       // [rows] root mean square; infinite where something is not finite that should be
  std::vector<float> cell;      // [rows, cells] the same
  std::vector<float> peak;      // [rows, cells] largest single one
  double scale_share = 1;       // of the limit of the scale that holds: less where all roundings are known
  LocalError summary;           // without name and reasons; verdict filled

  float Cell(int64_t r, int64_t c) const { return cell[static_cast<size_t>(r * cells + c)]; }
  float Peak(int64_t r, int64_t c) const { return peak[static_cast<size_t>(r * cells + c)]; }
  Limits limits() const { return LimitsOf(call.op, arithmetic, summary.bridged); }
};

// Whether the scale is beyond a limit, and not by chance.
inline bool ScaleIsOff(const PointErrors& errors, double limit) {
  const double scale = std::abs(errors.summary.scale);
  return scale > limit * errors.scale_share && scale > 8 * errors.summary.scale_error;
}

// All rows that were captured of the call's point, or only those of `tokens` where given, against what it gives.
// detail: filled, if it is wanted.
PointErrors Judge(Evaluator& evaluator, const OpCall& call, const std::vector<TokenAt>* tokens = nullptr,
                  LocalDetail* detail = nullptr);

// The error of one element in noise units; infinite where only `captured` is not finite. variance 0 means exact: then
// every difference is beyond all limits.
inline double NoiseUnits(double captured, double expected, double variance) {
  if (captured == expected) return 0;
  if (!std::isfinite(captured) || variance <= 0) return INFINITY;
  return (captured - expected) / std::sqrt(variance);
}

}  // namespace lockstep
