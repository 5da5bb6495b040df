#include "compare/completeness.h"

#include <gmock/gmock.h>

#include "compare/fake_trace.h"

namespace lockstep {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr int kWidth = 8;

// Three decode steps of a model of three layers, o_proj in each.
FakeTrace Complete(int steps = 3) {
  FakeTrace trace;
  trace.meta.config["num_hidden_layers"] = "3";
  for (int position = 0; position < steps; ++position) {
    trace.AddStep(Ids({position}), {position});
    for (int layer = 0; layer < 3; ++layer) {
      const std::string name = "layer_" + std::to_string(layer) + "_attn_o_proj";
      trace.Add(name, {1, kWidth}, Rows(layer + 1, {position}, kWidth));
      if (position == 0) trace.meta.points.push_back(name);
    }
  }
  return trace;
}

// Puts the values of another tensor into a step's tensor of a layer.
void Overwrite(FakeTrace& trace, size_t step, size_t layer, const std::vector<float>& values) {
  std::memcpy(const_cast<std::byte*>(trace.steps[step].tensors[layer].data), values.data(),
              values.size() * sizeof(float));
}

const Failure* Find(const CompareResult& result, FailureKind kind) {
  for (const Failure& failure : result.failures) {
    if (failure.kind == kind) return &failure;
  }
  return nullptr;
}

TEST(CompletenessTest, NothingMissing) {
  const FakeTrace reference = Complete(), candidate = Complete();
  const CompareResult result = CompareFakes(reference, candidate);
  EXPECT_THAT(result.failures, IsEmpty());
  EXPECT_EQ(result.ExitCode(), 0);
}

TEST(CompletenessTest, ABrokenPromise) {
  const FakeTrace reference = Complete();
  FakeTrace candidate = Complete();
  candidate.steps[1].tensors.erase(candidate.steps[1].tensors.begin() + 2);
  const CompareResult result = CompareFakes(reference, candidate);
  const Failure* failure = Find(result, FailureKind::kMissing);
  ASSERT_NE(failure, nullptr);
  EXPECT_EQ(failure->point, "layer_2_attn_o_proj");
  EXPECT_EQ(failure->side, Side::kCandidate);
  EXPECT_THAT(failure->text, HasSubstr("step 1"));
  EXPECT_EQ(result.ExitCode(), 1);

  // What was not asked for is not owed.
  candidate.meta.select_steps = "0,2";
  EXPECT_THAT(CompareFakes(reference, candidate).failures, IsEmpty());
  candidate.meta.select_steps = "";
  candidate.meta.select_layers = "0-1";
  EXPECT_THAT(CompareFakes(reference, candidate).failures, IsEmpty());
  candidate.meta.select_layers = "";
  candidate.meta.select_rows = "0";
  EXPECT_THAT(CompareFakes(reference, candidate).failures, IsEmpty());
  candidate.meta.select_rows = "";
  EXPECT_THAT(CompareFakes(reference, candidate, {.layers = "0,1"}).failures, IsEmpty());
}

TEST(CompletenessTest, OneSidedPointsAreListed) {
  FakeTrace reference = Complete();
  const FakeTrace candidate = Complete();
  reference.Add("layer_1_mlp_up_proj", {1, kWidth}, Rows(5, {2}, kWidth));
  const CompareResult result = CompareFakes(reference, candidate);
  EXPECT_EQ(result.ExitCode(), 0);
  ASSERT_THAT(result.only_reference, SizeIs(1));
  EXPECT_EQ(result.only_reference[0].why, "not promised");
}

TEST(CompletenessTest, TraceErrorsAndDuplicates) {
  const FakeTrace reference = Complete();
  FakeTrace candidate = Complete();
  candidate.meta.errors = {"disk full"};
  candidate.steps[2].duplicates = {"layer_0_attn_o_proj"};
  const CompareResult result = CompareFakes(reference, candidate);
  ASSERT_THAT(result.failures, SizeIs(2));
  EXPECT_EQ(result.failures[0].kind, FailureKind::kTraceError);
  EXPECT_THAT(result.failures[0].text, HasSubstr("disk full"));
  EXPECT_EQ(result.failures[1].kind, FailureKind::kDuplicate);
  EXPECT_THAT(result.failures[1].text, HasSubstr("step 2"));
}

TEST(CompletenessTest, TheSameTokenTwiceInAStep) {
  FakeTrace reference = Complete(1), candidate;
  candidate.AddStep({100, 100}, {0, 0});
  candidate.Add("layer_0_attn_o_proj", {2, kWidth}, Rows(1, {0, 0}, kWidth));
  const CompareResult result = CompareFakes(reference, candidate);
  ASSERT_NE(Find(result, FailureKind::kDuplicate), nullptr);
  candidate.steps[0].input_ids[0] = 7;  // a speculation's other branch
  EXPECT_EQ(Find(CompareFakes(reference, candidate), FailureKind::kDuplicate), nullptr);
}

TEST(CompletenessTest, AllZero) {
  const FakeTrace reference = Complete();
  FakeTrace candidate = Complete();
  Overwrite(candidate, 1, 2, std::vector<float>(kWidth, 0.0f));
  const CompareResult one = CompareFakes(reference, candidate);
  ASSERT_NE(Find(one, FailureKind::kAllZero), nullptr);
  EXPECT_THAT(Find(one, FailureKind::kAllZero)->text, HasSubstr("step 1"));
  for (size_t step : {0, 2}) Overwrite(candidate, step, 2, std::vector<float>(kWidth, -0.0f));
  EXPECT_THAT(Find(CompareFakes(reference, candidate), FailureKind::kAllZero)->text, HasSubstr("all values are zero;"));
  EXPECT_THAT(CompareFakes(candidate, candidate).failures, IsEmpty());
}

TEST(CompletenessTest, SameAsAnotherLayer) {
  const FakeTrace reference = Complete();
  FakeTrace candidate = Complete();
  for (int step = 0; step < 3; ++step) Overwrite(candidate, step, 2, Rows(1, {step}, kWidth));
  const CompareResult result = CompareFakes(reference, candidate);
  const Failure* failure = Find(result, FailureKind::kSameAsLayer);
  ASSERT_NE(failure, nullptr);
  EXPECT_EQ(failure->point, "layer_2_attn_o_proj");
  EXPECT_THAT(failure->text, HasSubstr("layer_0_attn_o_proj"));
  EXPECT_THAT(CompareFakes(candidate, candidate).failures, IsEmpty());
  const CompareResult accused = CompareFakes(candidate, reference);
  EXPECT_EQ(Find(accused, FailureKind::kSameAsLayer)->side, Side::kReference);
}

TEST(CompletenessTest, SameAsAnotherStepWhateverTheOtherSidesChunks) {
  FakeTrace reference;
  reference.AddStep(Ids(Range(0, 3)), Range(0, 3));
  for (int layer = 0; layer < 3; ++layer) {
    reference.Add("layer_" + std::to_string(layer) + "_attn_o_proj", {3, kWidth}, Rows(layer + 1, Range(0, 3), kWidth));
  }
  FakeTrace candidate = Complete();
  EXPECT_THAT(CompareFakes(reference, candidate).failures, IsEmpty());
  Overwrite(candidate, 2, 1, Rows(2, {1}, kWidth));
  const CompareResult result = CompareFakes(reference, candidate);
  const Failure* failure = Find(result, FailureKind::kSameAsStep);
  ASSERT_NE(failure, nullptr);
  EXPECT_EQ(failure->point, "layer_1_attn_o_proj");
  EXPECT_THAT(failure->text, HasSubstr("step 2 to step 1"));
}

// Equal tokens give equal rows at the first points; the other side's may differ by rounding.
TEST(CompletenessTest, RoundingOnTheOtherSideMakesNothingStale) {
  FakeTrace reference = Complete(), candidate = Complete();
  Overwrite(candidate, 2, 1, Rows(2, {1}, kWidth));
  std::vector<float> nearly = Rows(2, {1}, kWidth);
  for (float& value : nearly) value *= 1.000001f;
  Overwrite(reference, 2, 1, nearly);
  EXPECT_THAT(CompareFakes(reference, candidate).failures, IsEmpty());
}

TEST(CompletenessTest, MissingRowsOfALayerThatOwesThem) {
  FakeTrace reference, candidate;
  for (FakeTrace* trace : {&reference, &candidate}) {
    trace->AddStep(Ids(Range(0, 4)), Range(0, 4));
    trace->meta.config["num_hidden_layers"] = "3";
    trace->meta.points = {"layer_0_attn_o_proj", "layer_2_attn_o_proj", "logits"};
  }
  for (const std::string& name : reference.meta.points) {
    reference.Add(name, {4, kWidth}, Rows(1, Range(0, 4), kWidth));
    candidate.Add(name, {1, kWidth}, Rows(1, {3}, kWidth), {3});
  }
  const CompareResult result = CompareFakes(reference, candidate);
  std::vector<std::string> points;
  for (const Failure& failure : result.failures) {
    if (failure.kind == FailureKind::kMissingRows) points.push_back(failure.point);
  }
  EXPECT_THAT(points, testing::ElementsAre("layer_0_attn_o_proj"));  // the last layer and the logits may be pruned
  candidate.meta.select_rows = "last:1";
  EXPECT_EQ(Find(CompareFakes(reference, candidate), FailureKind::kMissingRows), nullptr);
}

TEST(WeightsTest, DifferentWeightsAreNamed) {
  FakeTrace reference = Complete(), candidate = Complete();
  reference.meta.weights = {
      {"a", {DType::kF32, {2, 2}, "01"}}, {"b", {DType::kF32, {2}, "02"}}, {"c", {DType::kBF16, {2}, "03"}}};
  candidate.meta.weights = {
      {"a", {DType::kF32, {2, 2}, "01"}}, {"b", {DType::kF32, {2}, "ff"}}, {"c", {DType::kF32, {2}, "04"}}};
  const CompareResult result = CompareFakes(reference, candidate);
  ASSERT_THAT(result.weights, SizeIs(1));
  EXPECT_EQ(result.weights[0].name, "b");
  EXPECT_EQ(result.weights_compared, 2u);
  EXPECT_THAT(result.notes, testing::Contains(HasSubstr("different dtypes")));
  EXPECT_EQ(result.ExitCode(), 1);
}

TEST(StepsTextTest, Ranges) {
  EXPECT_EQ(StepsText({3}), "step 3");
  EXPECT_EQ(StepsText({0, 1, 2, 5}), "steps 0-2, 5");
  EXPECT_EQ(StepsText({0, 2, 4, 6, 8, 10, 12, 14, 16, 18}), "steps 0, 2, 4, 6, 8, 10, 12, 14 and 2 more");
}

}  // namespace
}  // namespace lockstep
