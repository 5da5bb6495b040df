#include "diagnose/patterns.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "diagnose/test_fault.h"

namespace lockstep {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr int64_t kHeads = 6, kHeadDim = 48;
constexpr PointAt kNormed = {Point::kAttnQNormed, 1};
constexpr PointAt kRope = {Point::kAttnQRope, 1};
constexpr PointAt kDown = {Point::kMlpDownProj, 1};
constexpr PointAt kUp = {Point::kMlpIntermediate, 1};

std::mt19937& Random() {
  static std::mt19937 random(3);
  return random;
}
double Noise() { return std::normal_distribution<double>()(Random()); }

// Wrong by an amount of their own in every element, in the rows that `where` picks.
Mutation Wrong(std::function<bool(const TokenAt&)> where, double by = 0.1) {
  return OnHeads(kHeads, [=](const TokenAt& token, int64_t, double* head) {
    for (int64_t k = 0; k < kHeadDim && where(token); ++k) head[k] += by * Noise();
  });
}

std::string Ids(const Mutation& mutation, std::vector<FakeStep> steps = {Prompt(24)}, PointAt point = kNormed) {
  return FakeFault(point, std::move(steps), mutation).PatternIds();
}

TEST(PatternsTest, RightIsNotAffected) {
  FakeFault fault(kNormed, {Prompt(24)}, Wrong([](const TokenAt&) { return false; }));
  EXPECT_EQ(fault.errors().summary.verdict, OpVerdict::kClean);
}

TEST(PatternsTest, Positions) {
  EXPECT_EQ(Ids(Wrong([](const TokenAt& t) { return t.position > 0; })), "exact-at-position-0");
  EXPECT_EQ(Ids(Wrong([](const TokenAt& t) { return t.position >= 9; })), "from-position-on");
  // Not from there on, as one in four behind it is right.
  EXPECT_EQ(Ids(Wrong([](const TokenAt& t) { return t.position >= 9 && t.position % 4 != 2; })), "scattered");
}

TEST(PatternsTest, PositionsOfSeveralSequences) {
  const FakeStep batch = {{0, 1, 2, 0, 1, 2, 3}, {0, 0, 0, 1, 1, 1, 1}};
  EXPECT_EQ(Ids(Wrong([](const TokenAt& t) { return t.position > 0; }), {batch}), "exact-at-position-0");
  EXPECT_EQ(Ids(Wrong([](const TokenAt& t) { return t.token == 6 || t.token == 2; }), {batch}), "last-token-only");
  EXPECT_EQ(Ids(Wrong([](const TokenAt& t) { return t.sequence == 1; }), {batch}), "one-sequence");
}

TEST(PatternsTest, Growth) {
  const auto growing = [](double slope, double floor) {
    return OnHeads(kHeads, [=](const TokenAt& token, int64_t, double* head) {
      for (int64_t k = 0; k < kHeadDim; ++k) head[k] += 1e-3 * (floor + slope * token.position) * Noise();
    });
  };
  EXPECT_EQ(Ids(growing(1, 0)), "exact-at-position-0 grows-with-position");
  EXPECT_EQ(Ids(growing(1, 5)), "grows-with-position");
  EXPECT_EQ(Ids(growing(0, 5)), "noise everywhere");
}

TEST(PatternsTest, Ends) {
  EXPECT_EQ(Ids(Wrong([](const TokenAt& t) { return t.position == 23; })), "one-row last-token-only");
  EXPECT_EQ(Ids(Wrong([](const TokenAt& t) { return t.position == 0; })), "one-row first-token-only");
  EXPECT_EQ(Ids(Wrong([](const TokenAt& t) { return t.position == 8; })), "one-row");
}

TEST(PatternsTest, EveryNthRow) {
  FakeFault odd(kNormed, {Prompt(24)}, Wrong([](const TokenAt& t) { return t.token % 2 == 1; }));
  EXPECT_EQ(odd.PatternOf("every-nth-row"), "only odd rows of a step");
  FakeFault third(kNormed, {Prompt(24)}, Wrong([](const TokenAt& t) { return t.token % 3 == 2; }));
  EXPECT_EQ(third.PatternOf("every-nth-row"), "only every 3th of the rows of a step, from 2 on");
}

TEST(PatternsTest, Stages) {
  const std::vector<FakeStep> steps = {
      Prompt(8), {Range(8, 16)}, {{16}, {}, Phase::kDecode}, {{17}, {}, Phase::kDecode}};
  EXPECT_EQ(Ids(Wrong([](const TokenAt& t) { return t.step >= 2; }), steps), "decode-only");
  EXPECT_EQ(Ids(Wrong([](const TokenAt& t) { return t.step < 2; }), steps), "prefill-only");
  EXPECT_EQ(Ids(Wrong([](const TokenAt& t) { return t.step == 1; }), steps), "later-chunk-only");
  FakeFault after(kNormed, steps, Wrong([](const TokenAt& t) { return t.step >= 1; }));
  EXPECT_EQ(after.PatternOf("later-chunk-only"), "only after the first step of a sequence");
}

TEST(PatternsTest, HeadsAndChannels) {
  const auto where = [](std::function<bool(int64_t, int64_t)> in) {
    return OnHeads(kHeads, [=](const TokenAt&, int64_t head, double* values) {
      for (int64_t k = 0; k < kHeadDim; ++k) values[k] += in(head, k) ? 0.1 * (2 + Noise()) : 0;
    });
  };
  FakeFault heads(kNormed, {Prompt(9)}, where([](int64_t h, int64_t) { return h == 1 || h == 4; }));
  EXPECT_EQ(heads.PatternOf("some-heads"), "only heads 1, 4 of 6");
  FakeFault block(kNormed, {Prompt(9)}, where([](int64_t, int64_t k) { return k >= 32; }));
  EXPECT_EQ(block.PatternIds(), "channel-block");
  EXPECT_EQ(block.PatternOf("channel-block"), "only channels 32-47 of a head's 48");
  FakeFault even(kNormed, {Prompt(9)}, where([](int64_t, int64_t k) { return k % 2 == 0; }));
  EXPECT_EQ(even.PatternOf("some-channels"), "only even channels of a head's 48");
  FakeFault few(kNormed, {Prompt(9)}, where([](int64_t, int64_t k) { return k == 3 || k == 30; }));
  EXPECT_EQ(few.PatternOf("some-channels"), "only channels 3, 30 of a head's 48");
  FakeFault all(kNormed, {Prompt(9)}, where([](int64_t, int64_t) { return true; }));
  EXPECT_EQ(all.PatternOf("some-heads") + all.PatternOf("channel-block") + all.PatternOf("some-channels"), "");
}

TEST(PatternsTest, OneElement) {
  const auto wrong = [](int64_t elements) {
    return OnHeads(kHeads, [=](const TokenAt& token, int64_t head, double* values) {
      if (token.position == 5 && head == 2) std::fill_n(values + 7, elements, 100.0);
    });
  };
  FakeFault one(kNormed, {Prompt(9)}, wrong(1));
  EXPECT_EQ(one.PatternIds(), "one-row one-element");
  EXPECT_THAT(one.PatternOf("one-element"), HasSubstr("position 5, head 2, channel 7: 100 instead of"));
  EXPECT_THAT(Ids(wrong(2), {Prompt(9)}), Not(HasSubstr("one-element")));
}

TEST(PatternsTest, Ratio) {
  const auto scaled = [](double by, double spread) {
    return OnRows([=](const TokenAt&, double* row) {
      const double factor = by + spread * Noise();
      for (int64_t c = 0; c < kHeads * kHeadDim; ++c) row[c] *= factor;
    });
  };
  EXPECT_THAT(FakeFault(kNormed, {Prompt(9)}, scaled(1.005, 0)).PatternOf("constant-ratio"),
              HasSubstr("captured = 1.005 * expected"));
  EXPECT_THAT(FakeFault(kNormed, {Prompt(9)}, scaled(std::sqrt(48), 0)).PatternOf("constant-ratio"),
              HasSubstr("= sqrt(48) *"));
  FakeFault rows(kNormed, {Prompt(9)}, scaled(1, 0.1));
  EXPECT_EQ(rows.PatternIds(), "ratio-per-row");
}

// 0.5 % in bf16 is about the rounding of a value.
TEST(PatternsTest, FaintRatio) {
  FakeFault fault(kNormed, {Prompt(64)}, OnRows([](const TokenAt&, double* row) {
                    for (int64_t c = 0; c < kHeads * kHeadDim; ++c) row[c] *= 1.005;
                  }),
                  DType::kBF16);
  EXPECT_EQ(fault.errors().summary.verdict, OpVerdict::kFaulty);
  EXPECT_THAT(fault.PatternOf("constant-ratio"), HasSubstr("captured = 1.005 * expected"));
}

// A row of one wrong channel has a best factor, too, but that is no ratio.
TEST(PatternsTest, NoRatioOfRows) {
  FakeFault fault(kNormed, {Prompt(9)}, OnRows([](const TokenAt&, double* row) { row[7] += 0.1 * Noise(); }));
  EXPECT_THAT(fault.PatternIds(), Not(HasSubstr("ratio")));
}

// Growing with the position is no constant ratio, nor is a factor of each head's own.
TEST(PatternsTest, NoRatio) {
  EXPECT_THAT(Ids(OnHeads(kHeads,
                          [](const TokenAt&, int64_t head, double* values) {
                            for (int64_t k = 0; k < kHeadDim; ++k) values[k] *= 1 + 0.1 * static_cast<double>(head + 1);
                          })),
              Not(HasSubstr("ratio")));
}

TEST(PatternsTest, Offset) {
  std::vector<double> bias(192);
  for (double& value : bias) value = 0.3 * Noise();
  const auto added = [&](double change) {
    return OnRows([=](const TokenAt&, double* row) {
      for (size_t c = 0; c < bias.size(); ++c) row[c] += bias[c] * (1 + change * Noise());
    });
  };
  EXPECT_EQ(Ids(added(0), {Prompt(9)}, kDown), "constant-offset");
  EXPECT_THAT(Ids(added(0.1), {Prompt(9)}, kDown), Not(HasSubstr("offset")));
}

TEST(PatternsTest, Saturated) {
  const auto clamped = [](double low, double high) {
    return OnRows([=](const TokenAt&, double* row) {
      for (int64_t c = 0; c < kHeads * kHeadDim; ++c) row[c] = std::clamp(row[c], low, high);
    });
  };
  EXPECT_EQ(FakeFault(kNormed, {Prompt(9)}, clamped(-1.5, 1.5)).PatternOf("saturated"), "saturated at ±1.5");
  EXPECT_EQ(FakeFault(kNormed, {Prompt(9)}, clamped(-INFINITY, 1.5)).PatternOf("saturated"),
            "saturated at 1.5 from above");
}

TEST(PatternsTest, ZerosAndGarbage) {
  const auto constant = [](double value) {
    return OnHeads(kHeads, [=](const TokenAt& token, int64_t, double* values) {
      if (token.position >= 4) std::fill_n(values, kHeadDim, value);
    });
  };
  EXPECT_EQ(FakeFault(kNormed, {Prompt(9)}, constant(0)).PatternOf("zeros"), "zero where it is wrong");
  EXPECT_THAT(FakeFault(kNormed, {Prompt(9)}, constant(-4.316e8)).PatternOf("zeros"), HasSubstr("-4.32e+08 where"));
}

TEST(PatternsTest, NonFinite) {
  FakeFault nan(kNormed, {Prompt(9)}, OnHeads(kHeads, [](const TokenAt& token, int64_t, double* values) {
                  if (token.position == 3) values[5] = NAN;
                }));
  EXPECT_THAT(nan.PatternIds(), HasSubstr("non-finite one-row"));
}

TEST(PatternsTest, CoarseGrid) {
  const auto rounded = [](double step) {
    return OnRows([=](const TokenAt&, double* row) {
      for (int64_t c = 0; c < kHeads * kHeadDim; ++c) {
        row[c] = step > 0 ? std::nearbyint(row[c] / step) * step : ToFloat(FromFloat<BF16>(static_cast<float>(row[c])));
      }
    });
  };
  EXPECT_THAT(FakeFault(kNormed, {Prompt(9)}, rounded(0)).PatternOf("coarse-grid"),
              HasSubstr("8 significant bits (bf16)"));
  EXPECT_THAT(FakeFault(kNormed, {Prompt(9)}, rounded(0.0371)).PatternOf("coarse-grid"),
              HasSubstr("multiples of 0.0371"));
  EXPECT_THAT(FakeFault(kNormed, {Prompt(9)}, rounded(0.0371), DType::kBF16).PatternOf("coarse-grid"),
              HasSubstr("multiples of 0.0371"));
  EXPECT_THAT(Ids(Wrong([](const TokenAt&) { return true; })), Not(HasSubstr("grid")));
}

TEST(PatternsTest, ChannelMaps) {
  const auto mapped = [](std::vector<int32_t> from) {
    return OnRows([=](const TokenAt&, double* row) {
      const std::vector<double> right(row, row + from.size());
      for (size_t c = 0; c < from.size(); ++c) row[c] = right[static_cast<size_t>(from[c])];
    });
  };
  for (const DType storage : {DType::kF32, DType::kBF16}) {
    for (const ChannelMap& known : KnownMaps(kHeads * kHeadDim, kHeads)) {
      FakeFault fault(kNormed, {Prompt(2)}, mapped(known.from), storage);
      const std::optional<ChannelMap> found = MatchChannels(Evidence(fault.errors(), fault.sample()));
      ASSERT_TRUE(found) << known.text;
      EXPECT_EQ(found->from, known.from) << known.text << " taken for " << found->text;
    }
  }
}

TEST(PatternsTest, AnyMapIsFoundAndTold) {
  const auto text = [](const std::vector<int32_t>& from) {
    FakeFault fault(kDown, {Prompt(5)}, OnRows([=](const TokenAt&, double* row) {
                      const std::vector<double> right(row, row + from.size());
                      for (size_t c = 0; c < from.size(); ++c) row[c] = right[static_cast<size_t>(from[c])];
                    }),
                    DType::kBF16);
    return fault.PatternOf("permuted");
  };
  std::vector<int32_t> map(192);
  std::iota(map.begin(), map.end(), 0);
  std::rotate(map.begin(), map.begin() + 5, map.end());
  EXPECT_EQ(text(map), "channels rotated by 5 of 192");
  std::iota(map.begin(), map.end(), 0);
  std::shuffle(map.begin(), map.end(), std::mt19937(5));
  EXPECT_THAT(text(map), HasSubstr("channels permuted: "));
  std::iota(map.begin(), map.end(), 0);
  std::copy_n(map.begin() + 64, 32, map.begin());
  EXPECT_THAT(text(map), HasSubstr("channels copied to others: 64->0, "));
}

TEST(PatternsTest, RandomErrorIsNoMap) {
  for (const DType storage : {DType::kF32, DType::kBF16}) {
    FakeFault small(kNormed, {Prompt(1)}, Wrong([](const TokenAt&) { return true; }), storage);
    EXPECT_EQ(small.PatternOf("permuted"), "");
    FakeFault large(kNormed, {Prompt(1)}, Wrong([](const TokenAt&) { return true; }, 10), storage);
    EXPECT_EQ(large.PatternOf("permuted"), "");
  }
}

// In a wide row of 16 bits each value has several sources that fit.
TEST(PatternsTest, OtherValuesOfTheSameSizesAreNoMap) {
  FakeFault fault({Point::kLogits, -1}, {Prompt(1)}, OnRows([](const TokenAt&, double* row) {
                    double squares = 0;
                    for (int64_t c = 0; c < 2048; ++c) squares += row[c] * row[c];
                    for (int64_t c = 0; c < 2048; ++c) row[c] = 0.7 * std::sqrt(squares / 2048) * Noise();
                  }),
                  DType::kBF16);
  EXPECT_EQ(fault.PatternOf("permuted"), "");
}

TEST(PatternsTest, HeadsCopied) {
  FakeFault fault(kNormed, {Prompt(5)}, [](const std::vector<TokenAt>&, Block* result) {
    for (int64_t r = 0; r < result->rows; ++r) {
      std::copy_n(result->Row(r), kHeadDim, result->Row(r) + 3 * kHeadDim);
    }
  });
  EXPECT_EQ(fault.PatternOf("permuted"), "heads copied to others: 0->3");
  EXPECT_EQ(fault.PatternOf("some-heads"), "only head 3 of 6");
}

TEST(LayerPatternsTest, InWords) {
  const auto text = [](const std::vector<int>& faulty, int layers) {
    const std::vector<Pattern> patterns = LayerPatterns(faulty, layers);
    return patterns.empty() ? "" : patterns.front().id + ": " + patterns.front().text;
  };
  EXPECT_EQ(text({0, 1, 2, 3}, 4), "all-layers: in all layers");
  EXPECT_EQ(text({1, 2, 3}, 4), "some-layers: only layers from 1 on");
  EXPECT_EQ(text({0, 1}, 4), "some-layers: only layers up to 1");
  EXPECT_EQ(text({5}, 28), "some-layers: only layer 5");
  EXPECT_EQ(text({0, 2, 4, 6}, 8), "some-layers: only even layers");
  EXPECT_EQ(text({1, 3, 5, 7}, 8), "some-layers: only odd layers");
  EXPECT_EQ(text({2, 5, 8, 11}, 12), "some-layers: only every 3th layer, from 2 on");
  EXPECT_EQ(text({3, 4, 9}, 12), "some-layers: only layers 3, 4, 9");
  EXPECT_EQ(text({}, 12), "");
}

}  // namespace
}  // namespace lockstep
