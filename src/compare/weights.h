// Weights by their fingerprints: a wrong weight is named before any activation is looked at.
#pragma once

#include "compare/join.h"
#include "lockstep/compare.h"

namespace lockstep {

// Only hashes of weights stored in the same dtype are compared. Fills result->weights, weights_compared and notes.
void CompareWeights(const SideRuns& reference, const SideRuns& candidate, CompareResult* result);

}  // namespace lockstep
