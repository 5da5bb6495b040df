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
#include "replay/ops.h"

namespace lockstep {

struct Evaluated {
  // [tokens, width]; rows that are not observable are zero. attn_scores and attn_probs: [tokens, heads * columns], a
  // column an absolute key position; what is masked or not there is -infinity in scores and 0 in probs.
  Block block;
  std::vector<char> observable;  // [tokens]
  std::set<std::string> from;    // captured points that were read
  bool bridged = false;
  std::string missing;  // what was looked for in vain, where a row is not observable
};

// No row observable.
Evaluated EmptyRows(size_t tokens, int64_t width);
// What `out` was computed from, by one of its inputs.
void NoteInput(const Evaluated& input, Evaluated* out);
void CopyRow(const Block& from, int64_t i, Block* to, int64_t j);

class Evaluator {
 public:
  // `meta` says in which dtypes the side computed. REQUIRES: all outlive this.
  Evaluator(Captures& captures, const ReplayModel& model, const TraceMeta& meta)
      : captures_(captures), model_(model), meta_(meta) {}

  Captures& captures() { return captures_; }
  const ReplayModel& model() const { return model_; }

  // In which dtypes the side computed a point; the storage is never finer than the tensor's own dtype.
  Arithmetic ArithmeticOf(const PointAt& point);
  // The right call of a point under that arithmetic.
  OpCall CallOf(const PointAt& point) { return model_.CallOf(point, ArithmeticOf(point)); }

  // What `call` gives for the rows of these tokens, at most RowsPerBlock of them.
  // REQUIRES: all tokens of one run.
  Evaluated Evaluate(const OpCall& call, const std::vector<TokenAt>& tokens);

  // Rows as captured, as far as they were; observable tells which. REQUIRES: as above.
  Evaluated Captured(const PointAt& point, const std::vector<TokenAt>& tokens);

  // How many rows of a point to evaluate at once.
  int64_t RowsPerBlock(const PointAt& point);

  // Keys that were bridged are kept from block to block of a point: forget them.
  void ForgetKeys() { keys_.clear(); }

 private:
  struct Group;

  Evaluated Input(const PointAt& point, const std::vector<TokenAt>& tokens);
  Evaluated Inner(const OpCall& call, const std::vector<TokenAt>& tokens);
  Evaluated RowWise(const OpCall& call, const std::vector<TokenAt>& tokens);
  Evaluated Attend(const OpCall& call, const std::vector<TokenAt>& tokens);
  void AttendGroup(const OpCall& call, const std::vector<TokenAt>& tokens, const Group& group, const Evaluated& queries,
                   Evaluated* out);
  // A row of keys or values for each of `tokens`; those with run -1 are zero.
  const Evaluated& KeyRows(const PointAt& point, const std::vector<TokenAt>& tokens);
  Evaluated Softmax(const OpCall& call, const std::vector<TokenAt>& tokens);
  int64_t KeyColumns(const PointAt& point, const std::vector<TokenAt>& tokens);
  Evaluated CapturedKeys(const PointAt& point, const std::vector<TokenAt>& tokens);

  Captures& captures_;
  const ReplayModel& model_;
  const TraceMeta& meta_;
  using Rows = std::pair<std::string, std::vector<TokenAt>>;
  std::map<Rows, Evaluated> bridged_;  // within one evaluation: a residual is read twice
  std::map<Rows, Evaluated> keys_;
};

}  // namespace lockstep
