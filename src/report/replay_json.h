// A diagnosis as JSON.
#pragma once

#include "base/json.h"
#include "lockstep/diagnose.h"

namespace lockstep {

// "schema": "lockstep-replay/1" (docs/replay.md).
Json ReplayJson(const Diagnosis& diagnosis);

}  // namespace lockstep
