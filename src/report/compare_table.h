// The table of a comparison: a row a point, the local errors beside the difference.
#pragma once

#include <string>
#include <vector>

#include "lockstep/report.h"

namespace lockstep {

std::string CompareTable(const std::vector<JudgedPoint>& points, size_t width, const TextOptions& options);

}  // namespace lockstep
