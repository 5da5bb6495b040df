#include "compare/growth.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace lockstep {
namespace {

PointResult Point(int layer, const std::string& point, double relative_l2) {
  PointResult result;
  result.layer = layer;
  result.point = point;
  result.name = "layer_" + std::to_string(layer) + "_" + point;
  result.relative_l2 = relative_l2;
  return result;
}

TEST(GrowthTest, OfTheLayersThatDiffer) {
  const auto growth = GrowthOf({Point(0, "layer_output", 0), Point(1, "attn_q_rope", 7), Point(1, "layer_output", 1e-6),
                                Point(2, "layer_output", 9e-6), Point(5, "layer_output", 16e-6),
                                Point(6, "layer_output", std::numeric_limits<double>::infinity())});
  ASSERT_TRUE(growth);
  EXPECT_EQ(growth->first.layer, 1);
  EXPECT_EQ(growth->middle.layer, 2);
  EXPECT_EQ(growth->last.layer, 5);
  EXPECT_EQ(growth->middle.relative_l2, 9e-6);
  EXPECT_NEAR(growth->per_layer, 2, 1e-12);
}

TEST(GrowthTest, NoneWithoutTwoLayers) {
  EXPECT_FALSE(GrowthOf({}));
  EXPECT_FALSE(GrowthOf({Point(0, "layer_output", 0), Point(1, "layer_output", 1e-6), Point(2, "attn_q_rope", 1)}));
}

}  // namespace
}  // namespace lockstep
