// Text generation with the built-in engine: a prompt in, one token after the other out.
//
//   Tokenizer tokenizer = Tokenizer::Load(dir);
//   Generate(model, tokenizer, tokenizer.Encode("Once upon"), {.stop_tokens = StopTokens(dir)},
//            [](std::string_view text) { std::cout << text << std::flush; });
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lockstep/engine.h"
#include "lockstep/sampler.h"
#include "lockstep/tokenizer.h"

namespace lockstep {

struct GenerateOptions {
  SamplerOptions sampler;
  int64_t max_tokens = 128;               // >= 1
  std::vector<int32_t> stop_tokens;       // the text ends before one of them; see StopTokens() of checkpoint.h
  std::vector<std::string> stop_strings;  // the text ends before one of them, however tokens cut it
};

enum class StopReason : uint8_t {
  kStopToken,
  kStopString,
  kMaxTokens,
  kContextFull,  // max_position_embeddings tokens are in the cache
};

struct Generation {
  std::vector<int32_t> tokens;  // all that were chosen, the last one included
  StopReason stop_reason = StopReason::kMaxTokens;
  int64_t context = 0;  // tokens in the cache at the end
  double prefill_seconds = 0;
  double decode_seconds = 0;
  int64_t decode_steps = 0;  // forward calls after the prompt's
  std::string logits_hash;   // of the last forward call: Logits::Hash
};

// Prefills the prompt in one call, then decodes. Text is handed on as soon as it is certain: complete characters, and
// nothing that may turn out to begin a stop string. Special tokens are text; an id that the tokenizer does not know
// (models have more rows than tokens) is U+FFFD. Throws Error for an empty prompt or one longer than
// max_position_embeddings, for unusable options, and for logits that are NaN, naming the position.
Generation Generate(const Model& model, const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                    const GenerateOptions& options, const std::function<void(std::string_view)>& on_text);

}  // namespace lockstep
