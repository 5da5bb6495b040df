// The weights of a model in the form that the forward pass reads.
#pragma once

#include <string>
#include <vector>

#include "engine/linear.h"
#include "lockstep/engine.h"

namespace lockstep {

// The weight of a norm: f32 values that the storage dtype can hold.
struct NormWeight {
  std::string name;
  std::vector<float> values;
};

struct LayerWeights {
  NormWeight input_norm, q_norm, k_norm, post_attention_norm;
  Linear q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
};

struct Model::Impl {
  Impl(Checkpoint checkpoint, DType dtype);

  Checkpoint checkpoint;
  DType dtype;
  std::vector<LayerWeights> layers;
  NormWeight final_norm;
  Linear lm_head;

  // Rows of the embedding, from the mapped checkpoint, in the storage dtype. out: [tokens, hidden].
  void Embed(std::span<const int32_t> tokens, void* out) const;
};

}  // namespace lockstep
