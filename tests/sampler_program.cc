// The sampler for tests/python/test_sampler.py: sampler_program temperature top_k top_p min_p repetition_penalty TOKENS
// reads f32 logits on standard input and prints what would be drawn from, "token probability" a line. TOKENS: seen
// ones, "1,2,3" or "".
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "lockstep/sampler.h"

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  lockstep::Sampler sampler({.temperature = std::atof(argv[1]),
                             .top_k = std::atoll(argv[2]),
                             .top_p = std::atof(argv[3]),
                             .min_p = std::atof(argv[4]),
                             .repetition_penalty = std::atof(argv[5])});
  std::istringstream tokens(argv[6]);
  for (std::string token; std::getline(tokens, token, ',');) sampler.See(std::vector<int32_t>{std::stoi(token)});
  std::vector<float> logits;
  for (float value = 0; std::fread(&value, sizeof(value), 1, stdin) == 1;) logits.push_back(value);
  for (const auto& [token, probability] : sampler.Candidates(logits)) std::printf("%d %.17g\n", token, probability);
  return 0;
}
