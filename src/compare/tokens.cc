#include "compare/tokens.h"

#include <cstdint>

#include "base/convert.h"

namespace lockstep {
namespace {

constexpr size_t kMaxDifferences = 100;

}  // namespace

Choices RecordedChoices(const SideRuns& side, const std::map<int, int>& numbers) {
  Choices choices;
  for (const StepTensors& where : side.next_tokens) {
    const Run& run = side.runs[where.run];
    const TraceStep& step = run.Tokens(where.step);
    for (const TraceTensor* tensor : where.tensors) {
      if (tensor->dtype != DType::kI32 || tensor->shape.size() != 1) continue;
      for (size_t i = 0; i < tensor->rows.size(); ++i) {
        const auto token = static_cast<size_t>(tensor->rows[i]);
        if (step.sequences[token] < 0) continue;
        const auto number = numbers.find(run.numbers.at(step.sequences[token]));
        if (number == numbers.end()) continue;
        choices[{number->second, step.positions[token]}] = LoadElement<int32_t>(tensor->data, i);
      }
    }
  }
  return choices;
}

NextTokens CompareNextTokens(const Choices& reference, const Choices& candidate) {
  NextTokens tokens;
  for (const auto& [key, choice] : reference) {
    const auto other = candidate.find(key);
    if (other == candidate.end()) continue;
    ++tokens.compared;
    if (other->second == choice) {
      ++tokens.agree;
    } else if (tokens.differences.size() < kMaxDifferences) {
      tokens.differences.push_back({key.sequence, key.position, choice, other->second});
    }
  }
  return tokens;
}

}  // namespace lockstep
