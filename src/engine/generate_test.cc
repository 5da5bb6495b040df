// Generation on the bundled model, against the plainest way to do the same. That the text is transformers' is for
// tests/python/test_generate.py to say.
#include "lockstep/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "checkpoint/test_files.h"

namespace lockstep {
namespace {

using test::ErrorOf;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::SizeIs;

const std::string kTinyQwen3 = LOCKSTEP_SOURCE_DIR "/models/tiny-qwen3";

class Generating : public ::testing::Test {
 protected:
  Generation Run(std::string_view prompt, const GenerateOptions& options) {
    pieces.clear();
    text.clear();
    return Generate(model, tokenizer, tokenizer.Encode(prompt), options, [&](std::string_view piece) {
      pieces.emplace_back(piece);
      text += piece;
    });
  }

  // U+FFFD for ids that only the model has, and for what is cut by them.
  std::string TextOf(std::span<const int32_t> tokens) const {
    std::string out;
    std::vector<int32_t> known;
    for (const int32_t token : tokens) {
      if (token < tokenizer.vocab_size()) {
        known.push_back(token);
        continue;
      }
      out += tokenizer.Decode(known) + "\uFFFD";
      known.clear();
    }
    return out + tokenizer.Decode(known);
  }

  const Model model = Model::Load(kTinyQwen3);
  const Tokenizer tokenizer = Tokenizer::Load(kTinyQwen3);
  std::vector<std::string> pieces;
  std::string text;
};

TEST_F(Generating, IsWhatPrefillsWithoutACacheChoose) {
  const std::string prompt = "And God said,";
  const Generation generation = Run(prompt, {.max_tokens = 12});
  std::vector<int32_t> tokens = tokenizer.Encode(prompt);
  for (const int32_t found : generation.tokens) {
    Session session(model, 1, static_cast<int64_t>(tokens.size()));
    const std::vector<int32_t> zeros(tokens.size());
    const Logits logits = session.Forward({.tokens = tokens, .sequences = zeros});
    EXPECT_EQ(found, logits.Greedy(0));
    tokens.push_back(found);
  }
  EXPECT_THAT(generation.tokens, SizeIs(12));
  EXPECT_EQ(generation.stop_reason, StopReason::kMaxTokens);
  EXPECT_EQ(generation.decode_steps, 11) << "the last token is not fed any more";
  EXPECT_EQ(generation.context, static_cast<int64_t>(tokens.size()) - 1);
  EXPECT_EQ(text, TextOf(generation.tokens));
}

TEST_F(Generating, TheHashIsThatOfTheLastLogits) {
  const Generation generation = Run("And God said,", {.max_tokens = 1});
  const std::vector<int32_t> prompt = tokenizer.Encode("And God said,");
  const std::vector<int32_t> zeros(prompt.size());
  Session session(model, 1, 100);
  EXPECT_EQ(generation.logits_hash, session.Forward({.tokens = prompt, .sequences = zeros}).Hash(0));
  EXPECT_NE(generation.logits_hash, Run("And God said;", {.max_tokens = 1}).logits_hash);
}

TEST_F(Generating, StopTokensAreNoText) {
  const std::vector<int32_t> tokens = Run("And God said,", {.max_tokens = 12}).tokens;
  const int32_t stop = tokens[5];
  const Generation generation = Run("And God said,", {.max_tokens = 12, .stop_tokens = {stop, -1}});
  const auto count = static_cast<size_t>(std::ranges::find(tokens, stop) - tokens.begin());
  EXPECT_EQ(generation.stop_reason, StopReason::kStopToken);
  EXPECT_EQ(text, TextOf(std::span(tokens).first(count)));
}

TEST_F(Generating, StopStringsEndTheText) {
  Run("And God said,", {.max_tokens = 12});
  const std::string whole = text;
  const std::string stop = whole.substr(7, 9);
  const Generation generation = Run("And God said,", {.max_tokens = 12, .stop_strings = {stop}});
  EXPECT_EQ(generation.stop_reason, StopReason::kStopString);
  EXPECT_EQ(text, whole.substr(0, whole.find(stop)));
}

// At this temperature every id is as likely as any other: bytes that begin no character, special tokens, and ids that
// the tokenizer does not know.
TEST_F(Generating, AnyTokensAreText) {
  const Generation generation = Run("x", {.sampler = {.temperature = 1e9}, .max_tokens = 400});
  EXPECT_GT(*std::ranges::max_element(generation.tokens), tokenizer.vocab_size());
  EXPECT_EQ(text, TextOf(generation.tokens));
  EXPECT_GT(pieces.size(), 300U);
  EXPECT_THAT(pieces, Each(SizeIs(::testing::Gt(0))));
}

TEST_F(Generating, RefusesWhatItCannotUse) {
  const auto error = [&](std::vector<int32_t> prompt, const GenerateOptions& options) {
    return ErrorOf([&] { Generate(model, tokenizer, prompt, options, [](std::string_view) { FAIL(); }); });
  };
  EXPECT_THAT(error({}, {}), HasSubstr("the prompt: expected at least one token"));
  EXPECT_THAT(error(std::vector<int32_t>(4097, 1), {}), AllOf(HasSubstr("4096"), HasSubstr("found 4097")));
  EXPECT_THAT(error({1, 2048}, {}), HasSubstr("found 2048"));
  EXPECT_THAT(error({1}, {.max_tokens = 0}), HasSubstr("max_tokens"));
  EXPECT_THAT(error({1}, {.sampler = {.top_p = 2}}), HasSubstr("top-p"));
  EXPECT_THAT(error({1}, {.stop_strings = {""}}), HasSubstr("stop string"));
}

}  // namespace
}  // namespace lockstep
