// A comparison as JSON.
#pragma once

#include "base/json.h"
#include "lockstep/report.h"

namespace lockstep {

// "schema": "lockstep-compare/1" (docs/compare.md).
Json CompareJson(const Judged& judged);

}  // namespace lockstep
