// The comparison behind Compare(), over traces that are already open (or stand in memory).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "compare/join.h"
#include "lockstep/compare.h"

namespace lockstep {

// What was measured of a point while the candidate ran.
struct MeasuredPoint {
  Totals totals;
  std::vector<std::vector<RowDigest>> digests;  // by piece and row of the candidate
  std::vector<TokenRow> tokens;                 // of logits
  std::shared_ptr<DetailSums> detail;           // null: not wanted
};
using MeasuredPoints = std::map<std::string, MeasuredPoint>;  // by name

// REQUIRES: neither side empty. With `measured`, the candidate's tensors need no data (but for next_token).
CompareResult CompareViews(const std::vector<TraceView>& reference, const std::vector<TraceView>& candidate,
                           const CompareOptions& options, const MeasuredPoints* measured = nullptr);

// Which points the options select. Throws Error.
Selection FilterOf(const CompareOptions& options);
std::optional<Limit> UserLimitOf(const CompareOptions& options);

}  // namespace lockstep
