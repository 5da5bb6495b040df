// Running the built-in engine over sequences and writing its trace.
#pragma once

#include <string>
#include <vector>

#include "cli/inputs.h"
#include "lockstep/engine.h"

namespace lockstep::cli {

// Names weights that the model does not use on stderr. Throws Error.
Model LoadModel(const ModelArguments& arguments);

struct EngineRun {
  ModelRunOptions options;
  std::vector<SequenceInput> sequences;
  std::string embeddings;  // as InputOptions::embeddings
  int chunk = 0;           // prefill in chunks of that many tokens of each sequence; 0: in one shot
  int decode = 0;          // decode steps where the sequence brings no tokens of its own
  std::string out;         // the trace
};

// All sequences are one ragged batch. Progress on a terminal, one line about the cost at the end, both on stderr.
// Throws Error.
void RunEngine(EngineRun run);

}  // namespace lockstep::cli
