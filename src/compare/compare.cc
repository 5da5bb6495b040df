#include "lockstep/compare.h"

#include "compare/views.h"
#include "trace/runs.h"

namespace lockstep {
std::string_view SideName(Side side) { return side == Side::kReference ? "reference" : "candidate"; }

std::string_view FailureKindName(FailureKind kind) {
  switch (kind) {
    case FailureKind::kTraceError: return "trace-error";
    case FailureKind::kMissing: return "missing";
    case FailureKind::kMissingRows: return "missing-rows";
    case FailureKind::kDuplicate: return "duplicate";
    case FailureKind::kShape: return "shape";
    case FailureKind::kShards: return "shards";
    case FailureKind::kReplicas: return "replicas-differ";
    case FailureKind::kAllZero: return "all-zero";
    case FailureKind::kSameAsLayer: return "same-as-layer";
    case FailureKind::kSameAsStep: return "same-as-step";
    case FailureKind::kIdentity: return "identity";
  }
  return "";
}

int CompareResult::ExitCode() const { return first_failing || !failures.empty() || !weights.empty() ? 1 : 0; }

CompareResult Compare(const std::vector<std::string>& reference_traces,
                      const std::vector<std::string>& candidate_traces, const CompareOptions& options) {
  const std::vector<TraceReader> reference = OpenAll(reference_traces, SideName(Side::kReference));
  const std::vector<TraceReader> candidate = OpenAll(candidate_traces, SideName(Side::kCandidate));
  CompareResult result = CompareViews(Views(reference), Views(candidate), options);
  NoteWarnings(reference, &result.notes);
  NoteWarnings(candidate, &result.notes);
  return result;
}

}  // namespace lockstep
