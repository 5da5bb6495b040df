// Running the built-in engine over sequences.
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
  std::string out;         // the trace, or what stands in its place on stderr
};

// Selections of the command line as a tap takes them.
TraceTapOptions TapOptions(const ModelRunOptions& options);

// Where the engine's tensors go.
class EngineOutput {
 public:
  virtual ~EngineOutput() = default;
  // Called once, when the input is known to be good and what is there may be replaced.
  virtual Tap& Open(const Model& model, const EngineRun& run) = 0;
  virtual void Close() = 0;
};

// All sequences are one ragged batch. Progress on a terminal, one line about the cost at the end, both on stderr.
// Throws Error.
void RunEngine(EngineRun run, EngineOutput& output);

// The same into the trace run.out.
void CaptureEngine(EngineRun run);

}  // namespace lockstep::cli
