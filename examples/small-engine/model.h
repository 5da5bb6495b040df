// Qwen3 in f32, one sequence, plain loops: small enough to read in one sitting, and fast enough for a small model.
#pragma once

#include <cstdint>
#include <lockstep/capture.hpp>
#include <string>
#include <vector>

#include "checkpoint.h"

using Floats = std::vector<float>;

struct Layer {
  Floats input_norm;              // [hidden]
  Floats q_proj, k_proj, v_proj;  // [heads * head_dim, hidden], k and v: [kv_heads * head_dim, hidden]
  Floats q_norm, k_norm;          // [head_dim]
  Floats o_proj;                  // [hidden, heads * head_dim]
  Floats post_norm;               // [hidden]
  Floats gate_proj, up_proj;      // [intermediate, hidden]
  Floats down_proj;               // [hidden, intermediate]
  Floats k_cache, v_cache;        // [positions, kv_heads, head_dim]
};

class Model {
 public:
  explicit Model(const std::string& directory);

  // Runs `ids` behind what was run before, and returns the greedy next token.
  int32_t Forward(const std::vector<int32_t>& ids);

  lockstep::Trace trace;  // switched off unless one is put here

 private:
  void RunLayer(Layer& layer, int index, Floats& x, int tokens);
  void Attend(const Layer& layer, const Floats& q, int tokens, Floats& out) const;
  void Rope(Floats& x, int tokens, int heads) const;

  Config config_;
  Floats embed_;    // [vocab, hidden]
  Floats lm_head_;  // [vocab, hidden]; empty when tied
  Floats norm_;     // [hidden]
  std::vector<Layer> layers_;
  int past_ = 0;  // positions in the cache
  lockstep::Step step_;
};
