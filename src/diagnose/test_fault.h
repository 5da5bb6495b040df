// For the tests: one op of the bundled model, right or wrong, on inputs of random numbers.
#pragma once

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "compare/fake_trace.h"
#include "diagnose/matching.h"

namespace lockstep {

struct FakeStep {
  std::vector<int32_t> positions;
  std::vector<int32_t> sequences = {};  // empty: all 0
  Phase phase = Phase::kPrefill;
  bool same_inputs = false;  // of all its tokens
};

// Turns the right result into what is captured; before it is rounded to the storage.
using Mutation = std::function<void(const std::vector<TokenAt>& tokens, Block* result)>;
// The same, from what the op reads.
using InputMutation = std::function<void(const std::vector<Block>& inputs, Block* result)>;

class FakeFault {
 public:
  // The points that the op reads hold random numbers.
  FakeFault(PointAt point, std::vector<FakeStep> steps, const Mutation& mutation, DType storage = DType::kF32,
            float size = 1, const InputMutation& by_inputs = nullptr)
      : checkpoint_(Checkpoint::Open(std::string(LOCKSTEP_SOURCE_DIR) + "/models/tiny-qwen3")), model_(checkpoint_) {
    inputs_.meta.has_arithmetic = true;
    inputs_.meta.arithmetic = {storage, storage, DType::kF32, storage};
    const OpCall call = model_.CallOf(point, inputs_.meta.arithmetic);
    std::mt19937 random(7);
    int next_id = 1;
    for (const FakeStep& step : steps) {
      std::vector<int32_t> ids(step.positions.size());
      for (int32_t& id : ids) id = next_id++;
      inputs_.AddStep(ids, step.positions, step.sequences).phase = step.phase;
      for (const PointAt& input : call.inputs) AddRandom(input, storage, size, step.same_inputs, &random);
    }
    captured_ = inputs_;
    {
      const TraceRuns runs = GroupRuns({inputs_.View()});
      Captures captures(runs);
      Evaluator evaluator(captures, model_, inputs_.meta);
      AddResult(evaluator, call, mutation, by_inputs, storage);
    }
    runs_ = GroupRuns({captured_.View()});
    captures_ = std::make_unique<Captures>(runs_);
    evaluator_ = std::make_unique<Evaluator>(*captures_, model_, captured_.meta);
    errors_ = Judge(*evaluator_, evaluator_->CallOf(point));
    TakeSample();
  }

  const PointErrors& errors() const { return errors_; }
  const Sample& sample() const { return sample_; }
  Captures& captures() { return *captures_; }
  Case AsCase() { return {*evaluator_, errors_, sample_}; }

  std::vector<Pattern> Patterns() { return DescribePatterns(AsCase()); }
  // "id: text", or "" where there is none of that id.
  std::string PatternOf(const std::string& id) {
    for (const Pattern& pattern : Patterns()) {
      if (pattern.id == id) return pattern.text;
    }
    return "";
  }
  // Ids of all patterns, separated by blanks.
  std::string PatternIds() {
    std::string out;
    for (const Pattern& pattern : Patterns()) out += (out.empty() ? "" : " ") + pattern.id;
    return out;
  }
  // The proposed causes that leave nothing beyond the limits in the affected rows, "cause: text"; separated by "; ".
  std::string Causes() {
    const Evidence evidence(errors_, sample_);
    std::vector<TokenAt> affected;
    for (int64_t r = 0; r < evidence.num_rows(); ++r) {
      if (evidence.RowAffected(r)) affected.push_back(errors_.tokens[static_cast<size_t>(r)]);
    }
    std::vector<Hypothesis> proposed;
    ProposeForAnyOp(AsCase(), &proposed);
    std::string out;
    for (const Hypothesis& hypothesis : proposed) {
      const PointErrors left = Judge(*evaluator_, hypothesis.call, &affected);
      if (left.summary.verdict != OpVerdict::kClean) continue;
      out += (out.empty() ? "" : "; ") + hypothesis.cause + ": " + hypothesis.text;
    }
    return out;
  }

 private:
  void AddRandom(const PointAt& input, DType storage, float size, bool same, std::mt19937* random) {
    std::normal_distribution<float> normal(0, size);
    const auto tokens = static_cast<int64_t>(inputs_.steps.back().positions.size());
    std::vector<float> values(static_cast<size_t>(tokens * model_.WidthOf(input.id)));
    const auto width = static_cast<size_t>(model_.WidthOf(input.id));
    for (size_t i = 0; i < values.size(); ++i) values[i] = same && i >= width ? values[i - width] : normal(*random);
    inputs_.Add(input.Name(), {tokens, model_.WidthOf(input.id)}, values, {}, storage);
  }

  void AddResult(Evaluator& evaluator, const OpCall& call, const Mutation& mutation, const InputMutation& by_inputs,
                 DType storage) {
    std::vector<TokenAt> all;
    std::vector<size_t> begin = {0};
    for (size_t s = 0; s < captured_.steps.size(); ++s) {
      const TraceStep& step = captured_.steps[s];
      for (size_t t = 0; t < step.positions.size(); ++t) {
        all.push_back({0, static_cast<int32_t>(s), static_cast<int32_t>(t), step.sequences[t], step.positions[t],
                       step.input_ids[t]});
      }
      begin.push_back(all.size());
    }
    Block result = evaluator.Evaluate(call, all).block;
    if (mutation) mutation(all, &result);
    std::vector<Block> inputs;
    for (const PointAt& input : call.inputs) inputs.push_back(evaluator.Captured(input, all).block);
    if (by_inputs) by_inputs(inputs, &result);
    std::vector<TraceStep> steps = std::move(captured_.steps);
    captured_.steps.clear();
    for (size_t s = 0; s < steps.size(); ++s) {
      captured_.steps.push_back(std::move(steps[s]));
      const std::vector<float> values(result.Row(static_cast<int64_t>(begin[s])),
                                      result.Row(static_cast<int64_t>(begin[s + 1])));
      captured_.Add(call.point.Name(), {static_cast<int64_t>(begin[s + 1] - begin[s]), result.width}, values, {},
                    storage);
    }
  }

  bool IsFaulty(int64_t r, int64_t c) const {
    const Limits limits = errors_.limits();
    return !(errors_.Cell(r, c) <= limits.cell_faulty && errors_.Peak(r, c) <= limits.max_faulty &&
             errors_.row[static_cast<size_t>(r)] <= limits.row_faulty);
  }

  void TakeSample() {
    for (size_t r = 0; r < errors_.tokens.size() && sample_.tokens.size() < 32; ++r) {
      const auto row = static_cast<int64_t>(r);
      bool affected = errors_.row[r] > 3;
      for (int64_t c = 0; c < errors_.cells; ++c) affected = affected || IsFaulty(row, c);
      if (affected) sample_.tokens.push_back(errors_.tokens[r]);
    }
    if (sample_.tokens.empty()) sample_.tokens = errors_.tokens;
    sample_.captured = evaluator_->Captured(errors_.call.point, sample_.tokens).block;
    sample_.expected = evaluator_->Evaluate(errors_.call, sample_.tokens);
  }

  Checkpoint checkpoint_;
  ReplayModel model_;
  FakeTrace inputs_, captured_;
  TraceRuns runs_;
  std::unique_ptr<Captures> captures_;
  std::unique_ptr<Evaluator> evaluator_;
  PointErrors errors_;
  Sample sample_;
};

// Calls change(token, head, values of the head [head_dim]).
inline Mutation OnHeads(int64_t heads, std::function<void(const TokenAt&, int64_t, double*)> change) {
  return [=](const std::vector<TokenAt>& tokens, Block* result) {
    for (int64_t r = 0; r < result->rows; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        change(tokens[static_cast<size_t>(r)], h, result->Row(r) + h * (result->width / heads));
      }
    }
  };
}

// Calls change(token, row [width]).
inline Mutation OnRows(std::function<void(const TokenAt&, double*)> change) {
  return OnHeads(1, [=](const TokenAt& token, int64_t, double* row) { change(token, row); });
}

inline FakeStep Prompt(int32_t tokens) { return {Range(0, tokens)}; }

}  // namespace lockstep
