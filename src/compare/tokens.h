// The greedy choices of both sides.
#pragma once

#include <map>

#include "compare/join.h"
#include "lockstep/compare.h"

namespace lockstep {

// `reference_numbers`, `candidate_numbers`: to the reference's sequence numbers, paired ones only.
NextTokens CompareNextTokens(const SideRuns& reference, const std::map<int, int>& reference_numbers,
                             const SideRuns& candidate, const std::map<int, int>& candidate_numbers);

}  // namespace lockstep
