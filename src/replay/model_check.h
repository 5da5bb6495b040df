// Before a replay: was the trace made from this checkpoint?
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "lockstep/checkpoint.h"
#include "lockstep/replay.h"
#include "trace/runs.h"

namespace lockstep {

struct ModelCheck {
  size_t weights_compared = 0;
  std::vector<WeightMismatch> weights;  // whose fingerprints differ, by name
  std::vector<std::string> notes;
};

// Compares the traces' config and the fingerprints of their weights with the checkpoint's, rounded to the dtype that
// the fingerprint declares. Reads every weight that has a fingerprint, with all threads, and gives its pages back. A
// trace of fewer layers than the checkpoint has is fine. Throws Error that names the keys where the configs differ.
ModelCheck CheckModel(const TraceRuns& runs, const Checkpoint& checkpoint);

}  // namespace lockstep
