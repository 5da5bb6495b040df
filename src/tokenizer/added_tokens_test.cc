#include "tokenizer/added_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <tuple>

namespace lockstep {
namespace {

using Tokens = std::vector<std::pair<std::string, int32_t>>;

AddedTokenFinder::Match SlowFind(const Tokens& tokens, std::string_view text, size_t from) {
  for (size_t at = from; at < text.size(); ++at) {
    AddedTokenFinder::Match best;
    for (const auto& [token, id] : tokens) {
      if (text.substr(at).starts_with(token) && token.size() > best.size) best = {at, token.size(), id};
    }
    if (best.size > 0) return best;
  }
  return {text.size(), 0, 0};
}

TEST(AddedTokenFinder, TakesTheLeftmostThenTheLongest) {
  const AddedTokenFinder finder({{"ab", 1}, {"abcd", 2}, {"bcde", 3}, {"\xC3\xA9", 4}});
  EXPECT_EQ(finder.Find("xabcde", 0).id, 2);
  EXPECT_EQ(finder.Find("xabce", 0).id, 1);
  EXPECT_EQ(finder.Find("xabcde", 2).id, 3);
  EXPECT_EQ(finder.Find("zé", 0).id, 4);
  EXPECT_EQ(finder.Find("abc", 3).size, 0U);
  EXPECT_EQ(AddedTokenFinder().Find("abc", 0).begin, 3U);
}

TEST(AddedTokenFinder, FastIsSlow) {
  std::mt19937 random(1);
  const auto word = [&](uint32_t longest) {
    std::string out;
    for (uint32_t k = 1 + random() % longest; k > 0; --k) out += "ab\xFF"[random() % 3];
    return out;
  };
  for (int round = 0; round < 5000; ++round) {
    std::set<std::string> texts;
    for (uint32_t k = random() % 6; k > 0; --k) texts.insert(word(6));
    Tokens tokens;
    for (const std::string& text : texts) tokens.emplace_back(text, static_cast<int32_t>(tokens.size()));
    std::shuffle(tokens.begin(), tokens.end(), random);
    const AddedTokenFinder finder(tokens);
    const std::string text = word(40);
    for (size_t from = 0; from <= text.size(); ++from) {
      const AddedTokenFinder::Match expected = SlowFind(tokens, text, from);
      const AddedTokenFinder::Match found = finder.Find(text, from);
      ASSERT_EQ(std::tie(found.begin, found.size, found.id), std::tie(expected.begin, expected.size, expected.id));
    }
  }
}

}  // namespace
}  // namespace lockstep
