// The search for what explains a fault: every hypothesis on a sample, the best of them on all rows.
#pragma once

#include <limits>
#include <optional>
#include <vector>

#include "diagnose/hypothesis.h"

namespace lockstep {

// What a call leaves of the error in the affected cells.
struct Fit {
  static constexpr double kNone = std::numeric_limits<double>::infinity();
  double error = kNone;  // worst row or cell, in noise units
  double ratio = kNone;  // the largest figure as a multiple of its limit: up to 1 all is within the noise floor
  double whole = kNone;  // root mean square
  double left = kNone;   // root mean square error as a share of the right call's, both in the right call's noise units
  int64_t elements = 0;
  // It would change cells, in the same rows, that the right call explains.
  bool contradicts = false;
  double scale = 0;  // what is left of the scale, in shares of its limit, where the fault shows there alone
};

struct Explained {
  std::optional<Explanation> cause;
  std::vector<Explanation> also;
  std::optional<Explanation> next;
  std::optional<size_t> entry;  // of the catalogue that gave `cause`; its size: any op
};

// The worst rows of a fault and others spread over the rest, with their values. At most `rows`.
Sample MakeSample(Evaluator& evaluator, const PointErrors& errors, int64_t rows);
// How many rows a sample of that point may have.
int64_t SampleRows(const OpCall& call, int64_t width);

// What `call` leaves in the first `rows` rows of the sample.
Fit FitOf(const Case& fault, const OpCall& call, int64_t rows);

// `likely`: entries of the catalogue that explained the same point in other layers; the rest is tried only where they
// do not explain this one. `pairs`: two mistakes at once are tried, too, which is dear.
Explained Explain(const Case& fault, const std::vector<size_t>& likely = {}, bool pairs = true);

}  // namespace lockstep
