// Results that stand in the rows of other tokens: the rows of a step in another order, sequences mixed up, [heads,
// tokens] taken for [tokens, heads]. Unlike a copy of a captured row, where the right result went matters, not what was
// captured.
#include <algorithm>
#include <cmath>
#include <memory>
#include <set>

#include "diagnose/any_op.h"

namespace lockstep {
namespace {

constexpr size_t kProbes = 3;         // affected rows that tell a rule
constexpr size_t kMaxShown = 4;       // of an arbitrary map
constexpr int64_t kMaxHeadRows = 64;  // rows that a probe of mixed heads may need

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
  bool moves_heads = false;
  std::function<std::optional<CellSource>(const Step& step, int64_t index, int64_t head)> source;
};

// The token at the same position of the n-th next sequence of the step.
std::optional<TokenAt> InOtherSequence(const Step& step, const TokenAt& token, int64_t n) {
  std::set<int32_t> sequences;
  for (const TokenAt& other : step) sequences.insert(other.sequence);
  const auto count = static_cast<int64_t>(sequences.size());
  if (n >= count) return std::nullopt;
  const int64_t own = std::distance(sequences.begin(), sequences.find(token.sequence));
  const int32_t wanted = *std::next(sequences.begin(), (own + n) % count);
  for (const TokenAt& other : step) {
    if (other.sequence == wanted && other.position == token.position) return other;
  }
  return std::nullopt;
}

Rule OfIndex(const std::string& text, std::function<int64_t(int64_t index, int64_t count)> from) {
  return {"each row holds the result of the token " + text, false, [=](const Step& step, int64_t index, int64_t head) {
            const auto count = static_cast<int64_t>(step.size());
            const int64_t at = ((from(index, count) % count) + count) % count;
            return std::optional(CellSource{step[static_cast<size_t>(at)], head});
          }};
}

std::vector<Rule> Rules(int64_t heads) {
  std::vector<Rule> out;
  for (const int64_t by : {-1, 1, -2, 2}) {
    out.push_back(OfIndex(std::to_string(std::abs(by)) + (by < 0 ? " before" : " after") + ", around the step's ends",
                          [=](int64_t index, int64_t) { return index + by; }));
  }
  out.push_back(OfIndex("as far from the step's other end", [](int64_t index, int64_t) { return -1 - index; }));
  out.push_back(OfIndex("half a step away", [](int64_t index, int64_t count) { return index + count / 2; }));
  for (int64_t n = 1; n <= 3; ++n) {
    out.push_back({"each row holds the result of the token at its position in another sequence of the batch", false,
                   [=](const Step& step, int64_t index, int64_t head) -> std::optional<CellSource> {
                     const auto token = InOtherSequence(step, step[static_cast<size_t>(index)], n);
                     return token ? std::optional(CellSource{*token, head}) : std::nullopt;
                   }});
  }
  if (heads < 2) return out;
  out.push_back({"[heads, tokens, head_dim] is read as [tokens, heads, head_dim]", true,
                 [=](const Step& step, int64_t index, int64_t head) {
                   const int64_t at = index * heads + head, count = static_cast<int64_t>(step.size());
                   return std::optional(CellSource{step[static_cast<size_t>(at % count)], at / count});
                 }});
  out.push_back({"[tokens, heads, head_dim] is read as [heads, tokens, head_dim]", true,
                 [=](const Step& step, int64_t index, int64_t head) {
                   const int64_t at = head * static_cast<int64_t>(step.size()) + index;
                   return std::optional(CellSource{step[static_cast<size_t>(at / heads)], at % heads});
                 }});
  return out;
}

// The right results as the map puts them; a row without a source keeps its own.
void Apply(Evaluator& evaluator, const OpCall& right, const TokenMap& map, const std::vector<TokenAt>& tokens,
           Block* block) {
  const int64_t heads = map.moves_heads ? right.heads : 1, d = block->width / heads;
  std::map<TokenAt, int64_t> rows;
  std::vector<CellSource> sources;
  for (const TokenAt& token : tokens) {
    for (int64_t h = 0; h < heads; ++h) {
      sources.push_back(map.source(token, h).value_or(CellSource{token, h}));
      rows.emplace(sources.back().token, 0);
    }
  }
  std::vector<TokenAt> needed;
  for (auto& [token, row] : rows) row = static_cast<int64_t>(needed.size()), needed.push_back(token);
  Block results = evaluator.Evaluate(right, needed).block;
  results.variance.resize(results.value.size(), 0.0);
  block->variance.resize(block->value.size(), 0.0);
  for (size_t i = 0; i < sources.size(); ++i) {
    const int64_t from = rows.at(sources[i].token), to = static_cast<int64_t>(i) * d;
    std::copy_n(results.Row(from) + sources[i].head * d, d, block->value.data() + to);
    std::copy_n(results.Variance(from) + sources[i].head * d, d, block->variance.data() + to);
  }
}

// Whether row i of the sample is, within noise, the values given.
bool IsRow(const Evidence& evidence, int64_t i, const double* value, const double* variance) {
  double squares = 0;
  for (int64_t c = 0; c < evidence.width(); ++c) {
    const double units = NoiseUnits(evidence.Captured(i)[c], value[c], variance ? variance[c] : 0);
    if (!(std::abs(units) <= evidence.limits().max_suspect)) return false;
    squares += units * units;
  }
  return std::sqrt(squares / static_cast<double>(evidence.width())) <= evidence.limits().row_suspect;
}

bool Holds(const Case& fault, const Evidence& evidence, const TokenMap& map, int64_t i) {
  const std::vector<TokenAt> token = {evidence.Token(i)};
  bool moved = false;
  for (int64_t h = 0; h < (map.moves_heads ? evidence.call().heads : 1); ++h) {
    const std::optional<CellSource> source = map.source(token.front(), h);
    if (!source) return false;
    moved = moved || source->token != token.front() || source->head != h;
  }
  if (!moved) return false;
  Block row;
  row.Resize(1, evidence.width());
  Apply(fault.evaluator, evidence.call(), map, token, &row);
  return IsRow(evidence, i, row.Row(0), row.Variance(0));
}

// Where the sample holds every affected row: each of them is what is expected of exactly one other.
std::optional<TokenMap> MatchAnyOrder(const Evidence& evidence) {
  const std::vector<int64_t>& rows = evidence.affected();
  if (static_cast<int64_t>(rows.size()) != evidence.num_affected()) return std::nullopt;
  const auto sources = std::make_shared<std::map<TokenAt, TokenAt>>();
  std::string shown;
  for (const int64_t i : rows) {
    const TokenAt& token = evidence.Token(i);
    const TokenAt* source = nullptr;
    for (const int64_t j : rows) {
      if (i == j || evidence.Token(j).run != token.run ||
          !IsRow(evidence, i, evidence.Expected(j), evidence.VarianceRow(j)))
        continue;
      if (source) return std::nullopt;
      source = &evidence.Token(j);
    }
    if (!source) return std::nullopt;
    sources->emplace(token, *source);
    if (sources->size() > kMaxShown) continue;
    shown += (shown.empty() ? "" : ", ") + std::to_string(source->position) + "->" + std::to_string(token.position);
  }
  if (sources->size() > kMaxShown) shown += ", …";
  const auto source = [sources](const TokenAt& token, int64_t head) -> std::optional<CellSource> {
    const auto found = sources->find(token);
    return found == sources->end() ? std::nullopt : std::optional(CellSource{found->second, head});
  };
  return TokenMap{source, false, "rows are in another order, by position: " + shown};
}

}  // namespace

std::optional<TokenMap> MatchTokens(const Case& fault, const Evidence& evidence) {
  if (evidence.everything() || evidence.affected().size() < 2) return std::nullopt;
  const auto steps = std::make_shared<const Steps>(StepsOf(evidence.errors()));
  std::vector<int64_t> probes = evidence.affected();
  probes.resize(std::min(probes.size(), kProbes));
  const int64_t heads = evidence.call().heads;
  for (const Rule& rule : Rules(heads <= kMaxHeadRows ? heads : 0)) {
    const auto source = [steps, rule](const TokenAt& token, int64_t head) -> std::optional<CellSource> {
      const auto step = steps->find({token.run, token.step});
      if (step == steps->end()) return std::nullopt;
      const auto at = std::lower_bound(step->second.begin(), step->second.end(), token);
      if (at == step->second.end() || *at != token) return std::nullopt;
      return rule.source(step->second, at - step->second.begin(), head);
    };
    TokenMap map = {source, rule.moves_heads, rule.text};
    if (std::all_of(probes.begin(), probes.end(), [&](int64_t i) { return Holds(fault, evidence, map, i); }))
      return map;
  }
  return MatchAnyOrder(evidence);
}

void ProposeOtherTokens(const Case& fault, const Evidence& evidence, std::vector<Hypothesis>* out) {
  const std::optional<TokenMap> map = MatchTokens(fault, evidence);
  if (!map) return;
  const After after = [right = evidence.call(), map = *map, &evaluator = fault.evaluator](
                          const std::vector<TokenAt>& tokens, Block* block) {
    Apply(evaluator, right, map, tokens, block);
  };
  out->push_back(Changed(evidence.call(), "values-permuted", "gives results in other rows: " + map->text,
                         "Check the order of the rows that are read and written.", after));
}

}  // namespace lockstep
