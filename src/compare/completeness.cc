#include "compare/completeness.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string_view>

#include "base/fingerprint.h"
#include "base/ranges.h"
#include "lockstep/points.h"

namespace lockstep {
namespace {

// The rows of one side of the join.
RowAt At(const JoinedRow& row, Side side) { return side == Side::kReference ? row.reference : row.candidate; }
const PointRows& RowsOf(const ComparedPoint& point, Side side) {
  return side == Side::kReference ? *point.reference : *point.candidate;
}
const std::vector<uint64_t>& HashesOf(const ComparedPoint& point, Side side) {
  return side == Side::kReference ? point.hashes->reference : point.hashes->candidate;
}
Side Other(Side side) { return side == Side::kReference ? Side::kCandidate : Side::kReference; }

bool AllZero(const std::vector<uint64_t>& hashes, const std::vector<size_t>& rows) {
  return std::all_of(rows.begin(), rows.end(), [&](size_t row) { return hashes[row] == 0; });
}

// Indices of the joined rows by the piece of one side that holds them.
std::vector<std::vector<size_t>> RowsByPiece(const ComparedPoint& point, Side side) {
  std::vector<std::vector<size_t>> pieces(RowsOf(point, side).pieces.size());
  for (size_t i = 0; i < point.rows->size(); ++i) {
    pieces[static_cast<size_t>(At((*point.rows)[i], side).piece)].push_back(i);
  }
  return pieces;
}

bool MatchesAny(const std::vector<std::string>& patterns, const std::string& name) {
  return std::any_of(patterns.begin(), patterns.end(), [&](const std::string& pattern) {
    return MatchesPattern(pattern, name) || MatchesPattern(pattern, WithoutLayer(name));
  });
}

std::string RunText(const SideRuns& side, size_t run) {
  return side.runs.size() == 1 ? "" : " of " + side.runs[run].traces.front().path;
}

// Steps in which a promised point was owed and is not there.
std::vector<size_t> StepsWithout(const Run& run, const std::set<size_t>& held) {
  std::vector<size_t> missing;
  for (size_t i = 0; i < run.num_steps(); ++i) {
    if (held.contains(i) || !run.selection.WantsStep(static_cast<int64_t>(i))) continue;
    const TraceStep& step = run.Tokens(i);
    if (!run.selection.SelectRows(step.positions, step.sequences).empty()) missing.push_back(i);
  }
  return missing;
}

// Steps that hold the point, by run.
std::vector<std::set<size_t>> HeldSteps(const SideRuns& side, const std::string& name) {
  std::vector<std::set<size_t>> held(side.runs.size());
  const auto add = [&](const std::vector<StepTensors>& steps) {
    for (const StepTensors& where : steps) held[where.run].insert(where.step);
  };
  if (name == "next_token") add(side.next_tokens);
  if (const auto point = side.points.find(name); point != side.points.end()) add(point->second);
  return held;
}

// Layers before the last must compute every token for the keys and values of the next.
bool OwesEveryRow(const std::string& name, int num_layers) {
  const auto ref = ParsePointName(name);
  if (!ref) return false;
  if (ref->spec->id == Point::kInputEmbeddings) return true;
  if (!ref->spec->per_layer) return false;
  if (ref->layer < num_layers - 1) return true;
  constexpr Point kBeforeCache[] = {Point::kInputHiddenStates, Point::kAttnNormOutput, Point::kAttnKProjRaw,
                                    Point::kAttnVProjRaw,      Point::kAttnKNormed,    Point::kAttnKRope};
  return std::find(std::begin(kBeforeCache), std::end(kBeforeCache), ref->spec->id) != std::end(kBeforeCache);
}

void CheckZerosOf(Side side, const ComparedPoint& point, std::vector<Failure>* failures) {
  const std::vector<uint64_t>& hashes = HashesOf(point, side);
  const std::vector<uint64_t>& others = HashesOf(point, Other(side));
  if (hashes.empty()) return;
  const std::string other = "; the " + std::string(SideName(Other(side))) + "'s are not";
  if (TensorHash(hashes) == 0) {
    if (TensorHash(others) != 0)
      failures->push_back({FailureKind::kAllZero, side, point.name, "all values are zero" + other});
    return;
  }
  std::vector<size_t> steps;
  const auto pieces = RowsByPiece(point, side);
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].empty() || !AllZero(hashes, pieces[i]) || AllZero(others, pieces[i])) continue;
    steps.push_back(RowsOf(point, side).where[i].step);
  }
  if (!steps.empty()) {
    failures->push_back(
        {FailureKind::kAllZero, side, point.name, "all values are zero in " + StepsText(steps) + other});
  }
}

// Of two rows of one side. Of a live candidate only the distances to the reference are left; its rows are asked for
// where the reference's are equal, so that they differ at least by the difference of those.
double DistanceOf(const PointRows& point, RowAt row, const PointRows& earlier, RowAt earlier_row) {
  const auto piece = static_cast<size_t>(row.piece), earlier_piece = static_cast<size_t>(earlier_row.piece);
  if (point.digests == nullptr || earlier.digests == nullptr) {
    return RowDistance(point.pieces[piece], row.row, earlier.pieces[earlier_piece], earlier_row.row);
  }
  const RowDigest& a = (*point.digests)[piece][static_cast<size_t>(row.row)];
  const RowDigest& b = (*earlier.digests)[earlier_piece][static_cast<size_t>(earlier_row.row)];
  const double distance = std::abs(double{a.distance} - b.distance);
  return distance == 0 ? 0 : distance / b.norm;
}

bool StepsDiffer(const ComparedPoint& point, Side side, const std::vector<size_t>& rows,
                 const std::vector<size_t>& earlier) {
  const std::vector<uint64_t>& hashes = HashesOf(point, side);
  const PointRows& values = RowsOf(point, side);
  std::vector<RowAt> a, b;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (hashes[rows[i]] == hashes[earlier[i]]) continue;
    a.push_back(At((*point.rows)[rows[i]], side));
    b.push_back(At((*point.rows)[earlier[i]], side));
  }
  return RowsDiffer(values, a, values, b, point.distinct);
}

void CheckStaleStepsOf(Side side, const ComparedPoint& point, std::vector<Failure>* failures) {
  const std::vector<uint64_t>& hashes = HashesOf(point, side);
  const auto pieces = RowsByPiece(point, side);
  std::map<uint64_t, size_t> seen;  // hash of a step's rows, its first piece
  std::vector<size_t> steps;
  size_t earlier_step = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].empty()) continue;
    std::vector<uint64_t> own;
    for (size_t row : pieces[i]) own.push_back(hashes[row]);
    const uint64_t hash = TensorHash(own);
    if (hash == 0) continue;
    const auto [at, first] = seen.emplace(hash, i);
    if (first || pieces[at->second].size() != pieces[i].size()) continue;
    if (!StepsDiffer(point, Other(side), pieces[i], pieces[at->second])) continue;
    if (steps.empty()) earlier_step = RowsOf(point, side).where[at->second].step;
    steps.push_back(RowsOf(point, side).where[i].step);
  }
  if (steps.empty()) return;
  failures->push_back({FailureKind::kSameAsStep, side, point.name,
                       StepsText(steps) + (steps.size() == 1 ? " is" : " are") +
                           " byte-identical to an earlier step (step " + std::to_string(steps[0]) + " to step " +
                           std::to_string(earlier_step) + "); the " + std::string(SideName(Other(side))) +
                           "'s differ"});
}

}  // namespace

std::string StepsText(const std::vector<size_t>& steps) {
  return (steps.size() == 1 ? "step " : "steps ") + RangesText(steps, ", ", "-", /*most=*/8);
}

void CheckTraces(const SideRuns& side, std::vector<Failure>* failures) {
  for (const Run& run : side.runs) {
    for (const TraceView& trace : run.traces) {
      for (const std::string& error : trace.meta->errors) {
        failures->push_back({FailureKind::kTraceError, side.side, "", trace.path + ": the writer reported: " + error});
      }
      std::map<std::string, std::vector<size_t>> doubled;
      for (size_t i = 0; i < trace.steps->size(); ++i) {
        for (const std::string& name : (*trace.steps)[i].duplicates) doubled[name].push_back(i);
      }
      for (const auto& [name, steps] : doubled) {
        failures->push_back({FailureKind::kDuplicate, side.side, name, "recorded twice in " + StepsText(steps)});
      }
    }
  }
}

bool Promises(const SideRuns& side, const std::string& name) {
  return std::any_of(side.runs.begin(), side.runs.end(), [&](const Run& run) {
    return std::any_of(run.traces.begin(), run.traces.end(), [&](const TraceView& trace) {
      return std::find(trace.meta->points.begin(), trace.meta->points.end(), name) != trace.meta->points.end();
    });
  });
}

void CheckPromises(const SideRuns& side, const std::function<bool(const std::string&)>& wanted,
                   std::vector<Failure>* failures) {
  std::vector<std::string> promised;
  for (const Run& run : side.runs) {
    for (const TraceView& trace : run.traces) {
      promised.insert(promised.end(), trace.meta->points.begin(), trace.meta->points.end());
    }
  }
  std::sort(promised.begin(), promised.end());
  promised.erase(std::unique(promised.begin(), promised.end()), promised.end());
  for (const std::string& name : InExecutionOrder(promised)) {
    if (!wanted(name)) continue;
    const std::vector<std::set<size_t>> held = HeldSteps(side, name);
    for (size_t i = 0; i < side.runs.size(); ++i) {
      const Run& run = side.runs[i];
      const std::vector<std::string>& points = run.meta().points;
      if (std::find(points.begin(), points.end(), name) == points.end()) continue;
      if (!run.selection.WantsPoint(name) || MatchesAny(run.meta().not_observable, name)) continue;
      const std::vector<size_t> missing = StepsWithout(run, held[i]);
      if (missing.empty()) continue;
      const std::string where = missing.size() == run.num_steps() ? "in every step" : "in " + StepsText(missing);
      failures->push_back(
          {FailureKind::kMissing, side.side, name, "promised, but missing " + where + RunText(side, i)});
    }
  }
}

void CheckRows(const SideRuns& side, const std::string& name, int num_layers, const std::vector<Key>& lacking,
               const std::set<Key>& selected, std::vector<Failure>* failures) {
  if (lacking.empty() || !OwesEveryRow(name, num_layers) || !Promises(side, name)) return;
  size_t owed = 0;
  Key first;
  for (const Key& key : lacking) {
    if (!selected.contains(key)) continue;
    if (owed++ == 0) first = key;
  }
  if (owed == 0) return;
  failures->push_back({FailureKind::kMissingRows, side.side, name,
                       std::to_string(owed) + " rows are missing though their tokens were run, the first at sequence " +
                           std::to_string(first.sequence) + ", position " + std::to_string(first.position)});
}

void CheckZeros(const ComparedPoint& point, std::vector<Failure>* failures) {
  CheckZerosOf(Side::kReference, point, failures);
  CheckZerosOf(Side::kCandidate, point, failures);
}

void CheckStaleSteps(const ComparedPoint& point, std::vector<Failure>* failures) {
  CheckStaleStepsOf(Side::kReference, point, failures);
  CheckStaleStepsOf(Side::kCandidate, point, failures);
}

bool RowsDiffer(const PointRows& point, const std::vector<RowAt>& rows, const PointRows& earlier,
                const std::vector<RowAt>& earlier_rows, double distinct) {
  constexpr size_t kLooked = 64;  // rows; enough to tell stale from equal
  for (size_t i = 0; i < std::min({rows.size(), earlier_rows.size(), kLooked}); ++i) {
    if (DistanceOf(point, rows[i], earlier, earlier_rows[i]) > distinct) return true;
  }
  return false;
}

uint64_t TensorHash(const std::vector<uint64_t>& row_hashes) {
  uint64_t hash = SplitMix64(row_hashes.size());
  bool zero = true;
  for (uint64_t row : row_hashes) {
    hash = SplitMix64(hash ^ row);
    zero = zero && row == 0;
  }
  return zero ? 0 : hash | 1;
}

}  // namespace lockstep
