// Evaluates calls on captured inputs. Where an input was not captured, it is computed from the nearest points that
// were, and its rounding is carried along.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "replay/captures.h"
#include "replay/op_call.h"

namespace lockstep {

struct Evaluated {
  Block block;                   // [tokens, width]; rows that are not observable are zero
  std::vector<char> observable;  // [tokens]
  std::set<std::string> from;    // captured points that were read
  bool bridged = false;
  std::string missing;  // what was looked for in vain, where a row is not observable
};

class Evaluator {
 public:
  // REQUIRES: both outlive this.
  Evaluator(Captures& captures, const ReplayModel& model) : captures_(captures), model_(model) {}

  Captures& captures() { return captures_; }
  const ReplayModel& model() const { return model_; }

  // In which dtypes the side computed a point: as declared, or inferred from the data; the storage is never finer than
  // the tensor's own dtype.
  Arithmetic ArithmeticOf(const PointAt& point);
  // The right call of a point under that arithmetic.
  OpCall CallOf(const PointAt& point) { return model_.CallOf(point, ArithmeticOf(point)); }

  // What `call` gives for the rows of these tokens.
  // REQUIRES: all tokens of one run, and not so many that the block does not fit in memory (RowsPerBlock).
  Evaluated Evaluate(const OpCall& call, const std::vector<TokenAt>& tokens);

  // Rows as captured, as far as they were; observable tells which.
  Evaluated Captured(const PointAt& point, const std::vector<TokenAt>& tokens);

  // How many rows of a point to evaluate at once.
  int64_t RowsPerBlock(const PointAt& point) const;

 private:
  Evaluated Input(const PointAt& point, const std::vector<TokenAt>& tokens);

  Captures& captures_;
  const ReplayModel& model_;
};

}  // namespace lockstep
