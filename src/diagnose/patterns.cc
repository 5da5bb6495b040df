#include "diagnose/patterns.h"

#include <algorithm>
#include <map>

#include "diagnose/any_op.h"
#include "diagnose/matching_rows.h"

namespace lockstep {
namespace {

void DescribeRowSource(const Evidence& evidence, Captures& captures, int num_layers, std::vector<Pattern>* out) {
  const std::optional<RowSource> source = FindRowSource(evidence, captures, num_layers);
  if (!source) return;
  const char* id = source->kind == RowSource::Kind::kSameStep    ? "rows-equal-another-row"
                   : source->kind == RowSource::Kind::kOtherStep ? "equal-to-another-step"
                                                                 : "equal-to-another-layer";
  out->push_back({id, "every affected row is, to the bit, " + source->text});
}

// k where the layers are those with layer % n == k, and nothing else; -1 where they are not.
int Remainder(const std::vector<int>& layers, int num_layers, int n) {
  std::vector<int> expected;
  for (int layer = layers.front() % n; layer < num_layers; layer += n) expected.push_back(layer);
  return expected == layers ? layers.front() % n : -1;
}

std::string LayersText(const std::vector<int>& faulty, int num_layers) {
  if (faulty.size() == 1) return "only layer " + std::to_string(faulty[0]);
  const bool block = faulty.back() - faulty.front() + 1 == static_cast<int>(faulty.size());
  if (block && faulty.back() == num_layers - 1) return "only layers from " + std::to_string(faulty[0]) + " on";
  if (block && faulty.front() == 0) return "only layers up to " + std::to_string(faulty.back());
  for (int n = 2; n <= num_layers / 3; ++n) {
    const int k = Remainder(faulty, num_layers, n);
    if (k < 0) continue;
    if (n == 2) return k == 0 ? "only even layers" : "only odd layers";
    return "only every " + std::to_string(n) + "th layer, from " + std::to_string(k) + " on";
  }
  return "only layers " + Ranges({faulty.begin(), faulty.end()});
}

}  // namespace

std::vector<Stage> StagesOf(const TraceRuns& runs, const std::vector<TokenAt>& tokens) {
  std::map<std::pair<int32_t, int32_t>, int32_t> first_step;  // by (run, sequence)
  for (size_t run = 0; run < runs.runs.size(); ++run) {
    const Run& steps = runs.runs[run];
    for (size_t step = 0; step < steps.num_steps(); ++step) {
      for (const int32_t local : steps.Tokens(step).sequences) {
        const auto number = steps.numbers.find(local);
        if (number == steps.numbers.end()) continue;
        first_step.insert({{static_cast<int32_t>(run), number->second}, static_cast<int32_t>(step)});
      }
    }
  }
  std::vector<Stage> out;
  for (const TokenAt& token : tokens) {
    const Run& run = runs.runs[static_cast<size_t>(token.run)];
    const bool decode = run.Tokens(static_cast<size_t>(token.step)).phase == Phase::kDecode;
    const auto first = first_step.find({token.run, token.sequence});
    const bool later = first != first_step.end() && first->second < token.step;
    out.push_back(decode ? Stage::kDecode : later ? Stage::kLaterChunk : Stage::kFirstChunk);
  }
  return out;
}

std::vector<Pattern> DescribePatterns(const Case& fault) {
  const Evidence evidence(fault.errors, fault.sample);
  Captures& captures = fault.evaluator.captures();
  std::vector<Pattern> out;
  DescribeValues(evidence, &out);
  if (const std::optional<TokenMap> map = MatchTokens(fault, evidence)) {
    out.push_back({"permuted", map->text});
  }
  DescribeRowSource(evidence, captures, fault.evaluator.model().config().num_hidden_layers, &out);
  DescribeRows(evidence, StagesOf(captures.runs(), fault.errors.tokens), &out);
  DescribeCells(evidence, &out);
  DescribeGrowth(evidence, &out);
  if (out.empty()) DescribeRest(evidence, &out);
  return out;
}

std::vector<Pattern> LayerPatterns(const std::vector<int>& faulty, int num_layers) {
  if (faulty.empty() || num_layers < 2) return {};
  if (static_cast<int>(faulty.size()) == num_layers) return {{"all-layers", "in all layers"}};
  return {{"some-layers", LayersText(faulty, num_layers)}};
}

}  // namespace lockstep
