// Published shapes of Qwen3, for runs without a checkpoint.
#pragma once

#include <string>

#include "lockstep/checkpoint.h"

namespace lockstep {

// Throws Error for a name that is none of BenchShapes().
Config ConfigOfShape(const std::string& name);

}  // namespace lockstep
