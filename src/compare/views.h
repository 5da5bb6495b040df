// The comparison behind Compare(), over traces that are already open (or stand in memory).
#pragma once

#include <vector>

#include "compare/join.h"
#include "lockstep/compare.h"

namespace lockstep {

// REQUIRES: neither side empty.
CompareResult CompareViews(const std::vector<TraceView>& reference, const std::vector<TraceView>& candidate,
                           const CompareOptions& options);

}  // namespace lockstep
