#include <map>

#include "base/fingerprint.h"
#include "base/safetensors.h"
#include "engine/npy.h"
#include "lockstep/engine.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

std::vector<float> EdgeCase(float scale, int64_t tokens, int64_t hidden) {
  std::vector<float> out(static_cast<size_t>(tokens * hidden));
  for (size_t i = 0; i < out.size(); ++i) {
    // 24 bits: every step is exact in f32.
    out[i] = scale * (static_cast<float>(SplitMix64(i) >> 40) * 0x1p-23F - 1.0F);
  }
  return out;
}

std::vector<std::vector<float>> FromFile(const std::string& path, int64_t hidden,
                                         std::span<const int64_t> prompt_lengths) {
  const Npy npy = ReadNpy(path);
  const size_t rank = npy.shape.size();
  if (rank < 2 || rank > 3 || npy.shape.back() != hidden || npy.values.empty()) {
    throw Error(path + ": expected embeddings of shape [tokens, " + std::to_string(hidden) +
                "] or [sequences, tokens, " + std::to_string(hidden) + "], found " + ShapeText(npy.shape));
  }
  const size_t sequences = rank == 3 ? static_cast<size_t>(npy.shape[0]) : 1;
  const int64_t tokens = npy.shape[rank - 2];
  if (!prompt_lengths.empty() && prompt_lengths.size() != sequences) {
    throw Error(path + ": holds " + std::to_string(sequences) + " sequences, but there are " +
                std::to_string(prompt_lengths.size()) + " prompts");
  }
  for (const int64_t length : prompt_lengths) {
    if (length != tokens) {
      throw Error(path + ": holds " + std::to_string(tokens) + " tokens a sequence, but a prompt has " +
                  std::to_string(length));
    }
  }
  std::vector<std::vector<float>> out;
  const auto size = static_cast<std::ptrdiff_t>(tokens * hidden);
  for (size_t s = 0; s < sequences; ++s) {
    const auto begin = npy.values.begin() + static_cast<std::ptrdiff_t>(s) * size;
    out.emplace_back(begin, begin + size);
  }
  return out;
}

}  // namespace

std::vector<std::vector<float>> InputEmbeddings(const std::string& source, int64_t hidden,
                                                std::span<const int64_t> prompt_lengths) {
  static const std::map<std::string, float> kEdgeCases = {{"zeros", 0.0F}, {"tiny", 0x1p-20F}, {"huge", 0x1p13F}};
  const auto edge_case = kEdgeCases.find(source);
  if (edge_case == kEdgeCases.end()) return FromFile(source, hidden, prompt_lengths);
  std::vector<std::vector<float>> out;
  for (const int64_t length : prompt_lengths) out.push_back(EdgeCase(edge_case->second, length, hidden));
  return out;
}

}  // namespace lockstep
