// The weights of a model in the form that the forward pass reads.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/linear.h"
#include "engine/weight_source.h"
#include "lockstep/engine.h"

namespace lockstep {

// The weight of a norm: f32 values that the storage dtype can hold.
using NormWeight = std::vector<float>;

struct LayerWeights {
  NormWeight input_norm, q_norm, k_norm, post_attention_norm;
  Linear qkv;        // q_proj, k_proj and v_proj below one another: [(H + 2K) d, D]
  Linear o_proj;     // [D, H d]
  Linear gate_up;    // gate_proj above up_proj: [2I, D]
  Linear down_proj;  // [D, I]
};

struct Model::Impl {
  Impl(std::unique_ptr<WeightSource> source, DType dtype);

  std::unique_ptr<WeightSource> source;
  DType dtype;
  std::vector<LayerWeights> layers;
  NormWeight final_norm;
  Linear lm_head;

  // Rows of the embedding, from the source, in the storage dtype: a tied embedding is in memory once, as the head.
  // out: [tokens, hidden].
  void Embed(std::span<const int32_t> tokens, void* out) const;
};

}  // namespace lockstep
