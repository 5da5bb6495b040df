// Two traces can be compared only if they are of one model.
#pragma once

#include <string>
#include <vector>

#include "compare/join.h"

namespace lockstep {

// Throws Error that names the keys and both values where keys that matter differ; other keys that differ are noted.
void CheckConfigs(const std::vector<TraceView>& reference, const std::vector<TraceView>& candidate,
                  std::vector<std::string>* notes);

// The integer at a key of either side's config; 0 where there is none.
int64_t ConfigNumber(const SideRuns& side, const std::string& key);

}  // namespace lockstep
