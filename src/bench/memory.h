// How much memory a run needs, and how much there is.
#pragma once

#include <cstdint>
#include <string>

#include "lockstep/checkpoint.h"
#include "lockstep/dtype.h"

namespace lockstep {

// Memory that the process may still take without swapping, its control group's limit included; -1 if unknown.
int64_t AvailableMemory();

// The largest resident size of the process so far (VmHWM); 0 if unknown.
int64_t PeakMemory();

// What certainly has to lie in memory: weights, the cache of `capacity` tokens, and the larger of the widest
// activations of a prompt that long and `logits_rows` rows of logits, once in the dtype and once in f32.
int64_t EngineMemory(const Config& config, DType dtype, int64_t capacity, int64_t logits_rows);

// Throws Error when less than `needed` is available; an unknown amount is taken for enough.
void RequireMemory(const std::string& what, int64_t needed, int64_t available);

}  // namespace lockstep
