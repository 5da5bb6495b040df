// A Hugging Face Qwen3 checkpoint: config.json and safetensors, in one file or sharded by model.safetensors.index.json.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lockstep/dtype.h"
#include "lockstep/error.h"

namespace lockstep {

struct Config {
  int64_t hidden_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 0;
  double rope_theta = 0;
  bool tie_word_embeddings = false;

  // The `model.config` object of trace.json, as JSON text.
  std::string TraceJson() const;
};

// Reads MODEL/config.json. Throws Error naming key, expected and found: what is not a dense Qwen3, what is missing
// (rope_theta is never guessed), and what is not supported (rope scaling, sliding windows, attention bias, other
// activations).
Config ReadConfig(const std::string& model_dir);

// Tokens that end a text: eos_token_id of MODEL/generation_config.json, or else of config.json; none where neither file
// or neither key is there. Throws Error for what is no token id.
std::vector<int32_t> StopTokens(const std::string& model_dir);

struct Weight {
  std::string name;           // "model.layers.0.self_attn.q_proj.weight"
  DType dtype = DType::kF32;  // F32, BF16 or F16
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;  // may be unaligned; lives as long as the checkpoint
  size_t bytes = 0;
};

class Checkpoint {
 public:
  // Reads config.json, maps the weights and checks that every weight the first `num_layers` layers need is there with
  // its shape and a float dtype. num_layers -1: all of config.json; else config().num_hidden_layers becomes num_layers.
  // Throws Error otherwise.
  static Checkpoint Open(const std::string& model_dir, int num_layers = -1);

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::string& path() const;
  const Config& config() const;
  // REQUIRES: an expected name ("lm_head.weight" of a tied model gives the embedding's weight).
  const Weight& Get(const std::string& name) const;
  // Every expected weight in checkpoint order, with its shape; lm_head.weight is not among them when tied.
  const std::vector<Weight>& weights() const;
  // Weights in the files that the model does not use.
  const std::vector<std::string>& unused() const;
  // Gives the pages of a weight back to the system (they can still be read).
  void Release(const Weight& weight) const;

 private:
  struct Impl;
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep
