// Whole rows: copies of others, results of other tokens, ops left out or done twice.
#include <algorithm>
#include <cmath>
#include <memory>

#include "diagnose/any_op.h"

namespace lockstep {
namespace {

constexpr size_t kProbes = 3;  // affected rows that tell a rule

// The tokens of a step in the order of their index, of those that were judged.
using Step = std::vector<TokenAt>;
using Steps = std::map<std::pair<int32_t, int32_t>, Step>;

Steps StepsOf(const PointErrors& errors) {
  Steps out;
  for (const TokenAt& token : errors.tokens) out[{token.run, token.step}].push_back(token);
  for (auto& [key, step] : out) std::sort(step.begin(), step.end());
  return out;
}

struct Rule {
  std::string text;
  std::function<std::optional<TokenAt>(const Step& step, int64_t index)> source;
};

// The token at the same position of the n-th next sequence of the step.
std::optional<TokenAt> InOtherSequence(const Step& step, const TokenAt& token, int64_t n) {
  std::vector<int32_t> sequences;
  for (const TokenAt& other : step) sequences.push_back(other.sequence);
  std::sort(sequences.begin(), sequences.end());
  sequences.erase(std::unique(sequences.begin(), sequences.end()), sequences.end());
  const auto count = static_cast<int64_t>(sequences.size());
  if (n >= count) return std::nullopt;
  const int64_t own = std::find(sequences.begin(), sequences.end(), token.sequence) - sequences.begin();
  const int32_t wanted = sequences[static_cast<size_t>((own + n) % count)];
  for (const TokenAt& other : step) {
    if (other.sequence == wanted && other.position == token.position) return other;
  }
  return std::nullopt;
}

std::vector<Rule> Rules() {
  const auto at = [](const Step& step, int64_t index) {
    const auto count = static_cast<int64_t>(step.size());
    return std::optional(step[static_cast<size_t>(((index % count) + count) % count)]);
  };
  std::vector<Rule> out;
  for (const int64_t by : {-1, 1, -2, 2}) {
    const std::string text =
        std::to_string(std::abs(by)) + (by < 0 ? " before" : " after") + ", around the step's ends";
    out.push_back({text, [=](const Step& step, int64_t index) { return at(step, index + by); }});
  }
  out.push_back(
      {"as far from the step's other end", [=](const Step& step, int64_t index) { return at(step, -1 - index); }});
  out.push_back({"half a step away", [=](const Step& step, int64_t index) {
                   return at(step, index + static_cast<int64_t>(step.size()) / 2);
                 }});
  for (int64_t n = 1; n <= 3; ++n) {
    out.push_back({"at its position in another sequence of the batch", [=](const Step& step, int64_t index) {
                     return InOtherSequence(step, step[static_cast<size_t>(index)], n);
                   }});
  }
  return out;
}

// Whether the sample's row is what is expected of `source`.
bool Holds(const Case& fault, const Evidence& evidence, int64_t i, const TokenAt& source) {
  const Evaluated expected = fault.evaluator.Evaluate(evidence.call(), {source});
  if (!expected.observable.front() || expected.block.width != evidence.width()) return false;
  const double* variance = expected.block.Variance(0);
  double squares = 0;
  for (int64_t c = 0; c < evidence.width(); ++c) {
    const double units = NoiseUnits(evidence.Captured(i)[c], expected.block.Row(0)[c], variance ? variance[c] : 0);
    if (!(std::abs(units) <= evidence.limits().max_suspect)) return false;
    squares += units * units;
  }
  return std::sqrt(squares / static_cast<double>(evidence.width())) <= evidence.limits().row_suspect;
}

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
        if ((*affected)[static_cast<size_t>(c / cell_width)])
          block->Row(static_cast<int64_t>(r))[c] = copy.block.Row(0)[c];
      }
    }
  };
  out->push_back(Changed(evidence.call(), "rows-stale", "gives a copy of " + source->text,
                         "Check that the buffer is written before it is captured and read.", after));
}

void ProposeOtherTokens(const Case& fault, const Evidence& evidence, std::vector<Hypothesis>* out) {
  const std::optional<TokenMap> map = MatchTokens(fault, evidence);
  if (!map) return;
  Evaluator& evaluator = fault.evaluator;
  const After after = [right = evidence.call(), source = map->source, &evaluator](const std::vector<TokenAt>& tokens,
                                                                                  Block* block) {
    std::vector<TokenAt> sources = tokens;
    for (TokenAt& token : sources) token = source(token).value_or(token);
    *block = evaluator.Evaluate(right, sources).block;
    block->variance.resize(block->value.size(), 0.0);
  };
  out->push_back(Changed(evidence.call(), "values-permuted", "gives the result of another token: " + map->text,
                         "Check the order of the rows that are read and written.", after));
}

}  // namespace

std::optional<TokenMap> MatchTokens(const Case& fault, const Evidence& evidence) {
  if (evidence.everything() || evidence.num_affected() < 2) return std::nullopt;
  const auto steps = std::make_shared<const Steps>(StepsOf(evidence.errors()));
  std::vector<int64_t> probes = evidence.affected();
  probes.resize(std::min(probes.size(), kProbes));
  if (probes.size() < 2) return std::nullopt;
  for (const Rule& rule : Rules()) {
    const auto source = [steps, rule](const TokenAt& token) -> std::optional<TokenAt> {
      const auto step = steps->find({token.run, token.step});
      if (step == steps->end()) return std::nullopt;
      const auto at = std::lower_bound(step->second.begin(), step->second.end(), token);
      if (at == step->second.end() || *at != token) return std::nullopt;
      const std::optional<TokenAt> from = rule.source(step->second, at - step->second.begin());
      return from == token ? std::nullopt : from;
    };
    const bool holds = std::all_of(probes.begin(), probes.end(), [&](int64_t i) {
      const std::optional<TokenAt> from = source(evidence.Token(i));
      return from && Holds(fault, evidence, i, *from);
    });
    if (holds) return TokenMap{source, "the one " + rule.text};
  }
  return std::nullopt;
}

void ProposeForRows(const Case& fault, const Evidence& evidence, std::vector<Hypothesis>* out) {
  ProposeStale(fault, evidence, out);
  ProposeOtherTokens(fault, evidence, out);
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
