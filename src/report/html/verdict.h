// What a reader is told first.
#pragma once

#include <string>

#include "lockstep/report.h"

namespace lockstep {

// One sentence, escaped: "attn_q_rope of layers 0–4 of the candidate rotates interleaved pairs instead of halves."
std::string VerdictSentence(const Judged& judged);
std::string VerdictSentence(const Diagnosis& diagnosis);

}  // namespace lockstep
