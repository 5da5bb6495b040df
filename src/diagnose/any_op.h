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

// values-scaled, values-permuted (channels and heads), values-zero, values-clamped, values-overflow.
void ProposeForValues(const Evidence& evidence, std::vector<Hypothesis>* out);
// rows-stale
void ProposeStale(const Case& fault, const Evidence& evidence, std::vector<Hypothesis>* out);
// values-permuted, of tokens
void ProposeOtherTokens(const Case& fault, const Evidence& evidence, std::vector<Hypothesis>* out);
// rows-overlapping
void ProposeOverlapping(const Case& fault, const Evidence& evidence, std::vector<Hypothesis>* out);
// op-skipped, op-twice
void ProposeForOp(const Case& fault, std::vector<Hypothesis>* out);

// Whose result stands in the row, or head, of a token: another of the same step.
struct CellSource {
  TokenAt token;
  int64_t head = 0;  // of the token's; heads are moved only where the op has them
};
struct TokenMap {
  std::function<std::optional<CellSource>(const TokenAt& token, int64_t head)> source;
  bool moves_heads = false;
  std::string text;  // "each row holds the result of …"
};
// Holds on probes of the sample; an arbitrary map, on all affected rows.
std::optional<TokenMap> MatchTokens(const Case& fault, const Evidence& evidence);

}  // namespace lockstep
