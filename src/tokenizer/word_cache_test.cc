#include "tokenizer/word_cache.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace lockstep {
namespace {

// Words of all lengths around the limit, in a cache so small that they fight for its slots.
TEST(WordCache, GivesWhatEncodeGives) {
  std::mt19937 random(1);
  for (const size_t text_bytes : {size_t{0}, size_t{100}, size_t{1'000'000}}) {
    WordCache cache(text_bytes);
    std::vector<int32_t> ids, expected;
    size_t encoded = 0;
    for (int round = 0; round < 20000; ++round) {
      const std::string word(random() % 26, static_cast<char>('a' + random() % 5));
      const auto append = [&](std::vector<int32_t>& out) { out.insert(out.end(), word.begin(), word.end()); };
      cache.Append(word, ids, [&] {
        ++encoded;
        append(ids);
      });
      append(expected);
    }
    EXPECT_EQ(ids, expected);
    // In the largest, those of 23 bytes and more, and each of the others once.
    EXPECT_LT(encoded, text_bytes == 1'000'000 ? 4000U : 20000U);
  }
}

// A zero byte is a letter like any other.
TEST(WordCache, TellsLengthsApart) {
  WordCache cache(0);
  std::vector<int32_t> ids;
  cache.Append("a", ids, [&] { ids.push_back(1); });
  cache.Append({"a\0", 2}, ids, [&] { ids.push_back(2); });
  cache.Append({"a\0", 2}, ids, [&] { ids.push_back(3); });
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 2, 2}));
}

}  // namespace
}  // namespace lockstep
