#include "lockstep/points.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <random>
#include <set>

#include "base/json.h"
#include "lockstep/capture.hpp"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(Points, StandInTheOrderOfTheirIds) {
  for (size_t i = 0; i < Points().size(); ++i) {
    EXPECT_EQ(static_cast<size_t>(Points()[i].id), i);
    EXPECT_EQ(&SpecOf(Points()[i].id), &Points()[i]);
    EXPECT_EQ(Points()[i].axes.front(), Axis::kToken);
  }
  EXPECT_EQ(Points().back().id, Point::kLogits);
}

TEST(Points, TakeTheirInputsFromPointsBeforeThem) {
  std::set<std::string_view> known = {"input_ids", "positions", "layer_output"};  // of the layer before
  for (const PointSpec& spec : Points()) {
    for (const std::string_view input : spec.inputs) EXPECT_TRUE(known.count(input)) << spec.name << " reads " << input;
    known.insert(spec.name);
  }
}

TEST(Points, NamesGoThereAndBack) {
  for (const PointSpec& spec : Points()) {
    for (const int layer : spec.per_layer ? std::vector<int>{0, 7, 12, 999999} : std::vector<int>{-1}) {
      const std::string name = PointName(spec.id, layer);
      const std::optional<PointRef> ref = ParsePointName(name);
      ASSERT_TRUE(ref) << name;
      EXPECT_EQ(ref->spec, &spec);
      EXPECT_EQ(ref->layer, layer);
      EXPECT_EQ(LayerOf(name), layer);
      EXPECT_EQ(WithoutLayer(name), spec.name);
    }
  }
}

TEST(Points, KnowWhatIsNone) {
  for (const char* name :
       {"", "layer_", "layer_3", "layer_3_", "layer__attn_q_rope", "layer_x_attn_q_rope", "layer_-1_attn_q_rope",
        "layer_03_attn_q_rope", "layer_1234567_attn_q_rope", "attn_q_rope", "layer_0_logits", "Logits", "logits "}) {
    EXPECT_FALSE(ParsePointName(name)) << name;
  }
  EXPECT_EQ(LayerOf("layer_3_mine"), 3);
  EXPECT_EQ(WithoutLayer("layer_3_mine"), "mine");
  EXPECT_EQ(LayerOf("layer_03_mine"), -1);
  EXPECT_EQ(WithoutLayer("layer_03_mine"), "layer_03_mine");
}

// The capture header stands alone and so has its own.
TEST(Points, AgreeWithTheCaptureHeaderOnLayers) {
  for (const char* name : {"", "layer_", "layer_3", "layer_3_", "layer_3_a", "layer_12_a_b", "layer_012_a", "layer_0_a",
                           "layer_999999_a", "layer_1000000_a", "layer__a", "layer_1x_a", "player_1_a", "logits"}) {
    EXPECT_EQ(detail::SplitLayerName(name).first, LayerOf(name)) << name;
    EXPECT_EQ(detail::SplitLayerName(name).second, WithoutLayer(name)) << name;
  }
}

TEST(Points, SortInExecutionOrder) {
  std::vector<std::string> names = AllPointNames(12, /*on_request=*/true);
  names.push_back("zz_own");
  const std::vector<std::string> expected = names;
  std::shuffle(names.begin(), names.end(), std::mt19937(1));
  EXPECT_EQ(InExecutionOrder(names), expected);
  EXPECT_THAT(
      InExecutionOrder(
          {"b", "layer_10_own", "logits", "layer_2_own", "a", "layer_2_layer_output", "layer_10_attn_q_rope"}),
      ElementsAre("layer_2_layer_output", "layer_2_own", "layer_10_attn_q_rope", "layer_10_own", "logits", "a", "b"));
}

TEST(Points, ListAModel) {
  const std::vector<std::string> names = AllPointNames(2);
  EXPECT_EQ(names.size(), 3u + 2 * 18);
  EXPECT_EQ(names.front(), "input_embeddings");
  EXPECT_EQ(names[1], "layer_0_input_hidden_states");
  EXPECT_EQ(names.back(), "logits");
  EXPECT_EQ(AllPointNames(2, true).size(), names.size() + 4);
  EXPECT_EQ(AllPointNames(0).size(), 3u);
}

TEST(Points, OnRequestAreThoseThatASelectionLeavesOut) {
  for (const PointSpec& spec : Points()) {
    EXPECT_EQ(Selection().WantsPoint(PointName(spec.id, spec.per_layer ? 5 : -1)), !spec.on_request) << spec.name;
  }
}

TEST(Points, AreData) {
  const Json json = ParseJson(PointsAsJson(), "points");
  ASSERT_EQ(json.size(), Points().size());
  EXPECT_EQ(json[8]["name"], "attn_q_rope");
  EXPECT_EQ(json[8]["axes"][2], "head_dim");
  EXPECT_THAT(PointsAsMarkdown(), HasSubstr("| `layer_N_attn_q_rope` | token, q_head, head_dim | rope |"));
}

}  // namespace
}  // namespace lockstep
