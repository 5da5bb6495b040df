#include "lockstep/tokenizer.h"

#include <gmock/gmock.h>

#include "tokenizer/test_tokenizer.h"
#include "tokenizer/utf8.h"

namespace lockstep {
namespace {

using test::ErrorOf;
using test::Json;
using test::TinyTokenizer;
using test::TokenizerOf;
using testing::ElementsAre;
using testing::HasSubstr;

const std::string kBundled = std::string(LOCKSTEP_SOURCE_DIR) + "/models/tiny-qwen3";

TEST(Tokenizer, EncodesAndDecodes) {
  const Tokenizer tokenizer = TokenizerOf(TinyTokenizer());
  EXPECT_THAT(tokenizer.Encode("the the"), ElementsAre(258, 259));
  EXPECT_THAT(tokenizer.Encode("<think>th<|im_end|>e"), ElementsAre(262, 256, 261, 'e'));
  EXPECT_THAT(tokenizer.Encode("e\u0301"), ElementsAre(0xC3, 0xA9));
  EXPECT_THAT(tokenizer.Encode("x\xFF"), ElementsAre('x', 0xEF, 0xBF, 0xBD));
  EXPECT_THAT(tokenizer.Encode(""), ElementsAre());
  EXPECT_THAT(tokenizer.Encode({"\0", 1}), ElementsAre(0));

  const std::vector<int32_t> ids = {262, 256, 261, 'e', 0xC3};
  EXPECT_EQ(tokenizer.Decode(ids), "<think>th<|im_end|>e\uFFFD");
  EXPECT_EQ(tokenizer.Decode(ids, /*skip_special=*/true), "<think>the\uFFFD");
  EXPECT_EQ(tokenizer.Decode({}), "");
}

TEST(Tokenizer, KnowsItsTokens) {
  const Tokenizer tokenizer = TokenizerOf(TinyTokenizer());
  EXPECT_EQ(tokenizer.vocab_size(), 263);
  EXPECT_EQ(tokenizer.TokenId("<|im_end|>"), 261);
  EXPECT_EQ(tokenizer.TokenId("Ġthe"), 259);
  EXPECT_EQ(tokenizer.TokenId(" the"), std::nullopt);
  EXPECT_TRUE(tokenizer.IsSpecial(261));
  EXPECT_FALSE(tokenizer.IsSpecial(262));
  EXPECT_FALSE(tokenizer.IsSpecial(-1));
  EXPECT_FALSE(tokenizer.IsSpecial(263));
}

TEST(Tokenizer, RefusesUnknownIds) {
  const Tokenizer tokenizer = TokenizerOf(TinyTokenizer());
  for (const int32_t id : {-1, 263, INT32_MAX, INT32_MIN}) {
    const std::string expected = "token " + std::to_string(id) + ": expected an id of the tokenizer";
    EXPECT_THAT(ErrorOf([&] { tokenizer.Decode(std::vector{id}); }), HasSubstr(expected));
    EXPECT_THAT(ErrorOf([&] { StreamDecoder(tokenizer).Add(id); }), HasSubstr(expected));
  }
}

TEST(Tokenizer, RefusesTheHolesBetweenIds) {
  Json json = TinyTokenizer();
  json["model"]["vocab"]["far"] = 1000;
  json["added_tokens"] = Json::array();
  const Tokenizer tokenizer = TokenizerOf(json);
  EXPECT_EQ(tokenizer.vocab_size(), 1001);
  EXPECT_EQ(tokenizer.Decode(std::vector{1000}), "far");
  EXPECT_THAT(ErrorOf([&] { tokenizer.Decode(std::vector{999}); }), HasSubstr("token 999"));
}

TEST(Tokenizer, MayBeMoved) {
  Tokenizer first = TokenizerOf(TinyTokenizer());
  Tokenizer second = std::move(first);
  EXPECT_EQ(second.vocab_size(), 263);
}

TEST(Tokenizer, LoadsTheBundledModel) {
  const Tokenizer tokenizer = Tokenizer::Load(kBundled);
  EXPECT_EQ(tokenizer.vocab_size(), 2003);
  const std::string text = "In the beginning God created the heaven and the earth.\n<|im_end|>";
  EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(text)), text);
}

TEST(Tokenizer, TakesLongWordsAndRuns) {
  const Tokenizer tokenizer = TokenizerOf(TinyTokenizer());
  EXPECT_THAT(tokenizer.Encode(std::string(2'000'000, 'l')), testing::Each(260));
  EXPECT_EQ(tokenizer.Encode(std::string(2'000'000, ' ')).size(), 2'000'000U);
  EXPECT_EQ(tokenizer.Encode(std::string(2'000'000, '<')).size(), 2'000'000U);
  EXPECT_EQ(tokenizer.Encode(std::string(2'000'000, '\'')).size(), 2'000'000U);
}

TEST(StreamDecoder, GivesWholeCharactersAsSoonAsTheyAreWhole) {
  const Tokenizer tokenizer = TokenizerOf(TinyTokenizer());
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.Add('a'), "a");
  EXPECT_EQ(decoder.Add(0xF0), "");
  EXPECT_EQ(decoder.Add(0x9F), "");
  EXPECT_THAT(ErrorOf([&] { decoder.Add(9999); }), HasSubstr("token 9999"));
  EXPECT_EQ(decoder.Add(0x98), "");
  EXPECT_EQ(decoder.Add(0x80), "😀");
  EXPECT_EQ(decoder.Add(0xC3), "");
  EXPECT_EQ(decoder.Add(261), "\uFFFD<|im_end|>");
  EXPECT_EQ(decoder.Add(0xE2), "");
  EXPECT_EQ(decoder.Finish(), "\uFFFD");
  EXPECT_EQ(decoder.Finish(), "");
  EXPECT_EQ(decoder.Add('b'), "b");
}

// A special token that is left out does not end a character, as in Decode.
TEST(StreamDecoder, EqualsDecode) {
  const Tokenizer tokenizer = TokenizerOf(TinyTokenizer());
  const std::vector<int32_t> ids = {0xE2, 261, 0x82, 0xAC, 0xE2, 0x82, 262, 0xFF, 259, 0xC3};
  for (const bool skip : {false, true}) {
    StreamDecoder decoder(tokenizer, skip);
    std::string text;
    for (const int32_t id : ids) {
      const std::string piece = decoder.Add(id);
      EXPECT_EQ(ValidPrefix(piece), piece.size());
      text += piece;
    }
    EXPECT_EQ(text + decoder.Finish(), tokenizer.Decode(ids, skip));
  }
}

}  // namespace
}  // namespace lockstep
