#include "inspect/slice.h"

#include <gmock/gmock.h>

#include "trace/test_trace.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<int64_t> Chosen(const std::string& items, int64_t size) {
  return IndicesOf(ParseSlice("x[head=" + items + "]").axes.front(), "q_head", size);
}

TEST(Slice, OfANameAlone) {
  EXPECT_EQ(ParseSlice("layer_0_x").name, "layer_0_x");
  EXPECT_TRUE(ParseSlice("layer_0_x").axes.empty());
}

TEST(Slice, TakesNumbersRangesAndLists) {
  const Slice slice = ParseSlice("x*[ pos = 5, head=1, 3 ,channel=0:2]");
  EXPECT_EQ(slice.name, "x*");
  ASSERT_EQ(slice.axes.size(), 3u);
  EXPECT_EQ(slice.axes[0].axis, "pos");
  EXPECT_EQ(slice.axes[1].items.size(), 2u);
  EXPECT_EQ(slice.axes[1].text, "head=1,3");
  EXPECT_THAT(Chosen("5", 8), ElementsAre(5));
  EXPECT_THAT(Chosen("-1", 8), ElementsAre(7));
  EXPECT_THAT(Chosen("3,1,-1,1", 8), ElementsAre(1, 3, 7));
  EXPECT_THAT(Chosen("6:", 8), ElementsAre(6, 7));
  EXPECT_THAT(Chosen(":2", 8), ElementsAre(0, 1));
  EXPECT_THAT(Chosen("-2:", 8), ElementsAre(6, 7));
  EXPECT_THAT(Chosen("6:99", 8), ElementsAre(6, 7)) << "as numpy";
  EXPECT_THAT(Chosen(":", 2), ElementsAre(0, 1));
  EXPECT_THAT(Chosen("0:2,5", 8), ElementsAre(0, 1, 5));
}

TEST(Slice, TellsWhatIsOutOfRange) {
  EXPECT_THAT(ErrorOf([] { Chosen("8", 8); }), testing::AllOf(HasSubstr("q_head has 8"), HasSubstr("found 8")));
  EXPECT_THAT(ErrorOf([] { Chosen("-9", 8); }), HasSubstr("found -9"));
  EXPECT_THAT(ErrorOf([] { Chosen("5:5", 8); }), HasSubstr("chooses nothing"));
  EXPECT_THAT(ErrorOf([] { Chosen("0:", 0); }), HasSubstr("chooses nothing"));
}

TEST(Slice, RefusesWhatIsNone) {
  for (const char* text : {"", "[pos=1]", "x[", "x[]", "x[5]", "x[pos]", "x[pos=]", "x[pos=a]", "x[pos=1:2:3]", "x[=1]",
                           "x[pos=1,pos=2]", "x[pos=1,]", "x[pos=99999999999999999999]", "x[pos=1] "}) {
    EXPECT_THAT(ErrorOf([&] { ParseSlice(text); }), HasSubstr("expected a slice such as")) << text;
  }
}

}  // namespace
}  // namespace lockstep
