// A tensor is read row by row, twice for the figures and once for the file: memory is a row, whatever the tensor.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "base/mapped_file.h"
#include "inspect/names.h"
#include "inspect/npy.h"
#include "inspect/selection.h"
#include "inspect/statistics.h"
#include "lockstep/inspect.h"

namespace lockstep {
namespace {

struct OpenSide {
  OpenSide(const std::vector<std::string>& paths, Side side)
      : readers(OpenAll(paths, SideName(side))), runs(GroupRuns(side, Views(readers))) {
    if (!runs.next_tokens.empty()) runs.points["next_token"] = runs.next_tokens;
  }

  std::vector<TraceReader> readers;
  SideRuns runs;
};

ValueStats StatsOf(const ChosenPoint& point, Side side) {
  Statistics statistics;
  ChosenRow row;
  for (const JoinedRow& joined : point.rows()) {
    point.Read(side, joined, &row);
    for (size_t i = 0; i < row.values.size(); ++i) {
      if (row.cells[i] == Cell::kValue) {
        statistics.Add(static_cast<float>(row.values[i]), point.PlaceAt(joined, i));
      } else if (row.cells[i] == Cell::kMasked) {
        statistics.AddMasked();
      }
    }
  }
  statistics.BeginSecondPass();
  for (const JoinedRow& joined : point.rows()) {
    point.Read(side, joined, &row);
    for (size_t i = 0; i < row.values.size(); ++i) {
      if (row.cells[i] == Cell::kValue) statistics.AddAgain(static_cast<float>(row.values[i]));
    }
  }
  return statistics.Finish();
}

class DifferenceSums {
 public:
  void Add(const ChosenPoint& point, const JoinedRow& joined, const ChosenRow& reference, const ChosenRow& candidate) {
    for (size_t i = 0; i < reference.values.size(); ++i) {
      const double b = reference.values[i], a = candidate.values[i];
      const bool hidden_b = reference.cells[i] != Cell::kValue, hidden_a = candidate.cells[i] != Cell::kValue;
      if (hidden_a && hidden_b) continue;
      if (!hidden_a && !hidden_b && std::isfinite(a) && std::isfinite(b)) {
        AddPair(a, b, [&] { return point.PlaceAt(joined, i); });
      } else if (hidden_a != hidden_b || !(a == b || (std::isnan(a) && std::isnan(b)))) {
        if (out_.mismatches++ == 0) out_.first_mismatch = point.PlaceAt(joined, i);
      }
    }
  }

  SliceDifference Finish() {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    out_.identical = out_.max_abs == 0 && out_.mismatches == 0;
    if (out_.elements > 0) out_.mean_abs = abs_ / static_cast<double>(out_.elements);
    out_.relative_l2 = dd_ == 0 ? 0 : bb_ == 0 ? kInfinity : std::sqrt(dd_ / bb_);
    out_.cosine = aa_ == 0 && bb_ == 0   ? 1
                  : aa_ == 0 || bb_ == 0 ? 0
                                         : std::clamp(ab_ / (std::sqrt(aa_) * std::sqrt(bb_)), -1.0, 1.0);
    return out_;
  }

 private:
  static constexpr size_t kLargest = 5;

  template <typename PlaceAt>
  void AddPair(double a, double b, PlaceAt place_at) {
    const double difference = std::fabs(a - b);
    ++out_.elements;
    aa_ += a * a, bb_ += b * b, ab_ += a * b, dd_ += difference * difference, abs_ += difference;
    out_.max_abs = std::max(out_.max_abs, difference);
    const auto size_of = [](const SliceDifference::Element& e) { return std::fabs(e.candidate - e.reference); };
    std::vector<SliceDifference::Element>& largest = out_.largest;
    if (difference == 0 || (largest.size() == kLargest && difference <= size_of(largest.back()))) return;
    const auto before =
        std::find_if(largest.begin(), largest.end(), [&](const auto& e) { return size_of(e) < difference; });
    largest.insert(before, {place_at(), b, a});
    if (largest.size() > kLargest) largest.pop_back();
  }

  SliceDifference out_;
  double aa_ = 0, bb_ = 0, ab_ = 0, dd_ = 0, abs_ = 0;
};

Excerpt ExcerptOf(const ChosenPoint& point, bool both) {
  constexpr size_t kFirst = 8;  // of those shown; the others are the last
  Excerpt out;
  const std::vector<JoinedRow>& rows = point.rows();
  out.row_values = static_cast<int64_t>(point.row_values());
  if (rows.size() > Excerpt::kRows) out.left_out = rows.size() - Excerpt::kRows;
  ChosenRow values;
  const auto read = [&](Side side, const JoinedRow& row) {
    point.Read(side, row, &values);
    return std::vector<double>(
        values.values.begin(),
        values.values.begin() + static_cast<std::ptrdiff_t>(std::min(values.values.size(), Excerpt::kValues)));
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    if (out.left_out > 0 && i == kFirst) i += out.left_out;
    Excerpt::Row row{i, {rows[i].sequence, rows[i].position, -1, -1}, read(Side::kReference, rows[i]), {}};
    if (both) row.other = read(Side::kCandidate, rows[i]);
    out.rows.push_back(std::move(row));
  }
  return out;
}

TensorLook Look(const std::string& name, const ChosenPoint& point, bool both) {
  TensorLook out;
  out.name = name;
  out.dtype = point.DTypeOf(Side::kReference);
  out.rows = point.rows().size();
  for (const JoinedRow& row : point.rows()) {
    if (out.sequences.empty() || out.sequences.back() != row.sequence) out.sequences.push_back(row.sequence);
  }
  out.axes = point.axes();
  out.problems = point.problems();
  out.stats = StatsOf(point, Side::kReference);
  out.excerpt = ExcerptOf(point, both);
  if (!both) return out;

  out.other_dtype = point.DTypeOf(Side::kCandidate);
  out.other = StatsOf(point, Side::kCandidate);
  DifferenceSums sums;
  ChosenRow reference, candidate;
  for (const JoinedRow& row : point.rows()) {
    point.Read(Side::kReference, row, &reference);
    point.Read(Side::kCandidate, row, &candidate);
    sums.Add(point, row, reference, candidate);
  }
  out.difference = sums.Finish();
  out.difference->only_reference = point.only_reference();
  out.difference->only_candidate = point.only_candidate();
  return out;
}

void WriteNpy(const ChosenPoint& point, const std::string& path) {
  std::vector<int64_t> shape = {static_cast<int64_t>(point.rows().size())};
  for (const ChosenAxis& axis : point.axes()) shape.push_back(static_cast<int64_t>(axis.index.size()));
  NpyWriter file(path, point.DTypeOf(Side::kReference), shape);
  ChosenRow row;
  for (const JoinedRow& joined : point.rows()) {
    point.Read(Side::kReference, joined, &row);
    file.Append(row.values);
  }
  file.Commit();
}

void Release(const SideRuns& side, const std::string& name) {
  for (const StepTensors& where : side.points.at(name)) {
    for (const TraceTensor* tensor : where.tensors) MappedFile::Release(tensor->data, tensor->bytes);
  }
}

}  // namespace

std::vector<TensorLook> LookInto(const std::vector<std::string>& traces, const std::string& what,
                                 const std::string& npy) {
  const OpenSide side(traces, Side::kReference);
  const auto [names, slice] = ChosenNames(side.runs.points, what, traces.front());
  if (!npy.empty() && names.size() > 1) {
    throw Error(npy + ": holds one tensor, and \"" + what + "\" names " + std::to_string(names.size()) +
                "; `lockstep export` writes many");
  }
  std::vector<SequencePair> pairs;
  for (const auto& [number, tokens] : side.runs.sequences) pairs.push_back({number, number, tokens.size(), {}});
  std::vector<TensorLook> out;
  for (const std::string& name : names) {
    const ChosenPoint point(name, side.runs, side.runs, pairs, slice);
    out.push_back(Look(name, point, false));
    if (!npy.empty()) WriteNpy(point, npy);
    Release(side.runs, name);
  }
  return out;
}

std::vector<TensorLook> LookAtDifference(const std::vector<std::string>& reference,
                                         const std::vector<std::string>& candidate, const std::string& what) {
  const OpenSide left(reference, Side::kReference), right(candidate, Side::kCandidate);
  const auto [names, slice] = ChosenNames(left.runs.points, what, reference.front());
  std::vector<std::string> notes;
  const std::vector<SequencePair> pairs = PairSequences(left.runs, right.runs, {}, &notes);
  std::vector<TensorLook> out;
  for (const std::string& name : names) {
    if (!right.runs.points.contains(name)) {
      if (names.size() > 1) continue;
      ThrowUnknown(right.runs.points, name, candidate.front());
    }
    out.push_back(Look(name, ChosenPoint(name, left.runs, right.runs, pairs, slice), true));
    out.back().problems.insert(out.back().problems.end(), notes.begin(), notes.end());
    for (const SideRuns* side : {&left.runs, &right.runs}) Release(*side, name);
  }
  if (out.empty()) throw Error(candidate.front() + ": holds none of the points that \"" + what + "\" names");
  return out;
}

}  // namespace lockstep
