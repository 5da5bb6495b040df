#include "bench/shapes.h"

#include <array>

#include "lockstep/bench.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

struct Shape {
  const char* name;
  int64_t layers, hidden, intermediate, heads, kv_heads;
  bool tied;
};
constexpr std::array<Shape, 4> kShapes = {{
    {"qwen3-0.6b", 28, 1024, 3072, 16, 8, true},
    {"qwen3-1.7b", 28, 2048, 6144, 16, 8, true},
    {"qwen3-4b", 36, 2560, 9728, 32, 8, true},
    {"qwen3-8b", 36, 4096, 12288, 32, 8, false},
}};

Config ConfigOf(const Shape& shape) {
  Config config;
  config.hidden_size = shape.hidden;
  config.num_hidden_layers = shape.layers;
  config.num_attention_heads = shape.heads;
  config.num_key_value_heads = shape.kv_heads;
  config.head_dim = 128;
  config.intermediate_size = shape.intermediate;
  config.vocab_size = 151936;
  config.max_position_embeddings = 40960;
  config.rms_norm_eps = 1e-6;
  config.rope_theta = 1e6;
  config.tie_word_embeddings = shape.tied;
  return config;
}

}  // namespace

std::vector<std::string> BenchShapes() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

Config ConfigOfShape(const std::string& name) {
  std::string known;
  for (const Shape& shape : kShapes) {
    if (name == shape.name) return ConfigOf(shape);
    known += (known.empty() ? "" : ", ") + std::string(shape.name);
  }
  throw Error("shape " + name + ": expected one of " + known);
}

}  // namespace lockstep
