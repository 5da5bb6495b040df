#include "lockstep/generate.h"

#include <algorithm>

#include "base/clock.h"
#include "engine/stop_filter.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

// Throws Error for what could only go wrong.
void Check(const Config& config, std::span<const int32_t> prompt, const GenerateOptions& options) {
  if (prompt.empty()) throw Error("the prompt: expected at least one token, found none");
  if (static_cast<int64_t>(prompt.size()) > config.max_position_embeddings) {
    throw Error("the prompt: expected at most " + std::to_string(config.max_position_embeddings) +
                " tokens (max_position_embeddings), found " + std::to_string(prompt.size()) + "; shorten it");
  }
  CheckTokens(config, prompt);
  if (options.max_tokens < 1) {
    throw Error("max_tokens: expected a number from 1, found " + std::to_string(options.max_tokens));
  }
}

int64_t Capacity(const Config& config, std::span<const int32_t> prompt, int64_t max_tokens) {
  const int64_t limit = config.max_position_embeddings;
  return std::min(limit, static_cast<int64_t>(prompt.size()) + std::min(limit, max_tokens));
}

class Generator {
 public:
  Generator(const Model& model, const Tokenizer& tokenizer, std::span<const int32_t> prompt,
            const GenerateOptions& options, const std::function<void(std::string_view)>& on_text)
      : options_(options),
        on_text_(on_text),
        capacity_(Capacity(model.config(), prompt, options.max_tokens)),
        sampler_(options.sampler),
        decoder_(tokenizer),
        filter_(options.stop_strings),
        session_(model, 1, capacity_) {
    sampler_.See(prompt);
  }

  Generation Run(std::span<const int32_t> prompt) {
    auto start = Clock::now();
    Forward(prompt, Phase::kPrefill);
    result_.prefill_seconds = SecondsSince(start);

    start = Clock::now();
    while (!Take(Choose(*logits_))) {
      Forward({&result_.tokens.back(), 1}, Phase::kDecode);
      ++result_.decode_steps;
    }
    Emit(filter_.Add(decoder_.Finish()));
    Emit(filter_.Finish());
    result_.decode_seconds = SecondsSince(start);
    result_.context = session_.Length(0);
    result_.logits_hash = logits_->Hash(0);
    return std::move(result_);
  }

 private:
  void Forward(std::span<const int32_t> tokens, Phase phase) {
    sequences_.resize(tokens.size(), 0);
    logits_ = &session_.Forward({.tokens = tokens, .sequences = sequences_, .phase = phase});
  }

  int32_t Choose(const Logits& logits) {
    try {
      return sampler_.Next(logits.Row(0));
    } catch (const Error& e) {
      throw Error("position " + std::to_string(session_.Length(0) - 1) + ": " + e.what());
    }
  }

  // Returns whether the text ends here.
  bool Take(int32_t token) {
    result_.tokens.push_back(token);
    if (std::ranges::count(options_.stop_tokens, token) > 0) return Stop(StopReason::kStopToken);
    Emit(filter_.Add(TextOf(token)));
    if (filter_.stopped()) return Stop(StopReason::kStopString);
    if (static_cast<int64_t>(result_.tokens.size()) == options_.max_tokens) return Stop(StopReason::kMaxTokens);
    if (session_.Length(0) == capacity_) return Stop(StopReason::kContextFull);
    return false;
  }

  bool Stop(StopReason reason) {
    result_.stop_reason = reason;
    return true;
  }

  std::string TextOf(int32_t token) {
    try {
      return decoder_.Add(token);
    } catch (const Error&) {  // an id that the tokenizer does not know
      return decoder_.Finish() + "\uFFFD";
    }
  }

  void Emit(std::string_view text) {
    if (!text.empty()) on_text_(text);
  }

  const GenerateOptions& options_;
  const std::function<void(std::string_view)>& on_text_;
  int64_t capacity_;
  Sampler sampler_;
  StreamDecoder decoder_;
  StopFilter filter_;
  std::vector<int32_t> sequences_;  // zeros
  const Logits* logits_ = nullptr;  // of the last call
  Session session_;
  Generation result_;
};

}  // namespace

Generation Generate(const Model& model, const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                    const GenerateOptions& options, const std::function<void(std::string_view)>& on_text) {
  Check(model.config(), prompt, options);
  return Generator(model, tokenizer, prompt, options, on_text).Run(prompt);
}

}  // namespace lockstep
