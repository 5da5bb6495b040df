#include "tokenizer/words.h"

#include <gmock/gmock.h>

#include <string>
#include <vector>

namespace lockstep {
namespace {

using testing::ElementsAre;

std::vector<std::string> Split(WordPattern pattern, std::string_view text) {
  std::vector<std::string> words;
  while (!text.empty()) {
    words.emplace_back(text.substr(0, FirstWord(pattern, text)));
    text.remove_prefix(words.back().size());
  }
  return words;
}

std::vector<std::string> Qwen2(std::string_view text) { return Split(WordPattern::kQwen2, text); }
std::vector<std::string> Gpt2(std::string_view text) { return Split(WordPattern::kGpt2, text); }

TEST(Words, OfQwen2) {
  EXPECT_THAT(Qwen2("Hello world 123"), ElementsAre("Hello", " world", " ", "1", "2", "3"));
  EXPECT_THAT(Qwen2("it's DON'T 'twas we'LLx"), ElementsAre("it", "'s", " DON", "'T", " '", "twas", " we", "'LL", "x"));
  EXPECT_THAT(Qwen2("'\u017Ft"), ElementsAre("'\u017F", "t"));
  EXPECT_THAT(Qwen2("'re'r"), ElementsAre("'re", "'r"));
  EXPECT_THAT(Qwen2("a.b !? x)\r\n\ny"), ElementsAre("a", ".b", " !?", " x", ")\r\n\n", "y"));
  EXPECT_THAT(Qwen2("\tx\u3000y\nz"), ElementsAre("\tx", "\u3000y", "\n", "z"));
  EXPECT_THAT(Qwen2("山东①²x"), ElementsAre("山东", "①", "²", "x"));
  EXPECT_THAT(Qwen2("a\u0301b"), ElementsAre("a", "\u0301b"));
}

TEST(Words, BlanksOfQwen2) {
  EXPECT_THAT(Qwen2("   x"), ElementsAre("  ", " x"));
  EXPECT_THAT(Qwen2("   !"), ElementsAre("  ", " !"));
  EXPECT_THAT(Qwen2("   1"), ElementsAre("  ", " ", "1"));
  EXPECT_THAT(Qwen2(" \n \r\n  x"), ElementsAre(" \n \r\n", " ", " x"));
  EXPECT_THAT(Qwen2("x \n "), ElementsAre("x", " \n", " "));
  EXPECT_THAT(Qwen2("\u2028\u0085 \u00A0"), ElementsAre("\u2028\u0085 \u00A0"));
  EXPECT_THAT(Qwen2("\n1"), ElementsAre("\n", "1"));
  EXPECT_THAT(Qwen2("\u20281"), ElementsAre("\u2028", "1"));
  EXPECT_THAT(Qwen2(" "), ElementsAre(" "));
}

TEST(Words, OfGpt2) {
  EXPECT_THAT(Gpt2("Hello world 123 !?\n\nx"), ElementsAre("Hello", " world", " 123", " !?", "\n", "\n", "x"));
  EXPECT_THAT(Gpt2("it's IT'S"), ElementsAre("it", "'s", " IT", "'", "S"));
  EXPECT_THAT(Gpt2("   x"), ElementsAre("  ", " x"));
  EXPECT_THAT(Gpt2("\tx\n \n"), ElementsAre("\t", "x", "\n \n"));
}

}  // namespace
}  // namespace lockstep
