// The declared arithmetic of a trace against its data, and what the data show where nothing is declared.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lockstep/trace.h"
#include "trace/runs.h"

namespace lockstep {

// As in TraceMeta.
struct InferredArithmetic {
  Arithmetic arithmetic;
  std::vector<ArithmeticOverride> overrides;  // points on another grid than most
  std::string text;                           // one line
};

struct ArithmeticCheck {
  std::vector<std::string> contradictions;     // one line each, points and layers grouped
  std::optional<InferredArithmetic> inferred;  // where the traces declare nothing
};

// Looks at some rows of every point. Copies of the embedding, whose grid is the checkpoint's, and partial sums say
// nothing.
ArithmeticCheck CheckArithmetic(const TraceRuns& runs);

}  // namespace lockstep
