// Row shapes of the two sides of a point, brought together: a flattened row gets its heads back, anything else that
// differs is a failure.
#pragma once

#include <string>
#include <vector>

#include "compare/join.h"
#include "compare/metrics.h"
#include "lockstep/compare.h"

namespace lockstep {

// Heads and head_dim where config tells them; else 0.
struct HeadCounts {
  int64_t query = 0;
  int64_t key_value = 0;
  int64_t head_dim = 0;
};

HeadCounts HeadsOf(const SideRuns& reference, const SideRuns& candidate);

RowKind KindOf(const std::string& name, const std::vector<std::string>& axes);

// Reshapes the pieces of both sides to one row shape, which it returns. Rows of pieces that differ from their side's
// first are dropped with a failure; where the two sides differ, that is a failure and the result is empty.
std::vector<int64_t> UniteShapes(const std::string& name, const std::vector<std::string>& axes, const HeadCounts& heads,
                                 PointRows* reference, PointRows* candidate, std::vector<Failure>* failures);

// Reshapes a further piece to the shape that UniteShapes returned. False where its rows do not fit.
bool FitPiece(const std::vector<int64_t>& shape, RowKind kind, Piece* piece);

}  // namespace lockstep
