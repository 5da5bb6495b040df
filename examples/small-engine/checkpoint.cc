#include "checkpoint.h"

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

using Json = nlohmann::json;

namespace {

std::ifstream Open(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  return file;
}

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

float FromF16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t rest = half & 0x7FFF;
  if (rest >= 0x7C00) return FromBits(sign | 0x7F800000 | (rest & 0x3FF) << 13);  // infinity, NaN
  const float magnitude = FromBits(rest << 13) * FromBits(0x77800000);            // times 2^112: subnormals, too
  return sign != 0 ? -magnitude : magnitude;
}

std::vector<float> Widen(const std::string& dtype, const std::vector<char>& bytes) {
  if (dtype != "F32" && dtype != "BF16" && dtype != "F16") throw std::runtime_error("weights of dtype " + dtype);
  std::vector<float> out(bytes.size() / (dtype == "F32" ? 4 : 2));
  if (dtype == "F32") {
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  }
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, bytes.data() + 2 * i, 2);
    out[i] = dtype == "BF16" ? FromBits(static_cast<uint32_t>(bits) << 16) : FromF16(bits);
  }
  return out;
}

}  // namespace

Config LoadConfig(const std::string& directory) {
  const Json json = Json::parse(Open(directory + "/config.json"));
  if (json.value("model_type", "") != "qwen3") throw std::runtime_error("config.json: not a dense Qwen3");
  if (json.value("attention_bias", false)) throw std::runtime_error("config.json: attention_bias is not supported");
  if (json.value("use_sliding_window", false))
    throw std::runtime_error("config.json: sliding windows are not supported");
  // Wherever it stands: in rope_scaling, or in rope_parameters.
  if (json.dump().find("\"yarn\"") != std::string::npos) throw std::runtime_error("config.json: YaRN is not supported");

  Config config;
  config.hidden = json.at("hidden_size");
  config.intermediate = json.at("intermediate_size");
  config.layers = json.at("num_hidden_layers");
  config.heads = json.at("num_attention_heads");
  config.kv_heads = json.at("num_key_value_heads");
  config.head_dim = json.at("head_dim");
  config.vocab = json.at("vocab_size");
  config.eps = json.at("rms_norm_eps");
  config.rope_theta = json.value("rope_parameters", json).at("rope_theta");  // transformers 5 moved it there
  config.tied = json.at("tie_word_embeddings");
  return config;
}

Weights::Weights(const std::string& path) {
  std::ifstream file = Open(path);
  uint64_t length = 0;
  file.read(reinterpret_cast<char*>(&length), sizeof(length));
  std::string header(length, ' ');
  file.read(header.data(), static_cast<std::streamsize>(length));
  const Json entries = Json::parse(header);
  for (const auto& [name, entry] : entries.items()) {
    if (name == "__metadata__") continue;
    const uint64_t begin = entry["data_offsets"][0];
    const uint64_t end = entry["data_offsets"][1];
    std::vector<char> bytes(end - begin);
    file.seekg(static_cast<std::streamoff>(sizeof(length) + length + begin));
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file) throw std::runtime_error(path + ": ends within " + name);
    tensors_[name] = Widen(entry["dtype"], bytes);
  }
}

std::vector<float> Weights::Take(const std::string& name, size_t size) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw std::runtime_error(name + ": not in the checkpoint");
  if (found->second.size() != size) throw std::runtime_error(name + ": has another size than config.json says");
  return std::move(found->second);
}
