#include "replay/arithmetic_check.h"

#include <gmock/gmock.h>

#include "compare/fake_trace.h"
#include "lockstep/points.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kTokens = 4, kLayers = 3, kWidth = 256;

// A trace of F32 tensors whose values lie on `grid`, or on that of their point.
class Tensors {
 public:
  explicit Tensors(DType grid) : grid_(grid) {
    trace.meta.has_arithmetic = true;
    trace.AddStep(Ids(Range(0, kTokens)), Range(0, kTokens));
  }

  Tensors& On(Point point, DType grid) {
    grids_[point] = grid;
    return *this;
  }
  Tensors& Declare(DType storage, DType operands, DType cache) {
    trace.meta.arithmetic = {storage, operands, DType::kF32, cache};
    return *this;
  }

  ArithmeticCheck Check() {
    int seed = 0;
    for (const std::string& name : AllPointNames(kLayers)) {
      const Point point = ParsePointName(name)->spec->id;
      const DType grid = grids_.contains(point) ? grids_.at(point) : grid_;
      std::vector<float> values = Rows(++seed, Range(0, kTokens), kWidth);
      for (float& value : values) value *= 1.37f;  // no fraction of a decimal
      std::vector<std::byte> bytes(values.size() * DTypeSize(grid));
      NarrowFromFloat(grid, values.data(), values.size(), bytes.data());
      WidenToFloat(grid, bytes.data(), values.size(), values.data());
      trace.Add(name, {kTokens, kWidth}, values);
    }
    return CheckArithmetic(GroupRuns({trace.View()}));
  }

  FakeTrace trace;

 private:
  DType grid_;
  std::map<Point, DType> grids_;
};

constexpr DType kAll[] = {DType::kF32, DType::kF16, DType::kBF16};

TEST(ArithmeticCheckTest, WhatTheDataShowIsNoContradiction) {
  for (const DType dtype : kAll) {
    const ArithmeticCheck check = Tensors(dtype).Declare(dtype, dtype, dtype).Check();
    EXPECT_THAT(check.contradictions, IsEmpty()) << DTypeName(dtype);
    EXPECT_FALSE(check.inferred);
  }
}

TEST(ArithmeticCheckTest, F32WithBf16WeightsCopiesThem) {
  Tensors tensors(DType::kF32);
  tensors.On(Point::kInputEmbeddings, DType::kBF16).Declare(DType::kF32, DType::kF32, DType::kF32);
  EXPECT_THAT(tensors.Check().contradictions, IsEmpty());
}

TEST(ArithmeticCheckTest, OperandsAndCacheMayBeCoarser) {
  Tensors tensors(DType::kF32);
  for (const Point point : {Point::kAttnNormOutput, Point::kMlpNormOutput, Point::kAttnQRope, Point::kAttnContext,
                            Point::kMlpIntermediate, Point::kFinalNormOutput}) {
    tensors.On(point, DType::kBF16);
  }
  tensors.On(Point::kAttnKRope, DType::kF16).On(Point::kAttnVProjRaw, DType::kF16);
  EXPECT_THAT(tensors.Declare(DType::kF32, DType::kBF16, DType::kF16).Check().contradictions, IsEmpty());
}

TEST(ArithmeticCheckTest, CoarserThanDeclared) {
  Tensors tensors(DType::kF32);
  tensors.On(Point::kAttnQRope, DType::kBF16).On(Point::kAttnKRope, DType::kBF16);
  tensors.On(Point::kLogits, DType::kF16).Declare(DType::kF32, DType::kF32, DType::kF32);
  EXPECT_THAT(tensors.Check().contradictions,
              ElementsAre("declared F32, but the values of attn_q_rope, attn_k_rope lie on the BF16 grid in all layers",
                          "declared F32, but the values of logits lie on the F16 grid"));
}

TEST(ArithmeticCheckTest, AnOperandsDtypeIsNotThatOfTheResult) {
  Tensors tensors(DType::kF32);
  tensors.On(Point::kAttnOProj, DType::kBF16).Declare(DType::kF32, DType::kBF16, DType::kF32);
  EXPECT_THAT(tensors.Check().contradictions,
              ElementsAre("declared F32, but the values of attn_o_proj lie on the BF16 grid in all layers"));
}

TEST(ArithmeticCheckTest, FinerThanDeclared) {
  const ArithmeticCheck check = Tensors(DType::kBF16)
                                    .On(Point::kLayerOutput, DType::kF32)
                                    .Declare(DType::kBF16, DType::kBF16, DType::kBF16)
                                    .Check();
  EXPECT_THAT(check.contradictions,
              ElementsAre("declared BF16, but the values of layer_output need F32 in all layers"));
}

TEST(ArithmeticCheckTest, PartialSumsSayNothing) {
  Tensors tensors(DType::kBF16);
  tensors.Declare(DType::kBF16, DType::kBF16, DType::kBF16);
  tensors.trace.Add("layer_7_attn_o_proj", {kTokens, kWidth}, Rows(99, Range(0, kTokens), kWidth)).partial = true;
  EXPECT_THAT(tensors.Check().contradictions, IsEmpty());
  tensors.trace.steps[0].tensors[0].partial = false;
  EXPECT_THAT(CheckArithmetic(GroupRuns({tensors.trace.View()})).contradictions,
              ElementsAre("declared BF16, but the values of attn_o_proj need F32 in layer 7"));
}

TEST(ArithmeticCheckTest, OverridesCount) {
  Tensors tensors(DType::kBF16);
  tensors.On(Point::kLayerOutput, DType::kF32).Declare(DType::kBF16, DType::kBF16, DType::kBF16);
  tensors.trace.meta.overrides = {{"layer_1_layer_output", DType::kF32, {}, {}, {}}};
  EXPECT_THAT(tensors.Check().contradictions,
              ElementsAre("declared BF16, but the values of layer_output need F32 in layers 0, 2"));
}

TEST(ArithmeticCheckTest, AQuantisedCacheIsToldUnlessDeclared) {
  for (const bool declared : {false, true}) {
    Tensors tensors(DType::kF32);
    tensors.Declare(DType::kF32, DType::kF32, declared ? DType::kF8E4M3 : DType::kF32);
    std::vector<float> values = Rows(77, Range(0, kTokens), kWidth);
    for (float& value : values) value = std::round(value * 127) * 0.013f;
    tensors.trace.Add("layer_7_attn_k_rope", {kTokens, kWidth}, values);
    const ArithmeticCheck check = tensors.Check();
    if (declared) {
      EXPECT_THAT(check.contradictions, IsEmpty());
    } else {
      EXPECT_THAT(check.contradictions, ElementsAre(HasSubstr("the values of attn_k_rope are multiples of one step")));
    }
  }
}

TEST(ArithmeticCheckTest, InfersWhatIsNotDeclared) {
  for (const DType dtype : kAll) {
    Tensors tensors(dtype);
    tensors.trace.meta.has_arithmetic = false;
    const ArithmeticCheck check = tensors.Check();
    ASSERT_TRUE(check.inferred);
    EXPECT_EQ(check.inferred->arithmetic, (Arithmetic{dtype, dtype, DType::kF32, dtype}));
    EXPECT_THAT(check.inferred->overrides, IsEmpty());
    EXPECT_THAT(check.contradictions, IsEmpty());
  }
}

TEST(ArithmeticCheckTest, InfersAMixture) {
  Tensors tensors(DType::kBF16);
  tensors.On(Point::kLayerOutput, DType::kF32).On(Point::kAttnKRope, DType::kF16);
  tensors.trace.meta.has_arithmetic = false;
  const InferredArithmetic inferred = tensors.Check().inferred.value();
  EXPECT_EQ(inferred.arithmetic, (Arithmetic{DType::kBF16, DType::kBF16, DType::kF32, DType::kF16}));
  ASSERT_EQ(inferred.overrides.size(), 2u);
  EXPECT_EQ(inferred.overrides[0].pattern, "layer_*_attn_k_rope");
  EXPECT_EQ(inferred.overrides[1].storage, DType::kF32);
  EXPECT_EQ(inferred.text,
            "no arithmetic is declared; by their values, storage is BF16, operands BF16, cache F16; attn_k_rope F16; "
            "layer_output F32");
}

TEST(ArithmeticCheckTest, LittleDataShowNothing) {
  FakeTrace trace;
  trace.AddStep({1}, {0});
  trace.Add("layer_0_layer_output", {1, 8}, {1, 2, 3, 4, 5, 6, 7, 8});
  EXPECT_FALSE(CheckArithmetic(GroupRuns({trace.View()})).inferred);
  trace.meta.has_arithmetic = true;
  EXPECT_THAT(CheckArithmetic(GroupRuns({trace.View()})).contradictions, IsEmpty());
}

}  // namespace
}  // namespace lockstep
