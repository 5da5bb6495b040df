#include <gmock/gmock.h>

#include "lockstep/capture.hpp"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Selection OfPoints(const std::string& points, const std::string& layers = "") { return {points, layers, "", ""}; }
Selection OfRows(const std::string& rows) { return {"", "", "", rows}; }

TEST(MatchesPattern, TakesStarsForAnything) {
  const auto matches = [](const char* pattern, const char* name) { return MatchesPattern(pattern, name); };
  EXPECT_TRUE(matches("", ""));
  EXPECT_TRUE(matches("*", ""));
  EXPECT_TRUE(matches("*", "abc"));
  EXPECT_TRUE(matches("a*c", "abbc"));
  EXPECT_TRUE(matches("a*c", "ac"));
  EXPECT_TRUE(matches("*b*b*", "abab"));
  EXPECT_TRUE(matches("*ab", "aab"));
  EXPECT_TRUE(matches("a**b", "ab"));
  EXPECT_FALSE(matches("", "a"));
  EXPECT_FALSE(matches("a", ""));
  EXPECT_FALSE(matches("a*c", "acb"));
  EXPECT_FALSE(matches("a*b*c", "abab"));
  EXPECT_FALSE(matches("a?c", "abc"));
  // No backtracking beyond the last star: this would take for ever otherwise.
  EXPECT_FALSE(MatchesPattern("*a*a*a*a*a*a*a*a*a*a*a*a*b", std::string(20000, 'a')));
}

TEST(Selection, OfNothingIsEverythingButTheScores) {
  const Selection all;
  EXPECT_TRUE(all.WantsPoint("layer_3_attn_q_rope"));
  EXPECT_TRUE(all.WantsPoint("mine"));
  EXPECT_FALSE(all.WantsPoint("layer_3_attn_scores"));
  EXPECT_FALSE(all.WantsPoint("layer_3_attn_probs"));
  EXPECT_TRUE(all.WantsPoint("attn_scores")) << "a name of the user's own";
  EXPECT_TRUE(all.WantsStep(1000));
  EXPECT_TRUE(all.WantsAllRows());
}

TEST(Selection, OfPointsMatchesWithAndWithoutTheLayer) {
  const Selection some = OfPoints("attn_*, logits ,layer_2_*,layer_1_mlp_up_proj");
  EXPECT_TRUE(some.WantsPoint("layer_3_attn_q_rope"));
  EXPECT_TRUE(some.WantsPoint("logits"));
  EXPECT_TRUE(some.WantsPoint("layer_2_mlp_up_proj"));
  EXPECT_TRUE(some.WantsPoint("layer_1_mlp_up_proj"));
  EXPECT_FALSE(some.WantsPoint("layer_3_mlp_up_proj"));
  EXPECT_FALSE(some.WantsPoint("input_embeddings"));
  EXPECT_FALSE(some.WantsPoint("layer_3_attn_scores")) << "a pattern with a star does not ask for it";
}

TEST(Selection, AsksForScoresByName) {
  EXPECT_TRUE(OfPoints("*,attn_scores").WantsPoint("layer_3_attn_scores"));
  EXPECT_TRUE(OfPoints("*,attn_scores").WantsPoint("logits"));
  EXPECT_FALSE(OfPoints("*,attn_scores").WantsPoint("layer_3_attn_probs"));
  EXPECT_TRUE(OfPoints("layer_3_attn_probs").WantsPoint("layer_3_attn_probs"));
  EXPECT_FALSE(OfPoints("layer_3_attn_probs").WantsPoint("layer_4_attn_probs"));
}

TEST(Selection, OfLayersLeavesPointsOutsideThemAlone) {
  const Selection some = OfPoints("", "0,2-4,27");
  for (const int layer : {0, 2, 3, 4, 27})
    EXPECT_TRUE(some.WantsPoint("layer_" + std::to_string(layer) + "_x")) << layer;
  for (const int layer : {1, 5, 20, 270})
    EXPECT_FALSE(some.WantsPoint("layer_" + std::to_string(layer) + "_x")) << layer;
  EXPECT_TRUE(some.WantsPoint("logits"));
  EXPECT_FALSE(OfPoints("attn_*", "1").WantsPoint("logits"));
}

TEST(Selection, OfSteps) {
  const Selection some("", "", "0, 5-7", "");
  EXPECT_TRUE(some.WantsStep(0));
  EXPECT_TRUE(some.WantsStep(6));
  EXPECT_FALSE(some.WantsStep(1));
  EXPECT_FALSE(some.WantsStep(8));
}

TEST(Selection, OfRowsByPositionOrFromTheEndOfEachSequence) {
  const std::vector<int32_t> positions = {0, 1, 2, 5, 6, 3, 0};
  const std::vector<int32_t> sequences = {0, 0, 0, 1, 1, 0, -1};
  EXPECT_THAT(Selection().SelectRows(positions, sequences), ElementsAre(0, 1, 2, 3, 4, 5, 6));
  EXPECT_THAT(OfRows("last:1").SelectRows(positions, sequences), ElementsAre(4, 5));
  EXPECT_THAT(OfRows("last:2").SelectRows(positions, sequences), ElementsAre(2, 3, 4, 5));
  EXPECT_THAT(OfRows("0,2-5").SelectRows(positions, sequences), ElementsAre(0, 2, 3, 5));
  EXPECT_THAT(OfRows("last:1,0").SelectRows(positions, sequences), ElementsAre(0, 4, 5));
  EXPECT_THAT(OfRows("100").SelectRows(positions, sequences), IsEmpty());
  EXPECT_TRUE(OfRows("last:2").WantsRow(9, 1));
  EXPECT_FALSE(OfRows("last:2").WantsRow(9, 2));
}

TEST(Selection, NamesTheBadString) {
  const auto error = [](const std::string& points, const std::string& layers, const std::string& steps,
                        const std::string& rows) {
    try {
      Selection(points, layers, steps, rows);
    } catch (const std::invalid_argument& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(error("", "", "", ""), "");
  EXPECT_EQ(error("", "3-1", "", ""),
            "selection of layers \"3-1\": expected numbers and ranges such as \"0,2-4\", found \"3-1\"");
  for (const char* bad :
       {",", "1,", ",1", "1,,2", " ", "a", "-1", "1-", "1-2-3", "+1", "1.5", "99999999999", "0x1", "1 2", "1;2"}) {
    EXPECT_THAT(error("", bad, "", ""), HasSubstr("selection of layers")) << bad;
    EXPECT_THAT(error("", "", bad, ""), HasSubstr("selection of steps")) << bad;
    EXPECT_THAT(error("", "", "", bad), HasSubstr("selection of rows")) << bad;
  }
  for (const char* bad : {"last", "last:", "last:0", "last:-1", "last:x", "LAST:1", "last:1-2"}) {
    EXPECT_THAT(error("", "", "", bad), HasSubstr("selection of rows")) << bad;
  }
  for (const char* bad : {",", "a,", ",a", "a, ,b", " "})
    EXPECT_THAT(error(bad, "", "", ""), HasSubstr("selection of points")) << bad;
}

}  // namespace
}  // namespace lockstep
