// Findings of a diagnosis as text.
#pragma once

#include <string>
#include <vector>

#include "lockstep/diagnose.h"

namespace lockstep {

// "0-27", "0-3,7": as the selections of the command line; empty without layers. `dash`: between the first and the last.
std::string LayersText(const std::vector<int>& layers, const char* dash = "-");

// Every finding and layout, wrapped. who: "candidate: ", or empty.
std::string FindingsText(const Diagnosis& diagnosis, const std::string& who, size_t width, bool color);

// "+1.0e-05 ± 2e-06"
std::string ScaleText(const LocalError& point);

// "93 ops, 92 clean, 1 FAULTY; the first faulty one layer_2_attn_q_rope"
std::string ReplayCounts(const ReplayResult& replay);

}  // namespace lockstep
