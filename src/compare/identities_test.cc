#include "compare/identities.h"

#include <gmock/gmock.h>

#include <cmath>

#include "compare/fake_trace.h"

namespace lockstep {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr int kHeads = 2, kDim = 16, kWidth = kHeads * kDim, kTokens = 6;

enum class Pairing { kHalf, kInterleaved };

std::vector<float> Rounded(std::vector<float> values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * DTypeSize(dtype));
  NarrowFromFloat(dtype, values.data(), values.size(), bytes.data());
  WidenToFloat(dtype, bytes.data(), values.size(), values.data());
  return values;
}

// With both roundings of the reference: products and their sum.
std::vector<float> Rope(const std::vector<float>& x, Pairing pairs, DType dtype, int first = 0, float scale = 1,
                        int rotated = kDim) {
  std::vector<float> y = x;
  const auto round = [&](float value) { return Rounded({value}, dtype)[0]; };
  for (size_t head = 0; head < x.size() / kDim; ++head) {
    const int position = static_cast<int>(head) / kHeads + first;
    for (int i = 0; i < rotated / 2; ++i) {
      const double angle = position * std::pow(1e4, -2.0 * i / rotated);
      const float c = round(static_cast<float>(std::cos(angle)) * scale);
      const float s = round(static_cast<float>(std::sin(angle)) * scale);
      const size_t a = head * kDim + static_cast<size_t>(pairs == Pairing::kHalf ? i : 2 * i);
      const size_t b = pairs == Pairing::kHalf ? a + static_cast<size_t>(rotated) / 2 : a + 1;
      y[a] = round(round(x[a] * c) - round(x[b] * s));
      y[b] = round(round(x[b] * c) + round(x[a] * s));
    }
  }
  return y;
}

// Both sides are the same trace, so that nothing but identities can fail.
std::vector<Failure> FailuresOf(const FakeTrace& trace) { return CompareFakes(trace, trace).failures; }

struct RopeTrace {
  explicit RopeTrace(const std::vector<float>& before, const std::vector<float>& after, DType dtype,
                     std::vector<int64_t> row = {kHeads, kDim}) {
    trace.meta.has_arithmetic = true;
    trace.meta.arithmetic = {dtype, dtype, DType::kF32, dtype};
    trace.meta.config["head_dim"] = std::to_string(kDim);
    trace.AddStep(Ids(Range(0, kTokens)), Range(0, kTokens));
    row.insert(row.begin(), kTokens);
    trace.Add("layer_3_attn_q_normed", row, before, {}, dtype);
    trace.Add("layer_3_attn_q_rope", row, after, {}, dtype);
  }
  FakeTrace trace;
};

std::vector<float> Normed(DType dtype) {
  std::vector<float> values = Rows(5, Range(0, kTokens), kWidth);
  for (float& value : values) value *= 3.7f;
  return Rounded(values, dtype);
}

constexpr DType kAll[] = {DType::kF32, DType::kF16, DType::kBF16};

TEST(IdentitiesTest, CorrectRopeInEitherPairing) {
  for (const DType dtype : kAll) {
    for (const Pairing pairs : {Pairing::kHalf, Pairing::kInterleaved}) {
      const std::vector<float> x = Normed(dtype);
      EXPECT_THAT(FailuresOf(RopeTrace(x, Rope(x, pairs, dtype), dtype).trace), IsEmpty()) << DTypeName(dtype);
      EXPECT_THAT(FailuresOf(RopeTrace(x, Rope(x, pairs, dtype), dtype, {kWidth}).trace), IsEmpty());
    }
  }
}

TEST(IdentitiesTest, AScaledRopeChangesNormsByAConstant) {
  const std::vector<float> x = Normed(DType::kBF16);
  RopeTrace rope(x, Rope(x, Pairing::kHalf, DType::kBF16, 0, 1.139f), DType::kBF16);
  const std::vector<Failure> failures = FailuresOf(rope.trace);
  ASSERT_THAT(failures, SizeIs(2));  // either side's
  EXPECT_EQ(failures[0].kind, FailureKind::kIdentity);
  EXPECT_EQ(failures[0].point, "layer_3_attn_q_rope");
  EXPECT_EQ(failures[0].side, Side::kReference);
  EXPECT_EQ(failures[1].side, Side::kCandidate);
  EXPECT_THAT(failures[0].text, HasSubstr("expected RoPE to keep the norm of each pair of channels, found "));
  EXPECT_THAT(failures[0].text, HasSubstr("(1.1"));
  EXPECT_THAT(failures[0].text, HasSubstr("at sequence 0, position 0, head 0, channels 0 and 8"));
  // Where the config says so, it is right.
  rope.trace.meta.config["rope_scaling"] = R"({"factor":4,"rope_type":"yarn"})";
  EXPECT_THAT(FailuresOf(rope.trace), IsEmpty());
  rope.trace.meta.config["rope_scaling"] = "null";
  rope.trace.meta.config["rope_parameters"] = R"({"rope_theta":1e+06,"rope_type":"default"})";
  EXPECT_THAT(FailuresOf(rope.trace), SizeIs(2));
}

TEST(IdentitiesTest, TablesThatAreTooCoarse) {
  const std::vector<float> x = Normed(DType::kF32);
  const std::vector<float> coarse = Rope(x, Pairing::kHalf, DType::kBF16);
  EXPECT_THAT(FailuresOf(RopeTrace(x, coarse, DType::kF32).trace), SizeIs(2));
}

TEST(IdentitiesTest, ARotatedFirstPosition) {
  const std::vector<float> x = Normed(DType::kF16);
  const std::vector<Failure> failures =
      FailuresOf(RopeTrace(x, Rope(x, Pairing::kHalf, DType::kF16, 1), DType::kF16).trace);
  ASSERT_THAT(failures, SizeIs(2));
  EXPECT_THAT(failures[0].text, HasSubstr("expected RoPE to leave position 0 as it was, found "));
  EXPECT_THAT(failures[0].text, HasSubstr("at sequence 0, position 0, head 0, channel 0"));
}

TEST(IdentitiesTest, OneChangedPairIsFound) {
  for (const DType dtype : kAll) {
    const std::vector<float> x = Normed(dtype);
    std::vector<float> y = Rope(x, Pairing::kInterleaved, dtype);
    float& value = y[4 * kWidth + kDim + 6];
    value = 2 * std::abs(value) + 1;
    const std::vector<Failure> failures = FailuresOf(RopeTrace(x, y, dtype).trace);
    ASSERT_THAT(failures, SizeIs(2)) << DTypeName(dtype);
    EXPECT_EQ(failures[0].kind, FailureKind::kIdentity);
  }
}

TEST(IdentitiesTest, TheCacheMayBeCoarser) {
  const std::vector<float> x = Normed(DType::kF32);
  FakeTrace trace;
  trace.meta.has_arithmetic = true;
  trace.meta.arithmetic.cache = DType::kF16;
  trace.AddStep(Ids(Range(0, kTokens)), Range(0, kTokens));
  trace.Add("layer_0_attn_k_normed", {kTokens, kHeads, kDim}, x);
  const std::vector<float> y = Rounded(Rope(x, Pairing::kHalf, DType::kF32), DType::kF16);
  trace.Add("layer_0_attn_k_rope", {kTokens, kHeads, kDim}, y);
  EXPECT_THAT(FailuresOf(trace), IsEmpty());
}

// Two layers in two steps; `change` may change the input of layer 1 in the second.
template <typename Change>
FakeTrace LayersTrace(DType output, DType input, Change change) {
  FakeTrace trace;
  for (const auto& positions : {Range(0, 4), Range(4, 5)}) {
    trace.AddStep(Ids(positions), positions);
    const auto count = static_cast<int64_t>(positions.size());
    trace.Add("input_embeddings", {count, kWidth}, Rows(1, positions, kWidth), {}, output);
    trace.Add("layer_0_input_hidden_states", {count, kWidth}, Rounded(Rows(1, positions, kWidth), output), {}, input);
    trace.Add("layer_0_layer_output", {count, kWidth}, Rows(2, positions, kWidth), {}, output);
    std::vector<float> values = Rounded(Rows(2, positions, kWidth), output);
    if (positions[0] == 4) change(values);
    trace.Add("layer_1_input_hidden_states", {count, kWidth}, values, {}, input);
  }
  return trace;
}

TEST(IdentitiesTest, TheInputOfALayerIsTheOutputOfTheOneBefore) {
  for (const DType output : kAll) {
    for (const DType input : kAll) {
      EXPECT_THAT(FailuresOf(LayersTrace(output, input, [](auto&) {})), IsEmpty())
          << DTypeName(output) << DTypeName(input);
    }
  }
  const std::vector<Failure> failures = FailuresOf(
      LayersTrace(DType::kF32, DType::kF32, [](auto& values) { values[7] = std::nextafter(values[7], 9.0f); }));
  ASSERT_THAT(failures, SizeIs(2));
  EXPECT_EQ(failures[0].point, "layer_1_input_hidden_states");
  EXPECT_THAT(failures[0].text, HasSubstr("expected a copy of layer_0_layer_output, found "));
  EXPECT_THAT(failures[0].text, HasSubstr("at sequence 0, position 4, channel 7"));
  EXPECT_THAT(FailuresOf(LayersTrace(DType::kF32, DType::kBF16, [](auto& values) { values[7] *= 1.02f; })), SizeIs(2));
}

TEST(IdentitiesTest, ANegativeZeroAndNanAreCopies) {
  FakeTrace trace;
  trace.AddStep({1}, {0});
  trace.Add("input_embeddings", {1, 3}, {0.0f, std::nanf(""), 1});
  trace.Add("layer_0_input_hidden_states", {1, 3}, {-0.0f, std::nanf("1"), 1});
  EXPECT_THAT(FailuresOf(trace), IsEmpty());
}

TEST(IdentitiesTest, PrunedRowsPartialSumsAndUnwantedPointsAreLeftOut) {
  FakeTrace trace;
  trace.AddStep(Ids(Range(0, 3)), Range(0, 3));
  trace.Add("layer_0_layer_output", {1, 4}, {1, 2, 3, 4}, {2});
  trace.Add("layer_1_input_hidden_states", {2, 4}, {9, 9, 9, 9, 1, 2, 3, 4}, {1, 2});
  EXPECT_THAT(FailuresOf(trace), IsEmpty());
  trace.steps[0].tensors[1].rows = {2, 1};
  EXPECT_THAT(FailuresOf(trace), SizeIs(2));
  CompareOptions options;
  options.points = "layer_output";
  EXPECT_THAT(CompareFakes(trace, trace, options).failures, IsEmpty());
  trace.steps[0].tensors[0].partial = true;
  EXPECT_THAT(FailuresOf(trace), IsEmpty());
}

}  // namespace
}  // namespace lockstep
