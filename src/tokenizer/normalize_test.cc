#include "tokenizer/normalize.h"

#include <gtest/gtest.h>
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>

#include <random>

namespace lockstep {
namespace {

std::string Normalized(std::string_view text) {
  std::string storage;
  return std::string(Nfc(text, storage));
}

TEST(Nfc, Composes) {
  EXPECT_EQ(Normalized("plain"), "plain");
  EXPECT_EQ(Normalized("e\u0301 é"), "é é");
  EXPECT_EQ(Normalized("\u1112\u1161\u11AB"), "한");
  EXPECT_EQ(Normalized("\u212B\u2126\uFB01"), "ÅΩ\uFB01");
  EXPECT_EQ(Normalized("q\u0307\u0323"), "q\u0323\u0307");
  EXPECT_EQ(Normalized("\u0958"), "\u0915\u093C");
}

TEST(Nfc, GivesTheTextItselfWhereNothingChanges) {
  const std::string text = "山东 é";
  std::string storage;
  EXPECT_EQ(Nfc(text, storage).data(), text.data());
}

// U+1E2EF, a mark of Unicode 12 and of class 230, stays before one of class 220.
TEST(Nfc, LeavesCharactersAloneThatAreNewerThanUnicode9) {
  EXPECT_EQ(Normalized("a\U0001E2EF\u0323"), "a\U0001E2EF\u0323");
  EXPECT_EQ(Normalized("a\U0001E2EF\u0307\u0323"), "a\U0001E2EF\u0323\u0307");
}

// Long runs are sorted beforehand; ICU alone is the slow twin.
TEST(Nfc, SortsManyMarks) {
  const std::string marks[] = {"\u0301", "\u0323", "\u0344",     "\u0F73", "\u0F71",
                               "\u0334", "\u0345", "\U0001D165", "\u3099"};
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2& nfc = *icu::Normalizer2::getNFCInstance(status);
  std::mt19937 random(1);
  for (const int size : {1, 63, 64, 65, 66, 300}) {
    std::string text = "x ";
    for (const std::string base : {"a", "か", "中"}) {
      text += base;
      for (int k = 0; k < size; ++k) text += marks[random() % std::size(marks)];
    }
    std::string expected;
    icu::StringByteSink<std::string> sink(&expected);
    nfc.normalizeUTF8(0, {text.data(), static_cast<int32_t>(text.size())}, sink, nullptr, status);
    ASSERT_TRUE(U_SUCCESS(status));
    EXPECT_EQ(Normalized(text), expected) << size;
  }
}

TEST(Nfc, TakesLittleTimeForManyMarks) {
  std::string text = "a";
  for (int k = 0; k < 500'000; ++k) text += "\u0301\u0323";
  EXPECT_EQ(Normalized(text).size(), 3 + 499'999 * 2 + 500'000 * 2U);
}

}  // namespace
}  // namespace lockstep
