#include "bench/flops.h"

namespace lockstep {
namespace {

int64_t LayerMatrixElements(const Config& c) {
  const int64_t q_and_o = 2 * c.hidden_size * c.num_attention_heads * c.head_dim;
  const int64_t k_and_v = 2 * c.hidden_size * c.num_key_value_heads * c.head_dim;
  return q_and_o + k_and_v + 3 * c.hidden_size * c.intermediate_size;
}

int64_t HeadElements(const Config& c) { return c.vocab_size * c.hidden_size; }

}  // namespace

int64_t PackedElements(const Config& config) {
  const int64_t layer_norms = 2 * config.hidden_size + 2 * config.head_dim;
  const int64_t layers = config.num_hidden_layers * (LayerMatrixElements(config) + layer_norms);
  return layers + config.hidden_size + HeadElements(config);
}

double PrefillFlops(const Config& config, int64_t tokens, int64_t logits_rows) {
  const auto t = static_cast<double>(tokens);
  const double keys = t * (t + 1) / 2;  // each token sees its own position + 1
  const double matrices = 2.0 * t * static_cast<double>(LayerMatrixElements(config));
  const double attention = 4.0 * static_cast<double>(config.head_dim * config.num_attention_heads) * keys;
  const double head = 2.0 * static_cast<double>(logits_rows) * static_cast<double>(HeadElements(config));
  return static_cast<double>(config.num_hidden_layers) * (matrices + attention) + head;
}

double DecodeBytes(const Config& config, DType dtype, int64_t context) {
  const int64_t weights = PackedElements(config) + config.hidden_size;
  return static_cast<double>(weights) * static_cast<double>(DTypeSize(dtype)) +
         static_cast<double>(CacheBytes(config, dtype, context));
}

int64_t CacheBytes(const Config& config, DType dtype, int64_t tokens) {
  return config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * tokens *
         static_cast<int64_t>(DTypeSize(dtype));
}

}  // namespace lockstep
