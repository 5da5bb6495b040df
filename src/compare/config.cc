#include "compare/config.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <string_view>

namespace lockstep {
namespace {

// Keys that change what is computed. Others, such as a path or a library's version, may differ.
constexpr std::string_view kKeysThatMatter[] = {"hidden_size",
                                                "num_hidden_layers",
                                                "num_attention_heads",
                                                "num_key_value_heads",
                                                "head_dim",
                                                "intermediate_size",
                                                "vocab_size",
                                                "rms_norm_eps",
                                                "rope_theta",
                                                "rope_parameters",
                                                "rope_scaling",
                                                "tie_word_embeddings",
                                                "max_position_embeddings",
                                                "attention_bias",
                                                "hidden_act",
                                                "sliding_window",
                                                "layer_types"};

bool Matters(const std::string& key) {
  return std::find(std::begin(kKeysThatMatter), std::end(kKeysThatMatter), key) != std::end(kKeysThatMatter);
}

std::string Shortened(const std::string& text) {
  constexpr size_t kLongest = 120;
  return text.size() <= kLongest ? text : text.substr(0, kLongest) + "…";
}

// Adds "key: A in the reference, B in the candidate" for every key that both have and that differs.
void AddDifferences(const TraceView& reference, const TraceView& other, std::string_view other_side,
                    std::set<std::string>* fatal, std::set<std::string>* harmless) {
  for (const auto& [key, value] : reference.meta->config) {
    const auto found = other.meta->config.find(key);
    if (found == other.meta->config.end() || found->second == value) continue;
    const std::string line = key + " is " + Shortened(value) + " in the reference (" + reference.path + ") and " +
                             Shortened(found->second) + " in the " + std::string(other_side) + " (" + other.path + ")";
    (Matters(key) ? fatal : harmless)->insert(line);
  }
}

}  // namespace

void CheckConfigs(const std::vector<TraceView>& reference, const std::vector<TraceView>& candidate,
                  std::vector<std::string>* notes) {
  std::set<std::string> fatal, harmless;
  for (size_t i = 1; i < reference.size(); ++i)
    AddDifferences(reference[0], reference[i], "reference", &fatal, &harmless);
  for (const TraceView& other : candidate) AddDifferences(reference[0], other, "candidate", &fatal, &harmless);
  for (const std::string& line : harmless) notes->push_back("config: " + line);
  if (fatal.empty()) return;
  std::string message = "the traces are of different models:";
  for (const std::string& line : fatal) message += " " + line + ";";
  throw Error(message + " capture both from one checkpoint, or mend the config that an engine writes");
}

int64_t ConfigNumber(const SideRuns& side, const std::string& key) {
  for (const Run& run : side.runs) {
    const auto found = run.meta().config.find(key);
    if (found == run.meta().config.end()) continue;
    int64_t value = 0;
    const std::string& text = found->second;
    if (std::from_chars(text.data(), text.data() + text.size(), value).ec == std::errc()) return value;
  }
  return 0;
}

}  // namespace lockstep
