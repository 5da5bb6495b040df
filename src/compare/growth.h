// The growth of the difference through the layers.
#pragma once

#include <optional>
#include <vector>

#include "lockstep/compare.h"

namespace lockstep {

// `points` in execution order.
std::optional<Growth> GrowthOf(const std::vector<PointResult>& points);

}  // namespace lockstep
