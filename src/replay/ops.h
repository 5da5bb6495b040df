// The ops in float64, each with the variance that rounding gives its result under the declared arithmetic, and with
// what the inputs' own variance adds, to first order. One small function an op; sources of the formulas:
// docs/replay.md.
#pragma once

#include <vector>

#include "replay/block.h"
#include "replay/op_call.h"

namespace lockstep {

// y: [x.rows, matrix.rows]. x is rounded to the operands' dtype first, as the engine's product does.
Block Linear(const Block& x, const OpCall& call, const Arithmetic& arithmetic);

// Groups of norm.group elements share a mean.
Block RmsNorm(const Block& x, const OpCall& call, const Arithmetic& arithmetic);

Block Rope(const Block& x, const std::vector<TokenAt>& tokens, const OpCall& call, const Arithmetic& arithmetic);

// sum of factor * input
Block Add(const std::vector<Block>& inputs, const OpCall& call, const Arithmetic& arithmetic);

Block SwiGlu(const Block& gate, const Block& up, const OpCall& call, const Arithmetic& arithmetic);

// Rounds to the storage: what a copy into another dtype gives. Exact.
Block Copy(const Block& x, const Arithmetic& arithmetic);

// Rows of the matrix by input_id. REQUIRES: ids in range.
Block Embedding(const std::vector<TokenAt>& tokens, const OpCall& call, const Arithmetic& arithmetic);

// The keys that one query row sees: rows [begin, end) of the keys' block; [0, written) are in the cache.
struct KeyRange {
  int32_t begin = 0;
  int32_t end = 0;
  int32_t written = 0;
};

// q: [rows, heads * head_dim]; k, v: [keys, kv_heads * head_dim], rounded to the cache's dtype first; seen: [q.rows].
Block Attention(const Block& q, const Block& k, const Block& v, const std::vector<KeyRange>& seen, const OpCall& call,
                const Arithmetic& arithmetic);

// q·k of each head and key: [rows, heads * columns]; keys that a row does not see are -infinity.
Block Scores(const Block& q, const Block& k, const std::vector<KeyRange>& seen, int64_t columns, const OpCall& call,
             const Arithmetic& arithmetic);

// probs of one head of one row; masked scores are -infinity.
void SoftmaxRow(const double* scores, int64_t count, const Arithmetic& arithmetic, double* out, double* variance);

}  // namespace lockstep
