// Rows of a faulty op that are copies of others, and rows that were never written.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "diagnose/matching.h"
#include "replay/captures.h"

namespace lockstep {

// Which other row a row equals.
struct RowSource {
  enum class Kind : uint8_t { kSameStep, kOtherStep, kOtherLayer };
  Kind kind = Kind::kSameStep;
  PointAt point;                                                 // of the rows that are copied
  std::function<std::optional<TokenAt>(const TokenAt&)> source;  // of a row
  std::string text;                                              // "the row of the token before"
};

// The rule by which every affected cell is, to the bit, the same cell of another captured row, though their inputs
// differ. Cost: one pass over the point's captured rows, and the sample's rows in every other layer.
std::optional<RowSource> FindRowSource(const Evidence& evidence, Captures& captures, int num_layers);

// Heads written as if they were rows: each head of a step of T tokens is a contiguous block of T rows that starts at
// the head's own, while the tokens' rows are H apart. Only the first H + T - 1 of the H * T rows of a step are written.
// True where, in every step of two tokens or more, exactly the cells behind those are affected; at least 4 in all.
bool OnlyFirstRowsRight(const Evidence& evidence);

// Tokens that were judged in each step: (run, step) -> number of the last one + 1.
std::map<std::pair<int32_t, int32_t>, int64_t> TokensOfSteps(const PointErrors& errors);

// A set of cells, for calls that change only those.
class CellSet {
 public:
  // The affected cells of all rows.
  explicit CellSet(const Evidence& evidence);
  // Null where the row has none; else [cells].
  const std::vector<char>* Of(const TokenAt& token) const;

 private:
  std::map<TokenAt, std::vector<char>> rows_;
};

}  // namespace lockstep
