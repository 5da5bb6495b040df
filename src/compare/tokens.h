// The greedy choices of both sides, as they recorded them.
#pragma once

#include <cstdint>
#include <map>

#include "compare/join.h"
#include "lockstep/compare.h"

namespace lockstep {

using Choices = std::map<Key, int32_t>;

// The last choice after every token. `numbers`: to the reference's sequence numbers, paired ones only.
Choices RecordedChoices(const SideRuns& side, const std::map<int, int>& numbers);

NextTokens CompareNextTokens(const Choices& reference, const Choices& candidate);

}  // namespace lockstep
