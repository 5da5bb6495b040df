// Parts of the text report of a comparison.
#pragma once

#include <vector>

#include "report/page.h"

namespace lockstep {

// What is missing, and weights that differ. A failure that repeats over layers is told once.
void WriteFailures(const CompareResult& result, bool all, Page* page);
void WriteOneSided(const CompareResult& result, bool all, Page* page);

// Where the sides first part, and what says that it is only rounding. `all`: the evidence also where nothing fails.
void WriteFirstDifference(const Judged& judged, const std::vector<JudgedPoint>& points, bool all, Page* page);

// The next tokens, and the logits that choose them.
void WriteTokens(const CompareResult& result, Page* page);

}  // namespace lockstep
