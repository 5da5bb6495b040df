// Main is a table of contents: tokens and configs, then completeness and weights, then every point once.
#include "compare/views.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <stdexcept>

#include "base/mapped_file.h"
#include "compare/classify.h"
#include "compare/completeness.h"
#include "compare/config.h"
#include "compare/detail.h"
#include "compare/growth.h"
#include "compare/identities.h"
#include "compare/logits.h"
#include "compare/metrics.h"
#include "compare/shapes.h"
#include "compare/tokens.h"
#include "compare/weights.h"
#include "lockstep/points.h"

namespace lockstep {
namespace {

std::string Listed(const std::vector<std::string>& names) {
  constexpr size_t kShown = 6;
  std::string text;
  for (size_t i = 0; i < std::min(kShown, names.size()); ++i) text += (i ? ", " : "") + names[i].substr(0, 80);
  if (names.size() > kShown) text += ", … (" + std::to_string(names.size()) + ")";
  return text.empty() ? "none" : text;
}

std::vector<std::string> PointNames(const SideRuns& side) {
  std::vector<std::string> names;
  for (const auto& [name, steps] : side.points) names.push_back(name);
  return InExecutionOrder(std::move(names));
}

// Indices of the rows by the candidate's piece and row.
std::vector<size_t> CandidateOrder(const std::vector<JoinedRow>& rows) {
  std::vector<size_t> order(rows.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto at = [&](size_t i) { return std::pair(rows[i].candidate.piece, rows[i].candidate.row); };
  const auto before = [&](size_t i, size_t j) { return at(i) < at(j); };
  if (!std::is_sorted(order.begin(), order.end(), before)) std::sort(order.begin(), order.end(), before);
  return order;
}

class Comparison {
 public:
  Comparison(const std::vector<TraceView>& reference, const std::vector<TraceView>& candidate,
             const CompareOptions& options, const MeasuredPoints* measured)
      : options_(options), filter_(FilterOf(options)), user_(UserLimitOf(options)), measured_(measured) {
    CheckTolerance();
    CheckConfigs(reference, candidate, &result_.notes);
    reference_ = GroupRuns(Side::kReference, reference);
    candidate_ = GroupRuns(Side::kCandidate, candidate);
    result_.pairs = PairSequences(reference_, candidate_, options.pairs, &result_.notes);
    for (const SequencePair& pair : result_.pairs) {
      reference_numbers_[pair.reference] = pair.reference;
      candidate_numbers_[pair.candidate] = pair.reference;
    }
  }

  CompareResult Run() {
    // From here on both sides are joined and immutable.
    Summarise(reference_, &result_.reference);
    Summarise(candidate_, &result_.candidate);
    const std::vector<std::string> names = CommonPoints();
    CheckCompleteness();
    CompareWeights(reference_, candidate_, &result_);
    LearnModel(names);
    for (size_t i = 0; i < names.size(); ++i) {
      ComparePoint(names[i]);
      for (const SideRuns* side : {&reference_, &candidate_}) Release(*side, names[i]);
      if (options_.progress) options_.progress(i + 1, names.size());
    }
    CheckIdentitiesOfSides();
    Finish(names);
    return std::move(result_);
  }

 private:
  void CheckTolerance() {
    for (const auto& tolerance : {options_.atol, options_.rtol}) {
      if (tolerance && !(*tolerance >= 0))
        throw Error("tolerance: expected 0 or more, found " + std::to_string(*tolerance));
    }
    result_.atol = options_.atol;
    result_.rtol = options_.rtol;
  }

  bool Wanted(const std::string& name) const { return filter_.WantsPoint(name); }

  void Summarise(const SideRuns& side, SideSummary* summary) {
    const TraceMeta& meta = side.runs.front().meta();
    summary->producer = meta.producer + (meta.producer_version.empty() ? "" : " " + meta.producer_version);
    summary->model_type = meta.model_type;
    summary->has_arithmetic = meta.has_arithmetic;
    summary->storage = meta.arithmetic.storage;
    if (!meta.has_arithmetic && !side.points.empty()) {
      summary->storage = side.points.begin()->second.front().tensors.front()->dtype;
    }
    summary->runs = side.runs.size();
    for (const lockstep::Run& run : side.runs) {
      summary->steps += run.num_steps();
      for (const TraceView& trace : run.traces) {
        summary->traces.push_back(trace.path);
        summary->closed = summary->closed && trace.meta->closed;
        roundoff_ = std::max(roundoff_, DeclaredRoundoff(*trace.meta));
      }
    }
    summary->sequences = side.sequences.size();
    for (const auto& [number, tokens] : side.sequences) summary->tokens += tokens.size();
    summary->points = side.points.size();
  }

  std::vector<std::string> CommonPoints() const {
    std::vector<std::string> common, wanted;
    for (const auto& [name, steps] : reference_.points) {
      if (candidate_.points.contains(name)) common.push_back(name);
    }
    if (common.empty()) {
      throw Error("the two sides have no point in common; the reference has " + Listed(PointNames(reference_)) +
                  "; the candidate has " + Listed(PointNames(candidate_)));
    }
    std::copy_if(common.begin(), common.end(), std::back_inserter(wanted),
                 [&](const auto& name) { return Wanted(name); });
    if (wanted.empty()) {
      throw Error("points \"" + options_.points + "\", layers \"" + options_.layers + "\": none of the " +
                  std::to_string(common.size()) + " points in common is selected; there are " +
                  Listed(InExecutionOrder(common)));
    }
    return InExecutionOrder(std::move(wanted));
  }

  void CheckCompleteness() {
    for (const SideRuns* side : {&reference_, &candidate_}) {
      CheckTraces(*side, &result_.failures);
      CheckPromises(*side, [&](const std::string& name) { return Wanted(name); }, &result_.failures);
    }
    ListOneSided(reference_, candidate_, &result_.only_reference);
    ListOneSided(candidate_, reference_, &result_.only_candidate);
    selected_reference_ = SelectedKeys(reference_, reference_numbers_);
    selected_candidate_ = SelectedKeys(candidate_, candidate_numbers_);
  }

  // Points that only `side` has, with what the other says about them. A broken promise is a failure and stands there.
  void ListOneSided(const SideRuns& side, const SideRuns& other, std::vector<OneSidedPoint>* list) const {
    for (const std::string& name : PointNames(side)) {
      if (other.points.contains(name) || !Wanted(name)) continue;
      const TraceMeta& meta = other.runs.front().meta();
      const bool hidden = std::any_of(meta.not_observable.begin(), meta.not_observable.end(), [&](const auto& pattern) {
        return MatchesPattern(pattern, name) || MatchesPattern(pattern, WithoutLayer(name));
      });
      if (hidden) {
        list->push_back({name, "not observable"});
      } else if (!other.runs.front().selection.WantsPoint(name)) {
        list->push_back({name, "not selected"});
      } else if (!Promises(other, name)) {
        list->push_back({name, "not promised"});
      }
    }
  }

  // A live candidate's values are gone.
  void CheckIdentitiesOfSides() {
    const auto wanted = [&](const std::string& name) { return Wanted(name); };
    CheckIdentities(reference_, reference_numbers_, heads_.head_dim, wanted, &result_.failures);
    if (measured_ != nullptr) return;
    CheckIdentities(candidate_, candidate_numbers_, heads_.head_dim, wanted, &result_.failures);
  }

  void LearnModel(const std::vector<std::string>& names) {
    heads_ = HeadsOf(reference_, candidate_);
    num_layers_ = static_cast<int>(std::min<int64_t>(
        std::max(ConfigNumber(reference_, "num_hidden_layers"), ConfigNumber(candidate_, "num_hidden_layers")),
        1 << 20));
    for (const std::string& name : names) num_layers_ = std::max(num_layers_, LayerOf(name) + 1);
  }

  // Keeps the memory small however large the traces are.
  static void Release(const SideRuns& side, const std::string& name) {
    for (const StepTensors& where : side.points.at(name)) {
      if (!side.runs[where.run].traces.front().mapped) continue;
      for (const TraceTensor* tensor : where.tensors) MappedFile::Release(tensor->data, tensor->bytes);
    }
  }

  // Both sides' rows of a point, and their join. False where there is nothing to compare; why stands in the failures.
  struct Collected {
    PointRows reference, candidate;
    std::vector<int64_t> row_shape;
    RowKind kind = RowKind::kPlain;
    Joined joined;
  };

  bool Collect(const std::string& name, Collected* out, std::vector<Failure>* failures) const {
    const std::vector<StepTensors>& ref = reference_.points.at(name);
    const std::vector<StepTensors>& cand = candidate_.points.at(name);
    const std::vector<std::string> axes = RowAxes(name, *ref.front().tensors.front());
    out->reference = CollectRows(reference_, name, ref, axes, reference_numbers_, failures);
    out->candidate = CollectRows(candidate_, name, cand, axes, candidate_numbers_, failures);
    if (out->reference.pieces.empty() || out->candidate.pieces.empty()) return false;
    if (measured_ != nullptr) out->candidate.digests = &measured_->at(name).digests;
    out->row_shape = UniteShapes(name, axes, heads_, &out->reference, &out->candidate, failures);
    if (out->row_shape.empty()) return false;
    out->kind = out->row_shape.size() < 2 ? RowKind::kPlain : KindOf(name, axes);
    out->joined = JoinRows(out->reference.rows, out->candidate.rows);
    return true;
  }

  void ComparePoint(const std::string& name) {
    Collected point;
    if (!Collect(name, &point, &result_.failures)) return;
    CheckRows(reference_, name, num_layers_, point.joined.only_candidate, selected_reference_, &result_.failures);
    CheckRows(candidate_, name, num_layers_, point.joined.only_reference, selected_candidate_, &result_.failures);
    NoteLayout(name, point);
    if (point.joined.rows.empty()) {
      without_rows_.push_back(name);
      return;
    }
    PointResult result = Describe(name, point);
    const RowHashes hashes = Measure(name, point, &result);
    if (name == PointName(Point::kLogits)) CompareLogits(name, point, result);
    const double u = RoundoffOf(result);
    Judge(u, num_layers_, &result);

    const double distinct = std::max(1e-4, 2 * u);
    const ComparedPoint compared{name, &point.reference, &point.candidate, &point.joined.rows, &hashes, distinct};
    CheckZeros(compared, &result_.failures);
    CheckStaleSteps(compared, &result_.failures);
    CheckSameLayer(name, point, hashes, distinct);
    result_.points.push_back(std::move(result));
  }

  RowHashes Measure(const std::string& name, const Collected& point, PointResult* result) const {
    const std::vector<JoinedRow>& joined = point.joined.rows;
    RowHashes hashes;
    hashes.reference.resize(joined.size());
    hashes.candidate.resize(joined.size());
    const auto keep = [&](size_t i, const RowDigest& digest) {
      hashes.reference[i] = digest.reference;
      hashes.candidate[i] = digest.candidate;
    };
    if (user_) result->within_user = 0;
    if (measured_ != nullptr) {
      for (size_t i = 0; i < joined.size(); ++i) {
        const RowAt at = joined[i].candidate;
        keep(i, (*point.candidate.digests)[static_cast<size_t>(at.piece)][static_cast<size_t>(at.row)]);
      }
      const MeasuredPoint& measured = measured_->at(name);
      Fill(measured.totals, result);
      if (measured.detail) result->detail = measured.detail->Finish();
      return hashes;
    }
    // In the order in which the candidate wrote the rows, as a live comparison does.
    const std::vector<size_t> order = CandidateOrder(joined);
    std::vector<JoinedRow> rows;
    for (size_t i : order) rows.push_back(joined[i]);
    Totals totals;
    PointPass pass = {&point.reference.pieces, &point.candidate.pieces, rows, point.kind, user_};
    const std::vector<Phase> phases = Phases(point.candidate);
    std::optional<DetailSums> detail;
    if (options_.details) {
      pass.detail = &detail.emplace(KeysOf(rows), point.row_shape, point.kind);
      pass.phases = phases;
    }
    const std::vector<RowDigest> digests = MeasureRows(pass, &totals);
    for (size_t i = 0; i < order.size(); ++i) keep(order[i], digests[i]);
    Fill(totals, result);
    if (detail) {
      if (const auto place = WindowPlace(totals)) detail->window = ReadWindow(pass, *place);
      result->detail = detail->Finish();
    }
    return hashes;
  }

  // Of the candidate's steps, by piece.
  std::vector<Phase> Phases(const PointRows& candidate) const {
    std::vector<Phase> phases;
    for (const StepTensors& where : candidate.where) {
      phases.push_back(candidate_.runs[where.run].Tokens(where.step).phase);
    }
    return phases;
  }

  void CompareLogits(const std::string& name, const Collected& point, const PointResult& result) {
    token_rows_ = measured_ != nullptr
                      ? measured_->at(name).tokens
                      : MeasureLogits(point.reference.pieces, point.candidate.pieces, point.joined.rows);
    logits_roundoff_ = RoundoffOf(result);
  }

  // The coarser side's.
  double RoundoffOf(const PointResult& point) const {
    return std::max({roundoff_, UnitRoundoff(point.reference.dtype), UnitRoundoff(point.candidate.dtype)});
  }

  static PointResult Describe(const std::string& name, const Collected& point) {
    PointResult result;
    result.name = name;
    result.layer = LayerOf(name);
    result.point = std::string(WithoutLayer(name));
    result.row_shape = point.row_shape;
    result.rows = static_cast<int64_t>(point.joined.rows.size());
    result.rows_only_reference = static_cast<int64_t>(point.joined.only_reference.size());
    result.rows_only_candidate = static_cast<int64_t>(point.joined.only_candidate.size());
    result.reference.dtype = point.reference.pieces.front().dtype();
    result.candidate.dtype = point.candidate.pieces.front().dtype();
    return result;
  }

  void NoteLayout(const std::string& name, const Collected& point) {
    const std::string& ref = point.reference.pieces.front().tensor().layout;
    const std::string& cand = point.candidate.pieces.front().tensor().layout;
    const std::string what(WithoutLayer(name));
    if (ref == cand || !layouts_noted_.insert(what).second) return;
    const auto quoted = [](const std::string& layout) {
      return layout.empty() ? std::string("none") : std::string(1, '"').append(layout, 0, 80).append(1, '"');
    };
    result_.notes.push_back(what + ": the declared layouts differ: " + quoted(ref) + " in the reference, " +
                            quoted(cand) + " in the candidate; the values are compared as they are");
  }

  struct LayerHashes {
    std::string name;
    uint64_t reference = 0;
    uint64_t candidate = 0;
  };

  void CheckSameLayer(const std::string& name, const Collected& point, const RowHashes& hashes, double distinct) {
    if (LayerOf(name) < 0) return;
    const LayerHashes own{name, TensorHash(hashes.reference), TensorHash(hashes.candidate)};
    std::vector<LayerHashes>& earlier = layer_hashes_[std::string(WithoutLayer(name))];
    for (const LayerHashes& other : earlier) {
      const bool same_reference = own.reference != 0 && own.reference == other.reference;
      const bool same_candidate = own.candidate != 0 && own.candidate == other.candidate;
      if (same_reference == same_candidate) continue;
      const Side side = same_reference ? Side::kReference : Side::kCandidate;
      if (!OtherSideDiffers(side, point, other.name, distinct)) continue;
      result_.failures.push_back({FailureKind::kSameAsLayer, side, name,
                                  "byte-identical to " + other.name + "; the " +
                                      std::string(SideName(same_reference ? Side::kCandidate : Side::kReference)) +
                                      "'s differ"});
      break;
    }
    earlier.push_back(own);
  }

  // Rare, so the earlier layer is collected once more.
  bool OtherSideDiffers(Side side, const Collected& point, const std::string& earlier_name, double distinct) const {
    Collected earlier;
    std::vector<Failure> told_already;
    if (!Collect(earlier_name, &earlier, &told_already)) return false;
    const auto rows = [&](const Joined& joined) {
      std::vector<RowAt> out;
      for (const JoinedRow& row : joined.rows) out.push_back(side == Side::kReference ? row.candidate : row.reference);
      return out;
    };
    const PointRows& values = side == Side::kReference ? point.candidate : point.reference;
    const PointRows& earlier_values = side == Side::kReference ? earlier.candidate : earlier.reference;
    return RowsDiffer(values, rows(point.joined), earlier_values, rows(earlier.joined), distinct);
  }

  void Finish(const std::vector<std::string>& names) {
    if (!without_rows_.empty()) {
      result_.notes.push_back(std::to_string(without_rows_.size()) + " of " + std::to_string(names.size()) +
                              " points have no row in common: " + Listed(without_rows_));
    }
    if (result_.points.empty() && result_.failures.empty()) {
      throw Error("the two sides have no row in common in any of their " + std::to_string(names.size()) +
                  " common points; were different rows or steps selected (LOCKSTEP_ROWS, LOCKSTEP_STEPS)?");
    }
    for (size_t i = 0; i < result_.points.size(); ++i) {
      const PointResult& point = result_.points[i];
      if (!result_.first_significant && point.diff_class == DiffClass::kSignificant) result_.first_significant = i;
      if (!result_.first_failing && !point.reasons.empty()) result_.first_failing = i;
      ++result_.class_counts[static_cast<size_t>(point.diff_class)];
      result_.bit_identical += point.bit_identical;
      result_.failing += !point.reasons.empty();
    }
    result_.growth = GrowthOf(result_.points);
    const Choices reference = RecordedChoices(reference_, reference_numbers_);
    const Choices candidate = RecordedChoices(candidate_, candidate_numbers_);
    result_.next_tokens = CompareNextTokens(reference, candidate);
    result_.tokens =
        JudgeTokens(std::move(token_rows_), reference, candidate, RelativeL2Bound(logits_roundoff_, num_layers_));
  }

  const CompareOptions& options_;
  Selection filter_;
  std::optional<Limit> user_;
  const MeasuredPoints* measured_;  // null: the values are read here
  SideRuns reference_, candidate_;
  std::map<int, int> reference_numbers_, candidate_numbers_;  // to the reference's numbers
  std::set<Key> selected_reference_, selected_candidate_;
  HeadCounts heads_;
  int num_layers_ = 0;
  double roundoff_ = 0;
  std::map<std::string, std::vector<LayerHashes>> layer_hashes_;  // by point
  std::set<std::string> layouts_noted_;
  std::vector<std::string> without_rows_;
  std::vector<TokenRow> token_rows_;
  double logits_roundoff_ = 0;
  CompareResult result_;
};

}  // namespace

Selection FilterOf(const CompareOptions& options) {
  try {
    // What both sides hold is compared, the points on request too.
    return Selection(options.points.empty() ? "*,attn_scores,attn_probs" : options.points, options.layers, "", "");
  } catch (const std::invalid_argument& e) {
    throw Error(e.what());
  }
}

std::optional<Limit> UserLimitOf(const CompareOptions& options) {
  if (!options.atol && !options.rtol) return std::nullopt;
  return Limit{options.atol.value_or(0), options.rtol.value_or(0)};
}

CompareResult CompareViews(const std::vector<TraceView>& reference, const std::vector<TraceView>& candidate,
                           const CompareOptions& options, const MeasuredPoints* measured) {
  return Comparison(reference, candidate, options, measured).Run();
}

}  // namespace lockstep
