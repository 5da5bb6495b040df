// Test only: a small Qwen3 on disk, whole or damaged.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lockstep/error.h"

namespace lockstep::test {

using Json = nlohmann::ordered_json;

// A directory that goes when the object goes.
class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "lockstep-test-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline void WriteText(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  if (!out.flush()) std::abort();
}

struct TestTensor {
  std::string name;
  std::string dtype;  // as safetensors calls it
  std::vector<int64_t> shape;
  uint8_t fill = 0;  // byte k of the data is fill + k
};

inline size_t BytesOf(const TestTensor& tensor) {
  const size_t size = tensor.dtype == "F64" ? 8 : tensor.dtype == "F32" ? 4 : tensor.dtype == "I8" ? 1 : 2;
  size_t bytes = size;
  for (const int64_t extent : tensor.shape) bytes *= static_cast<size_t>(extent);
  return bytes;
}

// The header's length, the header, then the data as it is.
inline std::string SafetensorsText(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + data;
}

inline Json HeaderOf(const std::vector<TestTensor>& tensors) {
  Json header = Json::object();
  size_t offset = 0;
  for (const TestTensor& tensor : tensors) {
    const size_t end = offset + BytesOf(tensor);
    header[tensor.name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  return header;
}

inline std::string DataOf(const std::vector<TestTensor>& tensors) {
  std::string data;
  for (const TestTensor& tensor : tensors) {
    for (size_t k = 0; k < BytesOf(tensor); ++k) data += static_cast<char>(tensor.fill + k);
  }
  return data;
}

inline void WriteSafetensors(const std::string& path, const std::vector<TestTensor>& tensors) {
  WriteText(path, SafetensorsText(HeaderOf(tensors).dump(), DataOf(tensors)));
}

// head_dim is not hidden / heads, and every dimension differs, so that no two shapes can be mistaken.
inline Json TinyConfig() {
  return Json::parse(R"({
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "attention_bias": false,
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
    "intermediate_size": 20, "vocab_size": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000, "rope_scaling": null, "use_sliding_window": false, "sliding_window": null,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16"
  })");
}

// The weights of TinyConfig, written out by hand; lm_head.weight, which the tied model lacks, is not among them.
inline std::vector<TestTensor> TinyWeights(const std::string& dtype = "BF16") {
  std::vector<TestTensor> weights = {{"model.embed_tokens.weight", dtype, {32, 12}}};
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    weights.push_back({layer + "self_attn.q_proj.weight", dtype, {24, 12}});
    weights.push_back({layer + "self_attn.k_proj.weight", dtype, {12, 12}});
    weights.push_back({layer + "self_attn.v_proj.weight", dtype, {12, 12}});
    weights.push_back({layer + "self_attn.o_proj.weight", dtype, {12, 24}});
    weights.push_back({layer + "self_attn.q_norm.weight", dtype, {6}});
    weights.push_back({layer + "self_attn.k_norm.weight", dtype, {6}});
    weights.push_back({layer + "mlp.gate_proj.weight", dtype, {20, 12}});
    weights.push_back({layer + "mlp.up_proj.weight", dtype, {20, 12}});
    weights.push_back({layer + "mlp.down_proj.weight", dtype, {12, 20}});
    weights.push_back({layer + "input_layernorm.weight", dtype, {12}});
    weights.push_back({layer + "post_attention_layernorm.weight", dtype, {12}});
  }
  weights.push_back({"model.norm.weight", dtype, {12}});
  for (size_t i = 0; i < weights.size(); ++i) weights[i].fill = static_cast<uint8_t>(7 * i + 1);
  return weights;
}

// The message of the Error that `body` throws; "" with a test failure when it throws none.
template <typename Body>
std::string ErrorOf(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "expected an Error";
  return "";
}

}  // namespace lockstep::test
