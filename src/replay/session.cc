#include "replay/session.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/mapped_file.h"
#include "replay/arithmetic_check.h"

namespace lockstep {
namespace {

std::string_view OpName(Op op) {
  switch (op) {
    case Op::kEmbedding: return "embedding";
    case Op::kCopy: return "identity";
    case Op::kRmsNorm: return "rms_norm";
    case Op::kLinear: return "linear";
    case Op::kRope: return "rope";
    case Op::kScores: return "attention_scores";
    case Op::kSoftmax: return "softmax";
    case Op::kAttention: return "attention";
    case Op::kAdd: return "add";
    case Op::kSwiGlu: return "swiglu";
  }
  return "";
}

// Of the trace, which may hold the first layers only; -1 where it does not say.
int LayersOf(const TraceRuns& runs) {
  const TraceMeta& meta = runs.runs.front().meta();
  const auto found = meta.config.find("num_hidden_layers");
  int layers = -1;
  if (found == meta.config.end()) return layers;
  std::from_chars(found->second.data(), found->second.data() + found->second.size(), layers);
  return layers;
}

std::vector<TokenAt> FirstOf(const std::vector<TokenAt>& tokens, size_t count) {
  std::vector<TokenAt> out(tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(std::min(count, tokens.size())));
  std::erase_if(out, [&](const TokenAt& token) { return token.run != out.front().run; });
  return out;
}

}  // namespace

ReplaySession::ReplaySession(const std::vector<std::string>& traces, const std::string& model)
    : paths_(traces),
      model_path_(model),
      readers_(OpenAll(traces, "replay")),
      runs_(GroupRuns(Views(readers_))),
      meta_(runs_.runs.front().meta()) {
  checkpoint_ = std::make_unique<Checkpoint>(Checkpoint::Open(model));
  check_ = CheckModel(runs_, *checkpoint_);
  const int layers = LayersOf(runs_);
  if (layers > 0 && layers < checkpoint_->config().num_hidden_layers) {
    checkpoint_ = std::make_unique<Checkpoint>(Checkpoint::Open(model, layers));
  }
  model_ = std::make_unique<ReplayModel>(*checkpoint_);
  captures_ = std::make_unique<Captures>(runs_);

  ArithmeticCheck arithmetic = CheckArithmetic(runs_);
  notes_ = check_.notes;
  notes_.insert(notes_.end(), arithmetic.contradictions.begin(), arithmetic.contradictions.end());
  if (arithmetic.inferred) {
    meta_.arithmetic = arithmetic.inferred->arithmetic;
    meta_.overrides = arithmetic.inferred->overrides;
    notes_.push_back(arithmetic.inferred->text);
  }
  evaluator_ = std::make_unique<Evaluator>(*captures_, *model_, meta_);
  if (!meta_.has_arithmetic) InferOperands();
}

// Values tell in which dtype they are stored, not what a product made of them: there the dtype is taken that fits best.
void ReplaySession::InferOperands() {
  const auto fit = [&](Point point, DType Arithmetic::*field, const char* what) {
    const PointAt at = {point, 0};
    const CapturedPoint& captured = captures_->Of(at);
    if (captured.empty() || meta_.ArithmeticOf(at.Name()).storage != DType::kF32) return;
    const std::vector<TokenAt> tokens = FirstOf(captured.tokens(), 16);
    DType best = meta_.arithmetic.*field;
    double least = INFINITY;
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      meta_.arithmetic.*field = dtype;
      const PointErrors errors = Judge(*evaluator_, evaluator_->CallOf(at), &tokens);
      if (errors.summary.rows > 0 && errors.summary.whole < least / 2) best = dtype, least = errors.summary.whole;
    }
    meta_.arithmetic.*field = best;
    evaluator_->ForgetKeys();
    if (best != DType::kF32) notes_.push_back(std::string(what) + " fit " + std::string(DTypeName(best)) + " best");
  };
  fit(Point::kAttnQProjRaw, &Arithmetic::operands, "the operands of matrix products are not declared; they");
  fit(Point::kAttnContext, &Arithmetic::cache, "the dtype of the cache is not declared; its values");
}

void ReplaySession::JudgePoint(const PointAt& point, bool details, const std::function<void(PointErrors&)>& faulty,
                               ReplayResult* result) {
  const CapturedPoint& captured = captures_->Of(point);
  const OpCall call = evaluator_->CallOf(point);
  const auto detail = details ? std::make_shared<LocalDetail>() : nullptr;
  PointErrors errors = Judge(*evaluator_, call, nullptr, detail.get());
  LocalError& summary = errors.summary;
  summary.detail = detail;
  summary.name = point.Name();
  summary.layer = point.layer;
  summary.point = SpecOf(point.id).name;
  summary.op = OpName(call.op);
  const int64_t width = model_->WidthOf(point.id);
  if (width > 0 && captured.width() != width) {
    summary.verdict = OpVerdict::kFaulty;
    summary.reasons = {"rows of " + std::to_string(captured.width()) + " elements, the model has " +
                       std::to_string(width)};
  }
  if (summary.verdict == OpVerdict::kFaulty && faulty) faulty(errors);
  evaluator_->ForgetKeys();
  result->points.push_back(std::move(summary));
}

void ReplaySession::ReleaseLayer(int layer) {
  if (layer < 0) return;
  for (const PointSpec& spec : Points()) {
    if (!spec.per_layer) continue;
    const PointAt point = {spec.id, layer};
    captures_->Forget(point);
    if (const std::string name = model_->WeightName(point); !name.empty()) checkpoint_->Release(checkpoint_->Get(name));
    const auto steps = runs_.points.find(point.Name());
    if (steps == runs_.points.end()) continue;
    for (const StepTensors& where : steps->second) {
      for (const TraceTensor* tensor : where.tensors) MappedFile::Release(tensor->data, tensor->bytes);
    }
  }
}

ReplayResult ReplaySession::Run(const ReplayOptions& options, const std::function<void(PointErrors&)>& faulty) {
  // What the trace holds is replayed, the points on request too.
  const Selection selection(options.points.empty() ? "*,attn_scores,attn_probs" : options.points, options.layers, "",
                            "");

  std::vector<std::string> names;
  for (const auto& [name, steps] : runs_.points) names.push_back(name);
  std::vector<PointAt> points;
  for (const std::string& name : InExecutionOrder(names)) {
    const auto ref = ParsePointName(name);
    if (!ref || ref->layer >= config().num_hidden_layers || !selection.WantsPoint(name)) continue;
    points.push_back({ref->spec->id, ref->layer});
  }

  if (points.empty()) {
    throw Error(paths_.front() + ": nothing to replay: none of its " + std::to_string(names.size()) + " points" +
                (names.empty() ? "" : " (" + names.front() + (names.size() > 1 ? ", …)" : ")")) +
                (options.points.empty() && options.layers.empty()
                     ? " is in the table of docs/points.md"
                     : " is selected by points \"" + options.points + "\", layers \"" + options.layers + "\""));
  }

  ReplayResult result;
  result.traces = paths_;
  result.model = model_path_;
  result.arithmetic = meta_.arithmetic;
  result.has_arithmetic = meta_.has_arithmetic;
  result.weights = check_.weights;
  result.weights_compared = check_.weights_compared;
  result.notes = notes_;
  int layer = -1;
  for (size_t i = 0; i < points.size(); ++i) {
    // What lies two layers back is not read again.
    if (points[i].layer > layer) {
      layer = points[i].layer;
      ReleaseLayer(layer - 2);
    }
    JudgePoint(points[i], options.details, faulty, &result);
    if (options.progress) options.progress(i + 1, points.size());
  }
  for (size_t i = 0; i < result.points.size(); ++i) {
    const OpVerdict verdict = result.points[i].verdict;
    result.clean += verdict == OpVerdict::kClean;
    result.suspect += verdict == OpVerdict::kSuspect;
    result.faulty += verdict == OpVerdict::kFaulty;
    result.not_observable += verdict == OpVerdict::kNotObservable;
    if (verdict == OpVerdict::kFaulty && !result.first_faulty) result.first_faulty = i;
  }
  if (result.not_observable == points.size()) {
    const std::vector<std::string>& reasons = result.points.front().reasons;
    throw Error(paths_.front() + ": nothing can be recomputed: " + result.points.front().name + ": " +
                (reasons.empty() ? "no row was captured" : reasons.front()) + "; capture the inputs, too");
  }
  NoteWarnings(readers_, &result.notes);
  return result;
}

std::string_view OpVerdictName(OpVerdict verdict) {
  switch (verdict) {
    case OpVerdict::kClean: return "clean";
    case OpVerdict::kSuspect: return "suspect";
    case OpVerdict::kFaulty: return "faulty";
    case OpVerdict::kNotObservable: return "not-observable";
  }
  return "";
}

ReplayResult Replay(const std::vector<std::string>& traces, const std::string& model, const ReplayOptions& options) {
  return ReplaySession(traces, model).Run(options);
}

}  // namespace lockstep
