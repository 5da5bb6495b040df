#include "engine/stop_filter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "checkpoint/test_files.h"

namespace lockstep {
namespace {

using test::ErrorOf;
using ::testing::HasSubstr;

// What comes out of the pieces, with " | " between what is handed on at once, and "." where it stopped.
std::string Filtered(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopFilter filter(stops);
  std::string out;
  for (const std::string& piece : pieces) out += filter.Add(piece) + "|";
  return out + filter.Finish() + (filter.stopped() ? "." : "");
}

TEST(StopFilter, HandsTextOn) { EXPECT_EQ(Filtered({}, {"one ", "two"}), "one |two|"); }

TEST(StopFilter, EndsBeforeTheStopString) {
  EXPECT_EQ(Filtered({"STOP"}, {"go STOP on", "more"}), "go ||.");
  EXPECT_EQ(Filtered({"STOP"}, {"STOP"}), "|.");
}

TEST(StopFilter, HoldsBackWhatMayBeginOne) {
  EXPECT_EQ(Filtered({"\n\n"}, {"a\n", "\nb"}), "a||.");
  EXPECT_EQ(Filtered({"\n\n"}, {"a\n", "b\n"}), "a|\nb|\n");
  EXPECT_EQ(Filtered({"aab"}, {"a", "a", "a", "b"}), "||a||.") << "the beginning may begin again";
  EXPECT_EQ(Filtered({"User:", "Us two"}, {"x U", "s", "e", "d"}), "x |||Used|");
}

TEST(StopFilter, TheFirstToBeCompleteWins) {
  EXPECT_EQ(Filtered({"abcd", "bc"}, {"xabcd"}), "xa|.");
  EXPECT_EQ(Filtered({"abcd", "bc"}, {"xa", "b", "c", "d"}), "x||a||.");
  EXPECT_EQ(Filtered({"c", "abc"}, {"xabc"}), "x|.") << "of those complete at once, the longest";
}

TEST(StopFilter, RefusesAnEmptyOne) {
  EXPECT_THAT(ErrorOf([] { StopFilter filter({"a", ""}); }), HasSubstr("stop string"));
}

// However the text is cut, the same comes out, and what is handed on is never taken back.
TEST(StopFilter, PiecesDoNotMatter) {
  std::mt19937 random(1);
  const auto text_of = [&](size_t length) {
    std::string out(length, 'a');
    for (char& c : out) c = "ab"[random() % 2];
    return out;
  };
  for (int i = 0; i < 2000; ++i) {
    const std::vector<std::string> stops = {text_of(1 + random() % 6), text_of(1 + random() % 6)};
    const std::string text = text_of(30);
    StopFilter whole(stops);
    std::string expected = whole.Add(text);
    expected += whole.Finish();
    StopFilter pieces(stops);
    std::string found;
    for (size_t at = 0; at < text.size();) {
      const size_t length = 1 + random() % 4;
      found += pieces.Add(text.substr(at, length));
      at += length;
    }
    found += pieces.Finish();
    ASSERT_EQ(found, expected) << stops[0] << " " << stops[1] << " " << text;
    ASSERT_EQ(pieces.stopped(), whole.stopped());
    // The slow twin: the shortest beginning of the text that ends in a stop string, without the longest such.
    for (size_t end = 0; end <= text.size(); ++end) {
      size_t longest = 0;
      for (const std::string& stop : stops) {
        if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
      }
      if (longest == 0) continue;
      ASSERT_EQ(expected, text.substr(0, end - longest));
      break;
    }
  }
}

}  // namespace
}  // namespace lockstep
