// The mistakes that any op can show, by kind. Each is proposed only where it already explains the sample.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "diagnose/matching.h"
#include "diagnose/matching_rows.h"

namespace lockstep {

using After = std::function<void(const std::vector<TokenAt>& tokens, Block* block)>;

// The right call with its result changed.
Hypothesis Changed(const OpCall& right, std::string cause, std::string text, std::string advice, After after);
// Whether the change leaves only noise in the sample's affected cells.
bool ExplainsSample(const Evidence& evidence, const Sample& sample, const After& after);

// values-scaled, values-permuted (channels and heads), values-zero, values-clamped, values-overflow, values-rounded.
void ProposeForValues(const Evidence& evidence, std::vector<Hypothesis>* out);
// rows-stale, and values-permuted of tokens.
void ProposeForRows(const Case& fault, const Evidence& evidence, std::vector<Hypothesis>* out);
// rows-overlapping
void ProposeOverlapping(const Case& fault, const Evidence& evidence, std::vector<Hypothesis>* out);
// op-skipped, op-twice
void ProposeForOp(const Case& fault, std::vector<Hypothesis>* out);

// Which token's result stands in the row of another: affected rows hold what is expected elsewhere in their step.
struct TokenMap {
  std::function<std::optional<TokenAt>(const TokenAt&)> source;
  std::string text;  // "the token before"
};
std::optional<TokenMap> MatchTokens(const Case& fault, const Evidence& evidence);

}  // namespace lockstep
