// Findings of a diagnosis as text.
#pragma once

#include <string>
#include <vector>

#include "lockstep/diagnose.h"
#include "report/page.h"

namespace lockstep {

// "0-27", "0-3,7": as the selections of the command line; empty without layers. `dash`: between the first and the last.
std::string LayersText(const std::vector<int>& layers, const char* dash = "-");

// Weights, findings and layouts; of many of a kind the first, unless `all`. who: "candidate: ", or empty.
void WriteFindings(const Diagnosis& diagnosis, const std::string& who, bool all, Page* page);

// "+1.0e-05 ± 2e-06"
std::string ScaleText(const LocalError& point);

// "93 ops, 92 clean, 1 FAULTY; the first faulty one layer_2_attn_q_rope"
std::string ReplayCounts(const ReplayResult& replay);

}  // namespace lockstep
