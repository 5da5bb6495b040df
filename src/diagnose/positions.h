// Which positions a rotation used.
#pragma once

#include "diagnose/causes.h"

namespace lockstep {

// Position of the first token of the row's sequence in its call.
int32_t FirstOfCall(const TraceRuns& runs, const TokenAt& token);

// The position maps that implementations get wrong, and the one that is measured: each affected row is searched for the
// position that reproduces it.
void AddPositions(const Case& fault, std::vector<Hypothesis>* out);

// Rotates one head in place by the positions of every (head, token) whose sum is `cell`; adds up the noise of each.
void RotateCell(int64_t cell, int64_t heads, const std::vector<int32_t>& positions,
                const std::vector<double>& frequencies, DType storage, double* head, double* variance);

}  // namespace lockstep
