// What is missing, doubled or stale: found by name, before and beside every number (docs/trace-format.md).
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "compare/join.h"
#include "compare/metrics.h"
#include "lockstep/compare.h"

namespace lockstep {

// "step 3", "steps 0, 3-9 and 12 more"
std::string StepsText(const std::vector<size_t>& steps);

// Errors that the writer left in the trace, and points recorded twice in a step.
void CheckTraces(const SideRuns& side, std::vector<Failure>* failures);

// Promised points that a step lacks though its selection covers them. `wanted` filters by name.
void CheckPromises(const SideRuns& side, const std::function<bool(const std::string&)>& wanted,
                   std::vector<Failure>* failures);

// Whether a run of the side promised the point.
bool Promises(const SideRuns& side, const std::string& name);

// Keys that only the other side has, though this side promised the point and ran and selected their tokens. Where an
// engine may compute fewer rows, namely behind the keys and values of the last layer, nothing is owed.
void CheckRows(const SideRuns& side, const std::string& name, int num_layers, const std::vector<Key>& lacking,
               const std::set<Key>& selected, std::vector<Failure>* failures);

// Of the values, by joined row; 0: the row is all zeros.
struct RowHashes {
  std::vector<uint64_t> reference;
  std::vector<uint64_t> candidate;
};

// A point of both sides with its rows joined and hashed.
struct ComparedPoint {
  std::string name;
  const PointRows* reference = nullptr;
  const PointRows* candidate = nullptr;
  const std::vector<JoinedRow>* rows = nullptr;
  const RowHashes* hashes = nullptr;
  // How much the other side's rows must differ before equal rows count as stale: rounding alone must not.
  double distinct = 1e-4;
};

// All zero, in the whole or in a step, where the other side is not.
void CheckZeros(const ComparedPoint& point, std::vector<Failure>* failures);

// A step byte-identical to an earlier one, where the other side's differ.
void CheckStaleSteps(const ComparedPoint& point, std::vector<Failure>* failures);

// Two layers of one point with byte-identical values on one side. The caller finds them by hash and asks here whether
// the other side's differ. `rows`: of this layer and of the earlier one, joined on the same keys.
bool RowsDiffer(const PointRows& point, const std::vector<RowAt>& rows, const PointRows& earlier,
                const std::vector<RowAt>& earlier_rows, double distinct);

// Of all the joined rows of one side, in order; 0 where all are zero.
uint64_t TensorHash(const std::vector<uint64_t>& row_hashes);

}  // namespace lockstep
