// Choosing the next token from logits, as Hugging Face's generate() does: the repetition penalty, then temperature,
// top-k, top-p and min-p, in this order, then one draw. Temperature 0 is greedy.
//
//   Sampler sampler({.temperature = 0.6, .top_k = 20, .top_p = 0.95, .seed = 7});
//   sampler.See(prompt);
//   int32_t next = sampler.Next(logits.Row(0));
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lockstep {

struct SamplerOptions {
  double temperature = 0;         // >= 0; 0: greedy, and of the others only the repetition penalty counts
  int64_t top_k = 0;              // >= 0; 0: all. Tokens as likely as the last one kept stay too
  double top_p = 1;               // (0, 1]: the fewest tokens that hold this share of the probability
  double min_p = 0;               // [0, 1]: tokens at least this likely, as a share of the likeliest
  double repetition_penalty = 1;  // > 0: logits of seen tokens are divided by it, negative ones multiplied
  uint64_t seed = 0;              // of the draws: the same seed and logits give the same tokens
};

class Sampler {
 public:
  // Throws Error for an option out of its range.
  explicit Sampler(const SamplerOptions& options);

  // Tokens that the repetition penalty counts: the prompt. Next() adds its own choice.
  void See(std::span<const int32_t> tokens);

  // The next token. logits: [vocab]. Throws Error when one is NaN or +infinity, or none is finite.
  int32_t Next(std::span<const float> logits);

  struct Candidate {
    int32_t token;
    double probability;
  };
  // What Next() would draw from, by token; greedy: the one choice. Throws as Next().
  std::vector<Candidate> Candidates(std::span<const float> logits) const;

 private:
  std::vector<float> Penalized(std::span<const float> logits) const;
  double Uniform();

  SamplerOptions options_;
  std::vector<bool> seen_;  // by token
  uint64_t draws_ = 0;
};

}  // namespace lockstep
