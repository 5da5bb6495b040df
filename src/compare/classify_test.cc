#include "compare/classify.h"

#include <gtest/gtest.h>

#include <cmath>

namespace lockstep {
namespace {

PointResult WithMaxAbs(double max_abs, double token_cosine = 0, double head_cosine = 0) {
  PointResult point;
  point.name = "layer_3_attn_o_proj";
  point.layer = 3;
  point.max_abs = max_abs;
  point.min_token_cosine = token_cosine;
  point.min_head_cosine = head_cosine;
  return point;
}

TEST(ClassifyTest, Borders) {
  EXPECT_EQ(Classify(WithMaxAbs(std::nextafter(1e-4, 0))), DiffClass::kExcellent);
  EXPECT_EQ(Classify(WithMaxAbs(1e-4)), DiffClass::kGood);
  EXPECT_EQ(Classify(WithMaxAbs(std::nextafter(1e-3, 0))), DiffClass::kGood);
  EXPECT_EQ(Classify(WithMaxAbs(1e-3)), DiffClass::kAcceptable);
  EXPECT_EQ(Classify(WithMaxAbs(std::nextafter(1e-2, 0))), DiffClass::kAcceptable);
  EXPECT_EQ(Classify(WithMaxAbs(1e-2)), DiffClass::kSignificant);
  EXPECT_EQ(Classify(WithMaxAbs(1, 0.9991, 0.9991)), DiffClass::kAcceptable);
  EXPECT_EQ(Classify(WithMaxAbs(1, 0.999, 0.9991)), DiffClass::kSignificant);
  EXPECT_EQ(Classify(WithMaxAbs(1, 0.9991, 0.999)), DiffClass::kSignificant);
}

TEST(ClassifyTest, MismatchesAreSignificant) {
  PointResult point = WithMaxAbs(0, 1, 1);
  point.mask_mismatches = 1;
  EXPECT_EQ(Classify(point), DiffClass::kSignificant);
  point.mask_mismatches = 0;
  point.non_finite_mismatches = 1;
  EXPECT_EQ(Classify(point), DiffClass::kSignificant);
}

TEST(JudgeTest, ClassesJudgeF32) {
  PointResult point = WithMaxAbs(1);
  Judge(UnitRoundoff(DType::kF32), 28, &point);
  EXPECT_EQ(point.reasons.size(), 1u);
}

// A tensor scaled by 3 has a cosine of 1, which is ACCEPTABLE; and what is tiny has a tiny difference, which is
// EXCELLENT.
TEST(JudgeTest, TheBoundJudgesF32Too) {
  for (PointResult point : {WithMaxAbs(1, 1, 1), WithMaxAbs(1e-6, 1, 1)}) {
    point.worst_token_relative_l2 = 2;
    Judge(UnitRoundoff(DType::kF32), 28, &point);
    EXPECT_NE(point.diff_class, DiffClass::kSignificant);
    EXPECT_EQ(point.reasons.size(), 1u);
    point.worst_token_relative_l2 = 1e-5;
    Judge(UnitRoundoff(DType::kF32), 28, &point);
    EXPECT_TRUE(point.reasons.empty());
  }
}

TEST(JudgeTest, TheBoundJudges16Bit) {
  PointResult point = WithMaxAbs(1);
  point.worst_token_relative_l2 = kBoundFactor * 0x1p-8 * std::sqrt(7.0);
  Judge(UnitRoundoff(DType::kBF16), 28, &point);
  EXPECT_EQ(point.diff_class, DiffClass::kSignificant);
  EXPECT_DOUBLE_EQ(*point.bound, point.worst_token_relative_l2);
  EXPECT_TRUE(point.reasons.empty());
  point.worst_token_relative_l2 *= 1.000001;
  Judge(UnitRoundoff(DType::kBF16), 28, &point);
  EXPECT_EQ(point.reasons.size(), 1u);
}

TEST(JudgeTest, PointsBehindTheLayersAreAsDeepAsTheModel) {
  PointResult point = WithMaxAbs(0);
  point.name = "logits";
  point.layer = -1;
  Judge(UnitRoundoff(DType::kF16), 28, &point);
  EXPECT_DOUBLE_EQ(*point.bound, kBoundFactor * 0x1p-11 * std::sqrt(57.0));
}

TEST(JudgeTest, DeclaredOperandsCount) {
  TraceMeta meta;
  meta.arithmetic.operands = DType::kBF16;
  EXPECT_EQ(DeclaredRoundoff(meta), 0);
  meta.has_arithmetic = true;
  EXPECT_EQ(DeclaredRoundoff(meta), 0x1p-8);
}

}  // namespace
}  // namespace lockstep
