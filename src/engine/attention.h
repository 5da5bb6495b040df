// Grouped-query attention over the cache, by blocks of query rows: a block's scores over all its keys stay in the
// second-level cache, so that no [tokens, tokens] matrix is ever in memory, and the softmax still sees whole rows, as
// PyTorch's eager attention does, with the same roundings. (An online softmax would be as fast and round differently.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "lockstep/dtype.h"

namespace lockstep::kernels {

struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
};

// One layer's keys and values of one sequence, in panels of 16 (simd/row_kernels.h). Each head of k has capacity / 16
// panels, one key a column, of depth head_dim; each head of v has ceil(head_dim / 16) panels, one channel a column, of
// depth capacity. What was never written is zero.
struct KvView {
  std::byte* k;
  std::byte* v;
  int64_t capacity;  // a multiple of 16
};

// Bytes of k and of v, each.
size_t KeyBytes(DType dtype, const AttentionShape& shape, int64_t capacity);
size_t ValueBytes(DType dtype, const AttentionShape& shape, int64_t capacity);

// Writes `count` tokens' keys and values at `position` and on. k, v: [count, kv_heads, head_dim], tokens lie `stride`
// elements apart. REQUIRES: position + count <= capacity.
void WriteKeysAndValues(DType dtype, const AttentionShape& shape, const KvView& kv, int64_t position, int64_t count,
                        const void* k, const void* v, int64_t stride);

// Tokens of one sequence that follow one another: `begin`, begin + 1, … of the batch stand at `position`, position + 1,
// …; their own keys are in the cache already.
struct Run {
  int64_t begin, count, position;
  KvView kv;
};

// Causal attention of each token over the keys 0..its own position. q: [tokens, heads, head_dim], tokens q_stride
// elements apart; context: [tokens, heads, head_dim], dense. A NaN in a value reaches earlier tokens of the same block,
// as in PyTorch: 0 · NaN.
void Attention(DType dtype, const AttentionShape& shape, const void* q, int64_t q_stride, std::span<const Run> runs,
               void* context);

// The same in three steps over matrices that a tap can see; the same bits. scores, probs: [tokens, heads, keys], f32
// that hold values of the storage dtype. Masked scores are -infinity.
void AttentionScores(DType dtype, const AttentionShape& shape, const void* q, int64_t q_stride,
                     std::span<const Run> runs, int64_t keys, float* scores);
void AttentionProbs(DType dtype, const AttentionShape& shape, std::span<const Run> runs, int64_t keys,
                    float* scores_to_probs);
void AttentionContext(DType dtype, const AttentionShape& shape, const float* probs, std::span<const Run> runs,
                      int64_t keys, void* context);

}  // namespace lockstep::kernels
