// A live comparison measures every tensor when it is recorded and keeps sums and a digest of each row; what needs the
// whole candidate is done at the end by the code behind Compare(), over steps without data.
#include <algorithm>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <unordered_map>

#include "base/convert.h"
#include "base/safetensors.h"
#include "compare/classify.h"
#include "compare/config.h"
#include "compare/detail.h"
#include "compare/logits.h"
#include "compare/shapes.h"
#include "compare/views.h"
#include "lockstep/compare.h"
#include "lockstep/points.h"
#include "trace/load.h"
#include "trace/meta.h"
#include "trace/runs.h"

namespace lockstep {
namespace {

// A point that the reference has: its rows, ready to be found.
struct LivePoint {
  std::vector<std::string> axes;
  PointRows reference;         // rows sorted by key
  std::vector<int64_t> shape;  // of a row; empty: the shapes do not fit, nothing is compared
  RowKind kind = RowKind::kPlain;
  size_t hint = 0;  // where the next row is likely to be
};

Selection SelectionOf(const TraceMeta& meta) {
  try {
    return {meta.select_points, meta.select_layers, meta.select_steps, meta.select_rows};
  } catch (const std::invalid_argument& e) {
    throw Error(e.what());
  }
}

std::vector<int32_t> Indices(size_t count) {
  std::vector<int32_t> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<int32_t>(i);
  return out;
}

int64_t Key64(int32_t sequence, int32_t position) { return int64_t{sequence} << 32 | position; }

}  // namespace

struct LiveComparison::Impl {
  Impl(const std::vector<std::string>& traces, const std::string& candidate_name, const TraceInfo& info,
       const CompareOptions& compare_options)
      : options(compare_options),
        filter(FilterOf(options)),
        user(UserLimitOf(options)),
        readers(OpenAll(traces, SideName(Side::kReference))),
        reference_views(Views(readers)),
        reference(GroupRuns(Side::kReference, reference_views)),
        name(candidate_name),
        meta(MetaOf(info)),
        selection(SelectionOf(meta)) {
    if (!info.tensors.empty())
      throw Error("a live comparison takes tensors as the point table has them, no TraceInfo::tensors");
    std::vector<std::string> notes;  // Finish tells them
    CheckConfigs(reference_views, {View()}, &notes);
    const SideRuns candidate = GroupRuns(Side::kCandidate, {View()});
    heads = HeadsOf(reference, candidate);
    num_layers = static_cast<int>(ConfigNumber(reference, "num_hidden_layers"));
    roundoff = DeclaredRoundoff(meta);
    for (const TraceView& view : reference_views) roundoff = std::max(roundoff, DeclaredRoundoff(*view.meta));
    for (const auto& [number, tokens] : reference.sequences) {
      reference_numbers[number] = number;
      if (options.pairs.empty()) numbers[static_cast<int>(numbers.size())] = number;
    }
    for (const auto& [ref, cand] : options.pairs) numbers[cand] = ref;
  }

  TraceView View() const { return {name, &meta, &steps}; }

  void BeginStep(TraceStep step);
  bool Wants(const std::string& point) const {
    return open && selection.WantsPoint(point) && selection.WantsStep(static_cast<int64_t>(steps.size()) - 1);
  }
  bool Record(TraceTensor tensor, const std::vector<int64_t>& strides);
  CompareResult Finish();

 private:
  void CheckToken(const TraceStep& step, size_t token);
  LivePoint& PointOf(const std::string& point, const Piece& piece);
  std::vector<JoinedRow> Join(const TraceTensor& tensor, const std::vector<int32_t>& kept, LivePoint* point) const;
  bool Compare(const TraceTensor& tensor, const std::vector<int32_t>& kept, const std::vector<int64_t>& strides);
  static void KeepWindow(const PointPass& pass, MeasuredPoint* sums);
  bool Differs(const TraceTensor& tensor, const LivePoint& point, const Totals& totals) const;
  void KeepNextTokens(TraceTensor* tensor, const std::vector<int32_t>& kept);

  CompareOptions options;
  Selection filter;
  std::optional<Limit> user;
  std::vector<TraceReader> readers;
  std::vector<TraceView> reference_views;
  SideRuns reference;
  std::string name;

 public:
  TraceMeta meta;
  std::vector<TraceStep> steps;  // without data
  bool open = false;

 private:
  Selection selection;
  HeadCounts heads;
  int num_layers = 0;
  double roundoff = 0;
  std::map<int, int> numbers;  // from the candidate's sequences to the reference's
  std::map<int, int> reference_numbers;
  std::unordered_map<int64_t, bool> seen;  // keys that were run
  std::vector<char> selected;              // of the open step's tokens
  std::unordered_map<std::string, LivePoint> points;
  MeasuredPoints measured;
  std::deque<std::vector<int32_t>> next_tokens;
};

void LiveComparison::Impl::CheckToken(const TraceStep& step, size_t token) {
  const int32_t sequence = step.sequences[token], position = step.positions[token];
  if (sequence < 0) return;
  const std::string where = "sequence " + std::to_string(sequence) + ", position " + std::to_string(position);
  if (!seen.emplace(Key64(sequence, position), true).second) {
    throw Error(where +
                ": run twice; a live comparison cannot take back what it has compared, capture to a trace instead");
  }
  const auto number = numbers.find(sequence);
  if (number == numbers.end()) {
    if (!options.pairs.empty()) return;
    throw Error(where + ": the reference has only " + std::to_string(numbers.size()) + " sequences");
  }
  const SequenceTokens& tokens = reference.sequences.at(number->second);
  const auto theirs = tokens.find(position);
  if (theirs == tokens.end() || step.input_ids.empty()) return;
  const int32_t id = step.input_ids[token];
  if (id < 0 || theirs->second < 0 || id == theirs->second) return;
  throw Error(where + ": token id " + std::to_string(theirs->second) + " in the reference, " + std::to_string(id) +
              " in the candidate; feed both the same tokens");
}

void LiveComparison::Impl::BeginStep(TraceStep step) {
  if (open) throw Error("step " + std::to_string(steps.size()) + ": begun before the one before it was ended");
  const size_t count = step.positions.size();
  if (step.sequences.size() != count || (!step.input_ids.empty() && step.input_ids.size() != count)) {
    throw Error("step " + std::to_string(steps.size()) + ": expected as many sequences and ids as the " +
                std::to_string(count) + " positions, found " + std::to_string(step.sequences.size()) + " and " +
                std::to_string(step.input_ids.size()));
  }
  for (size_t i = 0; i < count; ++i) CheckToken(step, i);
  selected.assign(count, 0);
  for (int32_t token : selection.SelectRows(step.positions, step.sequences)) selected[static_cast<size_t>(token)] = 1;
  steps.push_back(std::move(step));
  open = true;
}

// The reference's rows of the point, from its first tensor on. `piece`: the candidate's first.
LivePoint& LiveComparison::Impl::PointOf(const std::string& point_name, const Piece& piece) {
  const auto [at, is_new] = points.try_emplace(point_name);
  LivePoint& point = at->second;
  if (!is_new) return point;
  const std::vector<StepTensors>& tensors = reference.points.at(point_name);
  point.axes = RowAxes(point_name, *tensors.front().tensors.front());
  std::vector<Failure> told_at_the_end;
  point.reference = CollectRows(reference, point_name, tensors, point.axes, reference_numbers, &told_at_the_end);
  if (point.reference.pieces.empty()) return point;
  PointRows candidate;
  candidate.pieces.push_back(piece);
  candidate.where.push_back({});
  point.shape = UniteShapes(point_name, point.axes, heads, &point.reference, &candidate, &told_at_the_end);
  point.kind = point.shape.size() < 2 ? RowKind::kPlain : KindOf(point_name, point.axes);
  std::stable_sort(point.reference.rows.begin(), point.reference.rows.end(), [](const RowRef& a, const RowRef& b) {
    return Key{a.sequence, a.position} < Key{b.sequence, b.position};
  });
  return point;
}

// kept: rows of the tensor that are selected.
std::vector<JoinedRow> LiveComparison::Impl::Join(const TraceTensor& tensor, const std::vector<int32_t>& kept,
                                                  LivePoint* point) const {
  const TraceStep& step = steps.back();
  std::vector<JoinedRow> joined;
  for (const int32_t row : kept) {
    const auto token = static_cast<size_t>(tensor.rows[static_cast<size_t>(row)]);
    const auto number = numbers.find(step.sequences[token]);
    if (number == numbers.end()) continue;
    RowRef ref{number->second, step.positions[token]};
    if (!step.input_ids.empty()) ref.input_id = step.input_ids[token];
    const RowRef* theirs = FindRow(point->reference.rows, ref, &point->hint);
    if (theirs != nullptr) joined.push_back({ref.sequence, ref.position, theirs->at, {0, row}});
  }
  return joined;
}

bool LiveComparison::Impl::Compare(const TraceTensor& tensor, const std::vector<int32_t>& kept,
                                   const std::vector<int64_t>& strides) {
  if (!filter.WantsPoint(tensor.name) || !reference.points.contains(tensor.name)) return false;
  const std::vector<std::string> axes = RowAxes(tensor.name, *reference.points.at(tensor.name).front().tensors.front());
  std::vector<Piece> pieces = {Piece::View(tensor, axes, strides)};
  LivePoint& point = PointOf(tensor.name, pieces.front());
  MeasuredPoint& sums = measured[tensor.name];
  std::vector<RowDigest>& digests = sums.digests.emplace_back(kept.size());
  if (point.shape.empty() || !FitPiece(point.shape, point.kind, &pieces.front())) return true;

  const std::vector<JoinedRow> joined = Join(tensor, kept, &point);
  Totals totals;
  PointPass pass = {&point.reference.pieces, &pieces, joined, point.kind, user};
  if (options.details && !sums.detail) {
    sums.detail = std::make_shared<DetailSums>(KeysOf(point.reference.rows), point.shape, point.kind);
  }
  pass.detail = sums.detail.get();
  pass.phases = {&steps.back().phase, 1};
  const std::vector<RowDigest> found = MeasureRows(pass, &totals);
  size_t at = 0;
  for (size_t i = 0; i < joined.size(); ++i) {
    while (kept[at] != joined[i].candidate.row) ++at;
    digests[at] = found[i];
  }
  if (!joined.empty()) sums.totals.Merge(totals);
  if (sums.detail) KeepWindow(pass, &sums);
  if (tensor.name == PointName(Point::kLogits)) {
    const std::vector<TokenRow> rows = MeasureLogits(point.reference.pieces, pieces, joined);
    sums.tokens.insert(sums.tokens.end(), rows.begin(), rows.end());
  }
  return !joined.empty() && Differs(tensor, point, totals);
}

// The values are gone when the next tensor comes: the window is read whenever the worst element is one of these.
void LiveComparison::Impl::KeepWindow(const PointPass& pass, MeasuredPoint* sums) {
  const auto place = WindowPlace(sums->totals);
  ValueWindow window = place ? ReadWindow(pass, *place) : ValueWindow();
  if (!window.positions.empty()) sums->detail->window = std::move(window);
}

bool LiveComparison::Impl::Differs(const TraceTensor& tensor, const LivePoint& point, const Totals& totals) const {
  PointResult result;
  result.name = tensor.name;
  result.layer = LayerOf(tensor.name);
  result.reference.dtype = point.reference.pieces.front().dtype();
  result.candidate.dtype = tensor.dtype;
  if (user) result.within_user = 0;
  Fill(totals, &result);
  Judge(std::max({roundoff, UnitRoundoff(result.reference.dtype), UnitRoundoff(tensor.dtype)}), num_layers, &result);
  return !result.reasons.empty() || result.diff_class == DiffClass::kSignificant;
}

void LiveComparison::Impl::KeepNextTokens(TraceTensor* tensor, const std::vector<int32_t>& kept) {
  std::vector<int32_t>& values = next_tokens.emplace_back();
  for (const int32_t row : kept) values.push_back(LoadElement<int32_t>(tensor->data, static_cast<size_t>(row)));
  tensor->data = reinterpret_cast<const std::byte*>(values.data());
}

bool LiveComparison::Impl::Record(TraceTensor tensor, const std::vector<int64_t>& strides) {
  if (!open) throw Error(tensor.name + ": recorded outside of a step");
  if (!Wants(tensor.name)) return false;
  TraceStep& step = steps.back();
  if (tensor.rows.empty()) tensor.rows = Indices(step.positions.size());
  if (tensor.shape.empty() || tensor.shape[0] != static_cast<int64_t>(tensor.rows.size())) {
    throw Error(tensor.name + ": expected a row for each of " + std::to_string(tensor.rows.size()) +
                " tokens, found shape " + ShapeText(tensor.shape));
  }
  for (const int32_t row : tensor.rows) {
    if (row >= 0 && static_cast<size_t>(row) < step.positions.size()) continue;
    throw Error(tensor.name + ": expected rows from 0 to " + std::to_string(step.positions.size()) + ", found " +
                std::to_string(row));
  }
  if (step.Find(tensor.name) != nullptr) {
    step.duplicates.push_back(tensor.name);
    return true;
  }
  NameTableAxes(&tensor);
  std::vector<int32_t> kept = Indices(tensor.rows.size());
  if (!selection.WantsAllRows()) {
    std::erase_if(kept,
                  [&](int32_t row) { return !selected[static_cast<size_t>(tensor.rows[static_cast<size_t>(row)])]; });
  }
  bool differs = false;
  if (tensor.name != "next_token") {
    differs = Compare(tensor, kept, strides);
    tensor.data = nullptr;
  } else if (tensor.dtype == DType::kI32 && tensor.shape.size() == 1) {
    KeepNextTokens(&tensor, kept);
  }
  // What the trace would hold.
  std::vector<int32_t> tokens;
  for (const int32_t row : kept) tokens.push_back(tensor.rows[static_cast<size_t>(row)]);
  tensor.rows = std::move(tokens);
  tensor.shape[0] = static_cast<int64_t>(kept.size());
  step.tensors.push_back(std::move(tensor));
  return differs;
}

CompareResult LiveComparison::Impl::Finish() {
  if (open) throw Error("step " + std::to_string(steps.size() - 1) + " is still open");
  meta.closed = true;
  CompareOptions final_options = options;
  if (final_options.pairs.empty()) {
    const SideRuns candidate = GroupRuns(Side::kCandidate, {View()});
    for (const auto& [number, tokens] : candidate.sequences)
      final_options.pairs.emplace_back(numbers.at(number), number);
  }
  CompareResult result = CompareViews(reference_views, {View()}, final_options, &measured);
  NoteWarnings(readers, &result.notes);
  return result;
}

LiveComparison::LiveComparison(const std::vector<std::string>& reference_traces, const std::string& name,
                               const TraceInfo& info, const CompareOptions& options)
    : impl_(std::make_unique<Impl>(reference_traces, name, info, options)) {}
LiveComparison::LiveComparison(LiveComparison&&) noexcept = default;
LiveComparison& LiveComparison::operator=(LiveComparison&&) noexcept = default;
LiveComparison::~LiveComparison() = default;

void LiveComparison::SetWeight(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                               const std::string& hash) {
  impl_->meta.weights[name] = {dtype, shape, hash};
}

void LiveComparison::BeginStep(std::span<const int32_t> input_ids, std::span<const int32_t> positions,
                               std::span<const int32_t> sequences, Phase phase) {
  TraceStep step;
  step.phase = phase;
  step.positions.assign(positions.begin(), positions.end());
  step.sequences.assign(sequences.begin(), sequences.end());
  step.input_ids.assign(input_ids.begin(), input_ids.end());
  impl_->BeginStep(std::move(step));
}

bool LiveComparison::Wants(const std::string& name) const { return impl_->Wants(name); }

bool LiveComparison::Record(const std::string& name, const void* data, DType dtype, const std::vector<int64_t>& shape,
                            const std::vector<int64_t>& strides, std::span<const int32_t> rows) {
  TraceTensor tensor;
  tensor.name = name;
  tensor.dtype = dtype;
  tensor.shape = shape;
  tensor.data = static_cast<const std::byte*>(data);
  tensor.rows.assign(rows.begin(), rows.end());
  if (!strides.empty() && strides.size() != shape.size()) {
    throw Error(name + ": expected " + std::to_string(shape.size()) + " strides, found " +
                std::to_string(strides.size()));
  }
  return impl_->Record(std::move(tensor), strides);
}

void LiveComparison::EndStep() { impl_->open = false; }

CompareResult LiveComparison::Finish() { return impl_->Finish(); }

}  // namespace lockstep
