// The verdict in one sentence, for every report.
#pragma once

#include <string>

#include "lockstep/report.h"

namespace lockstep {

// "SAME (no faulty op on either side)", "DIFFERENT (3 faulty ops in the candidate, the first layer_0_attn_q_rope)"
std::string VerdictText(const Judged& judged);

// "CLEAN (1 suspect op)", "FAULTY (3 ops, the first layer_0_attn_q_rope)"
std::string VerdictText(const Diagnosis& diagnosis);

}  // namespace lockstep
