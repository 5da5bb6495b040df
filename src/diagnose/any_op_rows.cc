// Whole rows: copies of others, ops left out or done twice.
#include <algorithm>
#include <cmath>
#include <memory>

#include "diagnose/any_op.h"

namespace lockstep {

void ProposeStale(const Case& fault, const Evidence& evidence, std::vector<Hypothesis>* out) {
  Evaluator& evaluator = fault.evaluator;
  const int num_layers = static_cast<int>(evaluator.model().config().num_hidden_layers);
  const std::optional<RowSource> source = FindRowSource(evidence, evaluator.captures(), num_layers);
  if (!source) return;
  const auto cells = std::make_shared<const CellSet>(evidence);
  const int64_t cell_width = evidence.cell_width();
  const After after = [=, &evaluator](const std::vector<TokenAt>& tokens, Block* block) {
    for (size_t r = 0; r < tokens.size(); ++r) {
      const std::vector<char>* affected = cells->Of(tokens[r]);
      const std::optional<TokenAt> from = affected ? source->source(tokens[r]) : std::nullopt;
      if (!from) continue;
      const Evaluated copy = evaluator.Captured(source->point, {*from});
      if (!copy.observable.front() || copy.block.width != block->width) continue;
      for (int64_t c = 0; c < block->width; ++c) {
        const bool stale = (*affected)[static_cast<size_t>(c / cell_width)] != 0;
        if (stale) block->Row(static_cast<int64_t>(r))[c] = copy.block.Row(0)[c];
      }
    }
  };
  out->push_back(Changed(evidence.call(), "rows-stale", "gives a copy of " + source->text,
                         "Check that the buffer is written before it is captured and read.", after));
}

// Ops that have causes of their own for this (norm, RoPE, residual) are left to them.
void ProposeForOp(const Case& fault, std::vector<Hypothesis>* out) {
  const OpCall& right = fault.errors.call;
  Evaluator& evaluator = fault.evaluator;
  if (right.op == Op::kLinear || right.op == Op::kAttention || right.op == Op::kSwiGlu) {
    for (const PointAt& input : right.inputs) {
      if (evaluator.model().WidthOf(input.id) != fault.sample.captured.width) continue;
      Hypothesis skipped = {"op-skipped", "is skipped: gives its input " + std::string(SpecOf(input.id).name),
                            "Check that the op runs, and which buffer is read afterwards.", right};
      skipped.call.op = Op::kCopy;
      skipped.call.inputs = {input};
      out->push_back(std::move(skipped));
    }
  }
  if (right.op != Op::kSwiGlu || right.inputs.size() != 2) return;
  const PointAt up = right.inputs[1];
  const DType storage = fault.errors.arithmetic.storage;
  const After again = [&evaluator, up, storage](const std::vector<TokenAt>& tokens, Block* block) {
    const Evaluated factor = evaluator.Captured(up, tokens);
    for (int64_t r = 0; r < block->rows; ++r) {
      for (int64_t c = 0; c < block->width; ++c) {
        const double gate = block->Row(r)[c], u = factor.block.Row(r)[c], s = 1 / (1 + std::exp(-gate));
        const double slope = s * (1 + gate * (1 - s)) * u;
        block->Row(r)[c] = gate * s * u;
        block->Variance(r)[c] = slope * slope * block->Variance(r)[c] + u * u * StorageRounding(storage, gate * s) +
                                StorageRounding(storage, gate * s * u);
      }
    }
  };
  out->push_back(Changed(right, "op-twice", "is applied twice, on its own result",
                         "Look for a kernel that is launched twice in place.", again));
}

}  // namespace lockstep
