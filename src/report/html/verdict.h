// What a reader is told first.
#pragma once

#include <string>

#include "lockstep/report.h"

namespace lockstep {

// One sentence, escaped: "The candidate's attn_q_rope (layers 0..4) rotates interleaved pairs instead of halves."
std::string VerdictSentence(const Judged& judged);
std::string VerdictSentence(const Diagnosis& diagnosis);

}  // namespace lockstep
