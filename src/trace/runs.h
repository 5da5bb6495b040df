// One side of a comparison, or what a replay judges: several traces (a batch run in parts, the ranks of one run) taken
// together.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lockstep/trace.h"

namespace lockstep {

// What is needed of a trace; tests build it in memory.
struct TraceView {
  std::string path;
  const TraceMeta* meta = nullptr;
  const std::vector<TraceStep>* steps = nullptr;
  bool mapped = false;  // the data are pages of files: they are given back once they were used
};

inline constexpr int32_t kUnknownId = -1;

// Tokens by position; ids as in the latest step, kUnknownId where there is none.
using SequenceTokens = std::map<int32_t, int32_t>;

// Of a point in one step of one run: the tensors of all ranks.
struct StepTensors {
  size_t run = 0;
  size_t step = 0;
  std::vector<const TraceTensor*> tensors;
};

// One run: a trace, or those of its ranks.
struct Run {
  std::vector<TraceView> traces;
  Selection selection;
  std::map<int, int> numbers;  // of its sequences, within the side

  const TraceMeta& meta() const { return *traces.front().meta; }
  // Tokens are the same in every rank that has the step.
  size_t num_steps() const;
  const TraceStep& Tokens(size_t step) const;
};

struct TraceRuns {
  std::vector<Run> runs;
  std::map<int, SequenceTokens> sequences;                 // by number
  std::map<std::string, std::vector<StepTensors>> points;  // without next_token
  std::vector<StepTensors> next_tokens;
};

// Throws Error for bad selections in a trace.
TraceRuns GroupRuns(const std::vector<TraceView>& traces);

// Tensors of the ranks that hold the same tokens; where a rank holds tokens of its own, they are a piece of their own.
std::vector<std::vector<const TraceTensor*>> ByRows(const std::vector<const TraceTensor*>& tensors);

// The canonical axes of a row: the point table's, else those that the tensor declares.
std::vector<std::string> RowAxes(const std::string& name, const TraceTensor& tensor);

// `side` names them in the message. Throws Error, also where no path is given.
std::vector<TraceReader> OpenAll(const std::vector<std::string>& paths, std::string_view side);

// They live as long as the readers.
std::vector<TraceView> Views(const std::vector<TraceReader>& readers);

void NoteWarnings(const std::vector<TraceReader>& readers, std::vector<std::string>* notes);

}  // namespace lockstep
