// A Hugging Face Qwen3 directory: config.json, and the weights of one model.safetensors, widened to f32.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

struct Config {
  int hidden = 0;
  int intermediate = 0;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int vocab = 0;
  float eps = 0;
  float rope_theta = 0;
  bool tied = false;
};

// Throws std::runtime_error, as everything here does, on what this engine cannot run.
Config LoadConfig(const std::string& directory);

class Weights {
 public:
  explicit Weights(const std::string& path);
  // Takes a tensor out; it must have that many elements.
  std::vector<float> Take(const std::string& name, size_t size);

 private:
  std::map<std::string, std::vector<float>> tensors_;
};
