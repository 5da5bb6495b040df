// The join of two traces by (sequence, position): which traces are one run, which sequences belong together, which rows
// meet.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "compare/metrics.h"
#include "lockstep/compare.h"
#include "lockstep/trace.h"
#include "trace/rows.h"
#include "trace/runs.h"

namespace lockstep {

struct SideRuns : TraceRuns {
  Side side = Side::kReference;
};

// Throws Error for bad selections in a trace.
SideRuns GroupRuns(Side side, const std::vector<TraceView>& traces);

// Throws Error for different tokens. What stays unpaired on one side is noted.
std::vector<SequencePair> PairSequences(const SideRuns& reference, const SideRuns& candidate,
                                        const std::vector<std::pair<int, int>>& wanted,
                                        std::vector<std::string>* notes);

// A row of a piece by its key. `sequence` is the reference's number.
struct RowRef {
  int32_t sequence = 0;
  int32_t position = 0;
  int32_t input_id = kUnknownId;
  RowAt at;
};

struct PointRows {
  std::vector<StepTensors> where;  // by piece
  std::vector<Piece> pieces;
  std::vector<RowRef> rows;  // of paired sequences, in the order written
  // By piece and row; null where the values themselves can be read.
  const std::vector<std::vector<RowDigest>>* digests = nullptr;
};

// `numbers`: from the side's sequence numbers to the reference's, paired ones only. Problems become failures; unusable
// pieces are left out.
PointRows CollectRows(const SideRuns& side, const std::string& name, const std::vector<StepTensors>& steps,
                      const std::vector<std::string>& axes, const std::map<int, int>& numbers,
                      std::vector<Failure>* failures);

struct Key {
  int32_t sequence = 0;
  int32_t position = 0;
  auto operator<=>(const Key&) const = default;
};

struct Joined {
  std::vector<JoinedRow> rows;  // sorted by key
  std::vector<Key> only_reference;
  std::vector<Key> only_candidate;
};

// Rows match by (sequence, position, input_id); of recomputed ones the last that match.
Joined JoinRows(std::vector<RowRef> reference, std::vector<RowRef> candidate);

// The row of the reference, sorted by key, that a row of the candidate meets: of recomputed ones the last that
// matches; null if there is none. `hint`: where to look first; the index behind the row found is left there.
const RowRef* FindRow(const std::vector<RowRef>& reference, const RowRef& candidate, size_t* hint);

// Tokens that the side ran and that its selection of steps and rows covers.
std::set<Key> SelectedKeys(const SideRuns& side, const std::map<int, int>& numbers);

}  // namespace lockstep
