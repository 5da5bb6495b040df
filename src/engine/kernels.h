// The ops between the matrix products. Tensors are dense, in the storage dtype T; arithmetic is f32 with the roundings
// of the Hugging Face model (points.md): what PyTorch rounds to T between two steps is rounded here too.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lockstep/checkpoint.h"
#include "lockstep/dtype.h"

namespace lockstep::kernels {

// y[r] = w · round(x[r] / sqrt(mean(x[r]²) + eps)); x, y: [rows, width], may be the same; w: [width] f32 values of the
// storage dtype.
void RmsNorm(DType dtype, const void* x, std::span<const float> w, double eps, int64_t rows, void* y);

// cos and sin of position · theta^(-2i/head_dim) for i < head_dim/2, rounded to the storage dtype.
class RopeTable {
 public:
  RopeTable() = default;
  RopeTable(const Config& config, DType dtype, int64_t max_positions);
  std::span<const float> Cos(int64_t position) const { return Row(cos_, position); }  // [head_dim / 2]
  std::span<const float> Sin(int64_t position) const { return Row(sin_, position); }

 private:
  std::span<const float> Row(const std::vector<float>& table, int64_t position) const {
    return std::span(table).subspan(static_cast<size_t>(position) * half_, half_);
  }
  size_t half_ = 0;
  std::vector<float> cos_, sin_;  // [positions, head_dim / 2]
};

// Rotates the pairs (i, i + head_dim/2) of each head in place. x: [tokens, heads, head_dim]; positions: [tokens].
void Rope(DType dtype, void* x, const RopeTable& table, std::span<const int32_t> positions, int64_t heads,
          int64_t head_dim);

// y = a + b, elementwise; y may be a or b.
void Add(DType dtype, const void* a, const void* b, int64_t count, void* y);

// gate = silu(gate) · up, elementwise.
void SwiGlu(DType dtype, void* gate, const void* up, int64_t count);

// One layer's keys and values of one sequence.
struct KvView {
  const std::byte* k;  // [kv_heads, capacity, head_dim]
  const std::byte* v;
  int64_t capacity;
};

struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
};

// Causal attention of each token over its own sequence, keys 0..position. q, context: [tokens, heads, head_dim];
// kv: [tokens], the cache of each token's sequence, which holds the token's own key already.
void Attention(DType dtype, const AttentionShape& shape, const void* q, std::span<const KvView> kv,
               std::span<const int32_t> positions, void* context);

// The same in three steps over matrices that a tap can see; the same bits. scores, probs: [tokens, heads, keys], f32
// that hold values of the storage dtype. Masked scores are -infinity.
void AttentionScores(DType dtype, const AttentionShape& shape, const void* q, std::span<const KvView> kv,
                     std::span<const int32_t> positions, int64_t keys, float* scores);
void AttentionProbs(DType dtype, const AttentionShape& shape, std::span<const int32_t> positions, int64_t keys,
                    float* scores_to_probs);
void AttentionContext(DType dtype, const AttentionShape& shape, const float* probs, std::span<const KvView> kv,
                      std::span<const int32_t> positions, int64_t keys, void* context);

}  // namespace lockstep::kernels
