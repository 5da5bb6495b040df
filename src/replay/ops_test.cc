// Values against plain loops, variances against what random rounding does to the result.
#include "replay/ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "replay/noise.h"

namespace lockstep {
namespace {

constexpr Arithmetic kF32 = {DType::kF32, DType::kF32, DType::kF32, DType::kF32};
constexpr Arithmetic kF64 = {DType::kF64, DType::kF64, DType::kF64, DType::kF64};

Block Random(int64_t rows, int64_t width, unsigned seed, double scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0, scale);
  Block out;
  out.Resize(rows, width);
  for (double& value : out.value) value = normal(random);
  return out;
}

OpCall LinearCall(int64_t rows, int64_t columns, unsigned seed) {
  auto weight = std::make_shared<Block>(Random(rows, columns, seed, 0.3));
  OpCall call;
  call.op = Op::kLinear;
  call.matrix = std::make_shared<Matrix>(Matrix{rows, columns, [weight](int64_t begin, int64_t count, double* out) {
                                                  std::copy_n(weight->Row(begin), count * weight->width, out);
                                                }});
  return call;
}

std::vector<TokenAt> TokensAt(const std::vector<int32_t>& positions) {
  std::vector<TokenAt> out;
  for (size_t i = 0; i < positions.size(); ++i) out.push_back({0, 0, static_cast<int32_t>(i), 0, positions[i], 1});
  return out;
}

TEST(LinearTest, IsTheProduct) {
  const Block x = Random(5, 70, 1);
  OpCall call = LinearCall(130, 70, 2);
  call.bias.assign(130, 0.25);
  const Block y = Linear(x, call, kF32);
  std::vector<double> w(130 * 70);
  call.matrix->read(0, 130, w.data());
  for (int64_t r = 0; r < 5; ++r) {
    for (int64_t j = 0; j < 130; ++j) {
      double sum = 0.25, squares = 0;
      for (int64_t k = 0; k < 70; ++k) {
        const double term = x.Row(r)[k] * w[j * 70 + k];
        sum += static_cast<float>(x.Row(r)[k]) * w[j * 70 + k];
        squares += term * term;
      }
      EXPECT_NEAR(y.Row(r)[j], sum, 1e-12);
      EXPECT_NEAR(y.Variance(r)[j], Grid(DType::kF32).Rounding(sum) + 0x1p-48 * 70 / 4 * squares,
                  1e-5 * squares * 0x1p-40);
    }
  }
}

TEST(LinearTest, RoundsItsOperandsAsDeclared) {
  const Block x = Random(2, 8, 3);
  Arithmetic mixed = kF32;
  mixed.operands = DType::kBF16;
  Block rounded = x;
  for (double& value : rounded.value) value = Grid(DType::kBF16).Round(value);
  const OpCall call = LinearCall(4, 8, 4);
  EXPECT_EQ(Linear(x, call, mixed).value, Linear(rounded, call, kF64).value);
}

TEST(LinearTest, LargeInputsDoNotHideTheirNoise) {
  Block x = Random(1, 16, 5);
  for (double& value : x.value) value *= 1e30;
  const OpCall call = LinearCall(3, 16, 6);
  const Block large = Linear(x, call, kF64), usual = Linear(Random(1, 16, 5), call, kF64);
  EXPECT_NEAR(std::sqrt(large.variance[1] / usual.variance[1]) / 1e30, 1, 1e-4);
}

TEST(RmsNormTest, IsTheFormula) {
  const Block x = Random(3, 12, 7);
  OpCall call;
  call.op = Op::kRmsNorm;
  call.norm = {.group = 6, .count = 6, .eps = 1e-3, .weight = {1, 2, 3, 4, 5, 6}};
  const Block y = RmsNorm(x, call, kF64);
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t g = 0; g < 12; g += 6) {
      double squares = 0;
      for (int64_t i = 0; i < 6; ++i) squares += std::pow(x.Row(r)[g + i], 2);
      for (int64_t i = 0; i < 6; ++i) {
        EXPECT_NEAR(y.Row(r)[g + i], (i + 1.0) * x.Row(r)[g + i] / std::sqrt(squares / 6 + 1e-3), 1e-14);
      }
    }
  }
}

TEST(RopeTest, TurnsPairs) {
  const Block x = Random(2, 8, 8);  // two heads of four
  OpCall call;
  call.op = Op::kRope;
  call.head_dim = 4;
  call.rope.frequencies = RopeFrequencies(100, 4);
  EXPECT_NEAR(call.rope.frequencies[1], 0.1, 1e-15);
  const std::vector<TokenAt> tokens = TokensAt({0, 7});
  for (const bool interleaved : {false, true}) {
    call.rope.interleaved = interleaved;
    const Block y = Rope(x, tokens, call, kF64);
    EXPECT_EQ(std::vector<double>(y.Row(0), y.Row(0) + 8), std::vector<double>(x.Row(0), x.Row(0) + 8));
    for (int64_t h = 0; h < 8; h += 4) {
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t a = h + (interleaved ? 2 * i : i), b = h + (interleaved ? 2 * i + 1 : i + 2);
        const double angle = 7 * (i == 0 ? 1 : 0.1);
        EXPECT_NEAR(y.Row(1)[a], x.Row(1)[a] * std::cos(angle) - x.Row(1)[b] * std::sin(angle), 1e-14);
        EXPECT_NEAR(y.Row(1)[b], x.Row(1)[b] * std::cos(angle) + x.Row(1)[a] * std::sin(angle), 1e-14);
      }
    }
  }
}

TEST(RopeTest, SkippedOrPartialItLeavesTheRestAlone) {
  const Block x = Random(1, 4, 9);
  OpCall call;
  call.head_dim = 4;
  call.rope.frequencies = {1};  // turns elements 0 and 1 only
  const Block y = Rope(x, TokensAt({3}), call, kF64);
  EXPECT_NE(y.value[0], x.value[0]);
  EXPECT_EQ(y.value[2], x.value[2]);
  EXPECT_EQ(y.value[3], x.value[3]);
  call.rope.times = 0;
  EXPECT_EQ(Rope(x, TokensAt({3}), call, kF64).value, x.value);
}

OpCall AttentionCall(int64_t heads, int64_t kv_heads, int64_t d) {
  OpCall call;
  call.op = Op::kAttention;
  call.heads = heads, call.head_dim = d;
  call.attention.scale = 1 / std::sqrt(static_cast<double>(d));
  for (int64_t h = 0; h < heads; ++h) call.attention.kv_head.push_back(static_cast<int>(h * kv_heads / heads));
  return call;
}

// More rows than a block, more keys than a segment.
TEST(AttentionTest, IsSoftmaxOverWhatIsSeen) {
  constexpr int64_t kTokens = 150, kHeads = 4, kKvHeads = 2, kDim = 6;
  const OpCall call = AttentionCall(kHeads, kKvHeads, kDim);
  const Block q = Random(kTokens, kHeads * kDim, 10, 2), k = Random(kTokens, kKvHeads * kDim, 11),
              v = Random(kTokens, kKvHeads * kDim, 12);
  std::vector<KeyRange> seen;
  for (int32_t r = 0; r < kTokens; ++r) seen.push_back({r % 5, r + 1});
  const Block y = Attention(q, k, v, seen, call, kF64);
  for (int64_t r = 0; r < kTokens; ++r) {
    if (seen[r].begin >= seen[r].end) continue;
    for (int64_t h = 0; h < kHeads; ++h) {
      std::vector<double> weights(kTokens, 0.0), out(kDim, 0.0);
      double sum = 0;
      for (int64_t j = seen[r].begin; j < seen[r].end; ++j) {
        double dot = 0;
        for (int64_t c = 0; c < kDim; ++c) dot += q.Row(r)[h * kDim + c] * k.Row(j)[h / 2 * kDim + c];
        sum += weights[j] = std::exp(dot / std::sqrt(6.0));
      }
      for (int64_t j = 0; j < kTokens; ++j) {
        for (int64_t c = 0; c < kDim; ++c) out[c] += weights[j] / sum * v.Row(j)[h / 2 * kDim + c];
      }
      for (int64_t c = 0; c < kDim; ++c) EXPECT_NEAR(y.Row(r)[h * kDim + c], out[c], 1e-13);
    }
  }
}

// Two blocks of rows; key 70 was written with the others, key 149 by a later step.
TEST(AttentionTest, WhatIsNotFiniteSpoilsTheRowsThatSeeItAndLeavesTheOthersInDoubt) {
  constexpr int64_t kTokens = 149, kKeys = 150, kDim = 4;
  const OpCall call = AttentionCall(2, 1, kDim);
  const Block q = Random(kTokens, 2 * kDim, 10), k = Random(kKeys, kDim, 11);
  const Block right = Random(kKeys, kDim, 12);
  Block v = right;
  v.Row(70)[1] = NAN, v.Row(70)[2] = INFINITY, v.Row(149)[0] = NAN;
  std::vector<KeyRange> seen;
  for (int32_t r = 0; r < kTokens; ++r) seen.push_back({r > 100 ? 71 : 0, r + 1, kTokens});
  const Block y = Attention(q, k, v, seen, call, kF64), expected = Attention(q, k, right, seen, call, kF64);
  for (int64_t r = 0; r < kTokens; ++r) {
    for (int64_t c = 0; c < 2 * kDim; ++c) {
      const bool bad = c % kDim == 1 || c % kDim == 2, sees = r >= 70 && r <= 100;
      EXPECT_EQ(y.IsDoubtful(r, c), bad && !sees);
      if (bad && sees) {
        EXPECT_FALSE(std::isfinite(y.Row(r)[c]));
      } else {
        EXPECT_NEAR(y.Row(r)[c], expected.Row(r)[c], 1e-14);
      }
      EXPECT_TRUE(std::isfinite(y.Variance(r)[c]));
    }
  }
}

TEST(ScoresTest, AreProductsWhereSeen) {
  const OpCall call = AttentionCall(2, 1, 3);
  const Block q = Random(1, 6, 13), k = Random(4, 3, 14);
  const Block y = Scores(q, k, {{1, 3}}, 4, call, kF64);
  for (int64_t h = 0; h < 2; ++h) {
    for (int64_t j = 0; j < 4; ++j) {
      double dot = 0;
      for (int64_t c = 0; c < 3; ++c) dot += q.Row(0)[h * 3 + c] * k.Row(j)[c];
      if (j >= 1 && j < 3) {
        EXPECT_NEAR(y.Row(0)[h * 4 + j], dot / std::sqrt(3.0), 1e-14);
      } else {
        EXPECT_EQ(y.Row(0)[h * 4 + j], -INFINITY);
      }
    }
  }
}

TEST(SoftmaxTest, IgnoresWhatIsMasked) {
  const std::vector<double> scores = {1, -INFINITY, 2};
  std::vector<double> out(3), variance(3);
  SoftmaxRow(scores.data(), 3, kF64, out.data(), variance.data());
  EXPECT_NEAR(out[0], 1 / (1 + std::exp(1.0)), 1e-15);
  EXPECT_EQ(out[1], 0);
  EXPECT_NEAR(out[0] + out[2], 1, 1e-15);
}

TEST(SwiGluTest, IsTheFormula) {
  const Block gate = Random(1, 5, 15, 3), up = Random(1, 5, 16);
  OpCall call;
  const Block y = SwiGlu(gate, up, call, kF64);
  for (int64_t c = 0; c < 5; ++c) {
    EXPECT_NEAR(y.value[c], gate.value[c] / (1 + std::exp(-gate.value[c])) * up.value[c], 1e-14);
  }
  call.swiglu.swapped = true;
  EXPECT_NEAR(SwiGlu(gate, up, call, kF64).value[0], up.value[0] / (1 + std::exp(-up.value[0])) * gate.value[0], 1e-14);
}

// F32's e^90 is infinite, and x / (1 + inf) is 0.
TEST(SwiGluTest, ForgivesZeroWhereTheExponentialOverflows) {
  Block gate = Random(1, 2, 15), up = gate;
  gate.value = {-90, -80}, up.value = {1e30, 1e30};
  const Block y = SwiGlu(gate, up, OpCall{}, kF32);
  EXPECT_LT(std::abs(y.value[0]), 2 * std::sqrt(y.variance[0]));
  EXPECT_GT(std::abs(y.value[1]), 1e4 * std::sqrt(y.variance[1]));
}

TEST(EmbeddingTest, CopiesRowsAndForgivesNothing) {
  const OpCall call = LinearCall(9, 4, 17);
  std::vector<TokenAt> tokens = TokensAt({0, 1});
  tokens[1].input_id = 8;
  const Block y = Embedding(tokens, call, kF32);
  std::vector<double> w(9 * 4);
  call.matrix->read(0, 9, w.data());
  for (int64_t c = 0; c < 4; ++c) {
    EXPECT_EQ(y.Row(1)[c], w[8 * 4 + c]);
    EXPECT_LT(20 * std::sqrt(y.Variance(1)[c]), Grid(DType::kF32).Ulp(y.Row(1)[c]));
  }
}

// ---- carried variance: inputs are shaken by their variance, and the result must spread as was said

using Run = std::function<Block(const std::vector<Block>&)>;

void SpreadsAsSaid(std::vector<Block> inputs, const Run& run) {
  constexpr int kTrials = 3000;
  std::mt19937 random(99);
  std::normal_distribution<double> normal;
  for (Block& input : inputs) {
    for (const double value : input.value) input.variance.push_back(std::pow(1e-4 * (0.5 + std::abs(value)), 2));
  }
  const Block said = run(inputs);
  std::vector<Block> exact = inputs;
  for (Block& input : exact) input.variance.clear();
  const Block base = run(exact);
  std::vector<double> squares(base.value.size(), 0.0);
  for (int i = 0; i < kTrials; ++i) {
    std::vector<Block> shaken = exact;
    for (size_t j = 0; j < inputs.size(); ++j) {
      for (size_t c = 0; c < inputs[j].value.size(); ++c) {
        shaken[j].value[c] += std::sqrt(inputs[j].variance[c]) * normal(random);
      }
    }
    const Block result = run(shaken);
    for (size_t c = 0; c < squares.size(); ++c) squares[c] += std::pow(result.value[c] - base.value[c], 2);
  }
  for (size_t c = 0; c < squares.size(); ++c) {
    EXPECT_NEAR(std::sqrt(squares[c] / kTrials / said.variance[c]), 1, 0.08) << c;
  }
}

TEST(CarriedVarianceTest, Linear) {
  const OpCall call = LinearCall(3, 10, 20);
  SpreadsAsSaid({Random(2, 10, 21)}, [&](const auto& in) { return Linear(in[0], call, kF64); });
}

TEST(CarriedVarianceTest, RmsNorm) {
  OpCall call;
  call.norm = {.group = 4, .count = 4, .eps = 1e-6, .weight = {1, 2, 3, 4}};
  SpreadsAsSaid({Random(1, 8, 22)}, [&](const auto& in) { return RmsNorm(in[0], call, kF64); });
}

TEST(CarriedVarianceTest, Rope) {
  OpCall call;
  call.head_dim = 4;
  call.rope.frequencies = RopeFrequencies(100, 4);
  SpreadsAsSaid({Random(1, 8, 23)}, [&](const auto& in) { return Rope(in[0], TokensAt({5}), call, kF64); });
}

TEST(CarriedVarianceTest, SwiGlu) {
  for (const bool swapped : {false, true}) {
    OpCall call;
    call.swiglu.swapped = swapped;
    SpreadsAsSaid({Random(1, 6, 24), Random(1, 6, 25)},
                  [&](const auto& in) { return SwiGlu(in[0], in[1], call, kF64); });
  }
}

TEST(CarriedVarianceTest, Add) {
  OpCall call;
  call.factors = {1, 2};
  SpreadsAsSaid({Random(1, 6, 26), Random(1, 6, 27)}, [&](const auto& in) { return Add({in[0], in[1]}, call, kF64); });
}

// A query's errors are common to all its scores, which are taken as independent; so keys and values alone.
TEST(CarriedVarianceTest, Attention) {
  const OpCall call = AttentionCall(2, 1, 4);
  const Block q = Random(1, 8, 28);
  SpreadsAsSaid({Random(7, 4, 29), Random(7, 4, 30)},
                [&](const auto& in) { return Attention(q, in[0], in[1], {{0, 7}}, call, kF64); });
}

}  // namespace
}  // namespace lockstep
