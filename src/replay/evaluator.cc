#include "replay/evaluator.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "replay/noise.h"

namespace lockstep {
namespace {

constexpr int64_t kBlockElements = 8 << 20;  // of a block: 64 MiB of values, as much of variances
constexpr int64_t kMaxRows = 512;

}  // namespace

Evaluated EmptyRows(size_t tokens, int64_t width) {
  Evaluated out;
  out.block.Resize(static_cast<int64_t>(tokens), width);
  out.observable.assign(tokens, 0);
  return out;
}

void NoteInput(const Evaluated& input, Evaluated* out) {
  out->from.insert(input.from.begin(), input.from.end());
  out->bridged = out->bridged || input.bridged;
  if (out->missing.empty()) out->missing = input.missing;
}

void CopyRow(const Block& from, int64_t i, Block* to, int64_t j) {
  std::copy_n(from.Row(i), from.width, to->Row(j));
  if (!from.rounded.empty()) {
    to->rounded.resize(to->value.size());
    std::copy_n(from.rounded.begin() + i * from.width, from.width, to->rounded.begin() + j * to->width);
  }
  if (!from.doubtful.empty()) {
    to->doubtful.resize(to->value.size());
    std::copy_n(from.doubtful.begin() + i * from.width, from.width, to->doubtful.begin() + j * to->width);
  }
  if (from.variance.empty()) return;
  if (to->variance.empty()) to->variance.assign(to->value.size(), 0.0);
  std::copy_n(from.Variance(i), from.width, to->Variance(j));
}

Arithmetic Evaluator::ArithmeticOf(const PointAt& point) {
  Arithmetic arithmetic = meta_.ArithmeticOf(point.Name());
  const CapturedPoint& captured = captures_.Of(point);
  if (!captured.empty()) arithmetic.storage = Coarser(arithmetic.storage, captured.dtype());
  return arithmetic;
}

int64_t Evaluator::RowsPerBlock(const PointAt& point) {
  const CapturedPoint& captured = captures_.Of(point);
  const int64_t width = std::max<int64_t>({1, model_.WidthOf(point.id), captured.width()});
  return std::clamp<int64_t>(kBlockElements / width, 1, kMaxRows);
}

Evaluated Evaluator::Captured(const PointAt& point, const std::vector<TokenAt>& tokens) {
  if (model_.WidthOf(point.id) == 0) return CapturedKeys(point, tokens);
  const CapturedPoint& captured = captures_.Of(point);
  const int64_t width = model_.WidthOf(point.id);
  Evaluated out = EmptyRows(tokens.size(), width);
  if (captured.empty()) return out;
  out.from.insert(point.Name());
  // A capture that is coarser than what the engine went on with has a rounding of its own.
  const Grid grid(captured.dtype());
  const bool coarse = grid.unit_error() > Grid(meta_.ArithmeticOf(point.Name()).storage).unit_error();
  if (coarse) out.block.variance.assign(out.block.value.size(), 0.0);
  ParallelFor(static_cast<int64_t>(tokens.size()), [&](int64_t i) {
    const int64_t index = captured.IndexOf(tokens[static_cast<size_t>(i)]);
    if (index < 0 || captured.RowSize(index) != width) return;
    std::vector<float> row(static_cast<size_t>(width));
    captured.Read(index, row.data());
    std::copy(row.begin(), row.end(), out.block.Row(i));
    for (int64_t c = 0; coarse && c < width; ++c) out.block.Variance(i)[c] = grid.Rounding(row[static_cast<size_t>(c)]);
    out.observable[static_cast<size_t>(i)] = 1;
  });
  return out;
}

Evaluated Evaluator::Input(const PointAt& point, const std::vector<TokenAt>& tokens) {
  Evaluated out = Captured(point, tokens);
  std::vector<TokenAt> missing;
  std::vector<int64_t> at;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (out.observable[i]) continue;
    missing.push_back(tokens[i]);
    at.push_back(static_cast<int64_t>(i));
  }
  if (missing.empty()) return out;
  const Rows key = {point.Name(), missing};
  auto found = bridged_.find(key);
  if (found == bridged_.end()) found = bridged_.emplace(key, Inner(CallOf(point), missing)).first;
  const Evaluated& bridge = found->second;
  for (size_t i = 0; i < missing.size(); ++i) {
    if (!bridge.observable[i]) continue;
    CopyRow(bridge.block, static_cast<int64_t>(i), &out.block, at[i]);
    out.observable[static_cast<size_t>(at[i])] = 1;
  }
  NoteInput(bridge, &out);
  out.bridged = true;
  if (missing.size() == tokens.size()) out.from.erase(point.Name());
  return out;
}

Evaluated Evaluator::Evaluate(const OpCall& call, const std::vector<TokenAt>& tokens) {
  bridged_.clear();
  return Inner(call, tokens);
}

Evaluated Evaluator::Inner(const OpCall& call, const std::vector<TokenAt>& tokens) {
  Evaluated out = call.op == Op::kAttention || call.op == Op::kScores ? Attend(call, tokens)
                  : call.op == Op::kSoftmax                           ? Softmax(call, tokens)
                                                                      : RowWise(call, tokens);
  if (call.after) call.after(tokens, &out.block);
  return out;
}

Evaluated Evaluator::RowWise(const OpCall& call, const std::vector<TokenAt>& tokens) {
  Evaluated out;
  out.observable.assign(tokens.size(), 1);
  std::vector<Block> inputs;
  for (size_t i = 0; i < call.inputs.size(); ++i) {
    Evaluated input = Input(call.inputs[i], tokens);
    for (size_t t = 0; t < tokens.size(); ++t) out.observable[t] = out.observable[t] && input.observable[t];
    NoteInput(input, &out);
    if (call.before) call.before(tokens, i, &input.block);
    inputs.push_back(std::move(input.block));
  }
  const Arithmetic arithmetic = ArithmeticOf(call.point);
  switch (call.op) {
    case Op::kEmbedding: {
      std::vector<TokenAt> known = tokens;
      for (size_t t = 0; t < tokens.size(); ++t) {
        if (tokens[t].input_id >= 0 && tokens[t].input_id < call.matrix->rows) continue;
        out.observable[t] = 0;
        out.missing = "input_ids";
        known[t].input_id = 0;
      }
      out.block = Embedding(known, call, arithmetic);
      out.from.insert("input_ids");
      break;
    }
    case Op::kCopy: out.block = Copy(inputs.at(0), arithmetic); break;
    case Op::kRmsNorm: out.block = RmsNorm(inputs.at(0), call, arithmetic); break;
    case Op::kLinear: out.block = Linear(inputs.at(0), call, arithmetic); break;
    case Op::kRope: out.block = Rope(inputs.at(0), tokens, call, arithmetic); break;
    case Op::kAdd: out.block = Add(inputs, call, arithmetic); break;
    case Op::kSwiGlu: out.block = SwiGlu(inputs.at(0), inputs.at(1), call, arithmetic); break;
    default: break;
  }
  return out;
}

}  // namespace lockstep
