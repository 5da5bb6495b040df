// Which points a user means.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "inspect/slice.h"
#include "trace/runs.h"

namespace lockstep {

using PointMap = std::map<std::string, std::vector<StepTensors>>;

struct ChosenNamesOf {
  std::vector<std::string> names;  // in execution order
  Slice slice;
};

// `what` may be the very name of a point, brackets and stars included. Throws Error where nothing has that name.
ChosenNamesOf ChosenNames(const PointMap& points, const std::string& what, const std::string& trace);

// Throws Error that names what is near.
[[noreturn]] void ThrowUnknown(const PointMap& points, const std::string& name, const std::string& trace);

}  // namespace lockstep
