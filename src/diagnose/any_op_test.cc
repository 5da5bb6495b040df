#include "diagnose/any_op.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "diagnose/test_fault.h"

namespace lockstep {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr int64_t kHeads = 6, kHeadDim = 48;
constexpr PointAt kNormed = {Point::kAttnQNormed, 1};
constexpr PointAt kRope = {Point::kAttnQRope, 1};
constexpr PointAt kDown = {Point::kMlpDownProj, 1};
constexpr PointAt kSwiGlu = {Point::kMlpIntermediate, 1};

double Noise() {
  static std::mt19937 random(3);
  return std::normal_distribution<double>()(random);
}

// Calls change(token, channel, value).
Mutation OnValues(std::function<void(const TokenAt&, int64_t, double*)> change) {
  return [=](const std::vector<TokenAt>& tokens, Block* result) {
    for (int64_t r = 0; r < result->rows; ++r) {
      for (int64_t c = 0; c < result->width; ++c) change(tokens[static_cast<size_t>(r)], c, result->Row(r) + c);
    }
  };
}

std::string Causes(const Mutation& mutation, DType storage = DType::kF32, PointAt point = kNormed,
                   std::vector<FakeStep> steps = {Prompt(12)}) {
  return FakeFault(point, std::move(steps), mutation, storage).Causes();
}

TEST(AnyOpTest, Scaled) {
  const auto by = [](double factor) {
    return OnValues([=](const TokenAt&, int64_t, double* value) { *value *= factor; });
  };
  for (const PointAt point : {kNormed, kRope, kDown, kSwiGlu}) {
    EXPECT_EQ(Causes(by(2), DType::kF32, point), "values-scaled: scales its result by 2");
    EXPECT_EQ(Causes(by(1.005), DType::kBF16, point, {Prompt(64)}), "values-scaled: scales its result by 1.005");
  }
  EXPECT_EQ(Causes(by(-1)), "values-scaled: scales its result by -1");
  EXPECT_EQ(Causes(by(1 / std::sqrt(48))), "values-scaled: scales its result by 1/sqrt(48)");
  EXPECT_EQ(Causes(by(1.2345)), "values-scaled: scales its result by 1.2345");
}

TEST(AnyOpTest, NotScaledBy) {
  EXPECT_EQ(Causes(OnValues([](const TokenAt& t, int64_t, double* value) { *value *= 1 + 0.01 * t.position; })), "");
  EXPECT_EQ(Causes(OnValues([](const TokenAt&, int64_t c, double* value) { *value *= c % 2 ? 1.01 : 1.02; })), "");
  EXPECT_EQ(Causes(OnValues([](const TokenAt&, int64_t, double* value) { *value *= 1 + 0.01 * Noise(); })), "");
}

TEST(AnyOpTest, RandomErrorsHaveNoCause) {
  for (const DType storage : {DType::kF32, DType::kBF16}) {
    for (const double size : {1e-4, 0.1, 10.0}) {
      const auto wrong = OnValues([=](const TokenAt&, int64_t, double* value) { *value += size * Noise(); });
      for (const PointAt point : {kNormed, kRope, kDown, kSwiGlu}) {
        FakeFault fault(point, {Prompt(12)}, wrong, storage);
        const bool faulty = fault.errors().summary.verdict == OpVerdict::kFaulty;
        EXPECT_EQ(faulty ? fault.Causes() : "", "") << size;
      }
    }
  }
}

TEST(AnyOpTest, OneElementHasNoCause) {
  EXPECT_EQ(Causes(OnValues([](const TokenAt& t, int64_t c, double* value) {
              if (t.position == 5 && c == 7) *value = 0;
            })),
            "");
  EXPECT_EQ(Causes(OnValues([](const TokenAt& t, int64_t c, double* value) {
              if (t.position == 5 && c == 7) *value *= 1.5;
            })),
            "");
}

TEST(AnyOpTest, Permuted) {
  const Mutation interleaved = OnHeads(kHeads, [](const TokenAt&, int64_t, double* head) {
    const std::vector<double> right(head, head + kHeadDim);
    for (int64_t k = 0; k < kHeadDim / 2; ++k) {
      head[k] = right[static_cast<size_t>(2 * k)], head[k + kHeadDim / 2] = right[static_cast<size_t>(2 * k + 1)];
    }
  });
  EXPECT_EQ(
      Causes(interleaved),
      "values-permuted: gives its values in another order: each head's interleaved pairs taken apart into halves");
  EXPECT_EQ(
      Causes(interleaved, DType::kBF16, kRope, {Prompt(1)}),
      "values-permuted: gives its values in another order: each head's interleaved pairs taken apart into halves");
}

TEST(AnyOpTest, Zero) {
  EXPECT_EQ(Causes(OnValues([](const TokenAt&, int64_t, double* value) { *value = 0; })), "values-zero: gives zeros");
  EXPECT_EQ(Causes(OnValues([](const TokenAt&, int64_t c, double* value) { *value *= c < 48 || c >= 96; })),
            "values-zero: gives zeros in channels 48-95 of a row");
  // Nearly zero is not zero.
  EXPECT_EQ(Causes(OnValues([](const TokenAt&, int64_t, double* value) { *value *= 1e-3 * Noise(); })), "");
}

TEST(AnyOpTest, Clamped) {
  EXPECT_EQ(Causes(OnValues([](const TokenAt&, int64_t, double* value) { *value = std::clamp(*value, -1.5, 1.5); })),
            "values-clamped: clamps its result at ±1.5");
  // Pressed together, not cut off.
  EXPECT_EQ(Causes(OnValues([](const TokenAt&, int64_t, double* value) { *value = 1.5 * std::tanh(*value / 1.5); })),
            "values-clamped: caps its result softly: 1.5 tanh(y / 1.5)");
}

TEST(AnyOpTest, Overflow) {
  const auto large = [](bool saturate) {
    return [=](const std::vector<TokenAt>&, Block* result) {
      for (double& value : result->value) {
        if (std::abs(value) > 65504) value = std::copysign(saturate ? 65504.0 : INFINITY, value);
      }
    };
  };
  EXPECT_EQ(FakeFault({Point::kMlpIntermediate, 1}, {Prompt(12)}, large(false), DType::kF32, 300).Causes(),
            "values-overflow: overflows f16: what is beyond 65504 becomes infinite");
  EXPECT_EQ(FakeFault({Point::kMlpIntermediate, 1}, {Prompt(12)}, large(true), DType::kF32, 300).Causes(),
            "values-overflow: clamps its result at ±6.55e+04, the largest f16");
}

TEST(AnyOpTest, Rounded) {
  const auto bf16 = [](const TokenAt&, int64_t, double* value) {
    *value = ToFloat(FromFloat<BF16>(static_cast<float>(*value)));
  };
  EXPECT_EQ(Causes(OnValues(bf16)), "values-rounded: rounds its result to 8 significant bits (bf16)");
  EXPECT_EQ(Causes(OnValues(bf16), DType::kF32, kDown),
            "values-rounded: rounds its result to 8 significant bits (bf16)");
  EXPECT_EQ(Causes(OnValues([](const TokenAt&, int64_t, double* value) {
              *value = std::bit_cast<float>(std::bit_cast<uint32_t>(static_cast<float>(*value)) & 0xFFFF0000u);
            })),
            "values-rounded: rounds its result to 8 significant bits (bf16), truncated");
  EXPECT_EQ(Causes(OnValues(
                [](const TokenAt&, int64_t, double* value) { *value = std::nearbyint(*value / 0.0371) * 0.0371; })),
            "values-rounded: rounds its result to multiples of 0.0371");
  EXPECT_EQ(Causes(OnRows([](const TokenAt&, double* row) {
              double largest = 0;
              for (int64_t c = 0; c < kHeads * kHeadDim; ++c) largest = std::max(largest, std::abs(row[c]));
              for (int64_t c = 0; c < kHeads * kHeadDim; ++c)
                row[c] = std::nearbyint(row[c] / largest * 127) * largest / 127;
            })),
            "values-rounded: rounds its result to multiples of each row's largest value / 127");
  // fp8 has steps of 2^-9 near zero; in bf16, rounding moves values over the borders of the grid.
  for (const DType storage : {DType::kF32, DType::kBF16}) {
    const auto fp8 = [=](const TokenAt&, int64_t, double* value) {
      if (storage == DType::kBF16) *value = ToFloat(FromFloat<BF16>(static_cast<float>(*value)));
      int exponent = 0;
      std::frexp(*value, &exponent);
      const double step = std::max(std::ldexp(1.0, exponent - 4), 0x1p-9);
      *value = std::nearbyint(*value / step) * step;
    };
    EXPECT_EQ(Causes(OnValues(fp8), storage), "values-rounded: rounds its result to 4 significant bits (fp8 e4m3)");
  }
  // On the grid, but elsewhere: another mistake.
  EXPECT_EQ(
      Causes(OnValues([&](const TokenAt& t, int64_t c, double* value) { *value += 0.1 * Noise(), bf16(t, c, value); })),
      "");
}

// So near to the storage's grid that rounding explains any value on it.
TEST(AnyOpTest, AGridThatIsTooFineIsNoCause) {
  FakeFault fault(kNormed, {Prompt(12)}, OnValues([](const TokenAt&, int64_t, double* value) {
                    int exponent = 0;
                    std::frexp(*value, &exponent);
                    *value = std::trunc(*value / std::ldexp(1.0, exponent - 6)) * std::ldexp(1.0, exponent - 6);
                  }),
                  DType::kBF16);
  EXPECT_EQ(fault.Causes(), "");
  EXPECT_THAT(fault.PatternOf("coarse-grid"), HasSubstr("6 significant bits"));
}

TEST(AnyOpTest, StaleRows) {
  const auto copied = [](std::function<int64_t(int64_t)> from) {
    return [=](const std::vector<TokenAt>&, Block* result) {
      const Block right = *result;
      for (int64_t r = 0; r < result->rows; ++r) std::copy_n(right.Row(from(r)), right.width, result->Row(r));
    };
  };
  EXPECT_EQ(Causes(copied([](int64_t r) { return r == 0 ? 0 : (r - 1) / 2 * 2; })), "");  // no one rule
  EXPECT_EQ(Causes(copied([](int64_t) { return 0; })), "rows-stale: gives a copy of the row of token 0 of its step");
  EXPECT_EQ(Causes(copied([](int64_t r) { return r / 2 * 2; })),
            "rows-stale: gives a copy of the row 1 token before; "
            "values-permuted: gives results in other rows: each row holds the result of the token 1 before, around the "
            "step's ends");
  const std::vector<FakeStep> decode = {Prompt(4), {{4}, {}, Phase::kDecode}, {{5}, {}, Phase::kDecode}};
  EXPECT_EQ(Causes(copied([](int64_t r) { return std::min<int64_t>(r, 4); }), DType::kF32, kNormed, decode),
            "rows-stale: gives a copy of the row of the same token of the step before");
  FakeFault fault(kNormed, decode, copied([](int64_t r) { return std::min<int64_t>(r, 4); }));
  EXPECT_EQ(fault.PatternOf("equal-to-another-step"),
            "every affected row is, to the bit, the row of the same token of the step before");
}

// Near copies are none: their errors are in the last bit.
TEST(AnyOpTest, NotStale) {
  EXPECT_THAT(Causes([](const std::vector<TokenAt>&, Block* result) {
                for (int64_t r = 1; r < result->rows; ++r) {
                  for (int64_t c = 0; c < result->width; ++c)
                    result->Row(r)[c] = result->Row(0)[c] * (1 + 1e-5 * Noise());
                }
              }),
              Not(HasSubstr("stale")));
}

// A prompt of one repeated token: rows that are turned to no position are equal, and yet no copies.
TEST(AnyOpTest, EqualInputsGiveEqualRows) {
  const auto first = [](const std::vector<TokenAt>&, Block* result) {
    for (int64_t r = 1; r < result->rows; ++r) std::copy_n(result->Row(0), result->width, result->Row(r));
  };
  FakeStep repeated = Prompt(12);
  EXPECT_THAT(Causes(first, DType::kF32, kRope, {repeated}), HasSubstr("rows-stale"));
  repeated.same_inputs = true;
  EXPECT_THAT(Causes(first, DType::kF32, kRope, {repeated}), Not(HasSubstr("rows-stale")));
}

TEST(AnyOpTest, OtherTokens) {
  const Mutation reversed = [](const std::vector<TokenAt>&, Block* result) {
    const Block right = *result;
    for (int64_t r = 0; r < result->rows; ++r)
      std::copy_n(right.Row(result->rows - 1 - r), right.width, result->Row(r));
  };
  EXPECT_EQ(Causes(reversed),
            "values-permuted: gives results in other rows: each row holds the result of the token as far from the "
            "step's other end");
  FakeFault fault(kNormed, {Prompt(12)}, reversed);
  EXPECT_EQ(fault.PatternOf("permuted"), "each row holds the result of the token as far from the step's other end");
  const FakeStep batch = {{0, 1, 2, 0, 1, 2}, {0, 0, 0, 1, 1, 1}};
  EXPECT_EQ(Causes(
                [](const std::vector<TokenAt>&, Block* result) {
                  std::rotate(result->value.begin(), result->value.begin() + 3 * result->width, result->value.end());
                },
                DType::kBF16, kDown, {batch}),
            "values-permuted: gives results in other rows: each row holds the result of the token half a step away");
}

TEST(AnyOpTest, TokensInAnyOrder) {
  const auto swapped = [](double noise) {
    return [=](const std::vector<TokenAt>&, Block* result) {
      std::swap_ranges(result->Row(3), result->Row(4), result->Row(7));
      for (int64_t c = 0; c < result->width; ++c) result->Row(3)[c] += noise * Noise();
    };
  };
  EXPECT_EQ(Causes(swapped(0), DType::kBF16, kDown),
            "values-permuted: gives results in other rows: rows are in another order, by position: 7->3, 3->7");
  EXPECT_EQ(Causes(swapped(0.1), DType::kBF16, kDown), "");
}

TEST(AnyOpTest, HeadsAndTokensMixed) {
  EXPECT_EQ(Causes([](const std::vector<TokenAt>& tokens, Block* result) {
              const Block right = *result;
              const auto count = static_cast<int64_t>(tokens.size());
              for (int64_t i = 0; i < count * kHeads; ++i) {
                std::copy_n(right.Row(i % count) + i / count * kHeadDim, kHeadDim, result->value.data() + i * kHeadDim);
              }
            }),
            "values-permuted: gives results in other rows: [heads, tokens, head_dim] is read as [tokens, heads, "
            "head_dim]");
}

// E1: the rows that the blocks of T rows at each head's base do not touch keep what was there.
TEST(AnyOpTest, OverlappingNorm) {
  const auto unwritten = [](std::function<double(double)> rest) {
    return [=](const std::vector<TokenAt>& tokens, Block* result) {
      for (size_t r = 0; r < tokens.size(); ++r) {
        for (int64_t h = 0; h < kHeads; ++h) {
          if (tokens[r].token * kHeads + h < kHeads + 12 - 1 || tokens[r].step > 0) continue;
          double* head = result->Row(static_cast<int64_t>(r)) + h * kHeadDim;
          for (int64_t k = 0; k < kHeadDim; ++k) head[k] = rest(head[k]);
        }
      }
    };
  };
  const std::vector<FakeStep> steps = {Prompt(12), {{12}, {}, Phase::kDecode}};
  for (const auto& rest : {std::function<double(double)>([](double) { return 0; }), {[](double) { return Noise(); }}}) {
    FakeFault fault(kNormed, steps, unwritten(rest));
    EXPECT_THAT(fault.Causes(),
                HasSubstr("rows-overlapping: takes a head's rows for a contiguous block: only the first H + T - 1"));
    EXPECT_THAT(fault.PatternIds(), HasSubstr("first-rows-right"));
  }
}

// A border one cell away is another fault.
TEST(AnyOpTest, NotOverlapping) {
  EXPECT_EQ(Causes(OnHeads(kHeads,
                           [](const TokenAt& token, int64_t h, double* head) {
                             for (int64_t k = 0; k < kHeadDim && token.token * kHeads + h >= kHeads + 12; ++k)
                               head[k] = Noise();
                           })),
            "");
}

// The kernel itself, on rows [T * H] of head_dim: for each head, T rows from the head's base on.
TEST(AnyOpTest, OverlappingInPlace) {
  constexpr int64_t kTokens = 12;
  const std::vector<double> frequencies = RopeFrequencies(1e6, kHeadDim);
  const auto turn = [&](double* row, double position) {
    for (int64_t k = 0; k < kHeadDim / 2; ++k) {
      const double angle = position * frequencies[static_cast<size_t>(k)], a = row[k], b = row[k + kHeadDim / 2];
      row[k] = a * std::cos(angle) - b * std::sin(angle);
      row[k + kHeadDim / 2] = b * std::cos(angle) + a * std::sin(angle);
    }
  };
  const Mutation wrong = [&](const std::vector<TokenAt>& tokens, Block* result) {
    for (int64_t t = 0; t < kTokens; ++t) {  // back to what the kernel was given
      for (int64_t h = 0; h < kHeads; ++h)
        turn(result->Row(t) + h * kHeadDim, -tokens[static_cast<size_t>(t)].position);
    }
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t t = 0; t < kTokens; ++t) turn(result->value.data() + (h + t) * kHeadDim, static_cast<double>(t));
    }
  };
  EXPECT_THAT(Causes(wrong, DType::kF32, kRope),
              HasSubstr("rows-overlapping: takes a head's rows for a contiguous block, in place"));
  EXPECT_THAT(Causes(wrong, DType::kBF16, kRope),
              HasSubstr("rows-overlapping: takes a head's rows for a contiguous block, in place"));
}

TEST(AnyOpTest, SwiGluTwiceOrSkipped) {
  FakeFault skipped(kSwiGlu, {Prompt(6)}, nullptr, DType::kF32, 1,
                    [](const std::vector<Block>& inputs, Block* result) { *result = inputs[1]; });
  EXPECT_EQ(skipped.Causes(), "op-skipped: is skipped: gives its input mlp_up_proj");
  FakeFault twice(kSwiGlu, {Prompt(6)}, nullptr, DType::kF32, 1, [](const std::vector<Block>& inputs, Block* result) {
    for (size_t i = 0; i < result->value.size(); ++i) {
      const double gate = static_cast<float>(result->value[i]);
      result->value[i] = gate / (1 + std::exp(-gate)) * inputs[1].value[i];
    }
  });
  EXPECT_EQ(twice.Causes(), "op-twice: is applied twice, on its own result");
}

TEST(AnyOpTest, RightGivesNoCause) {
  for (const PointAt point : {kNormed, kRope, kDown, kSwiGlu}) {
    FakeFault fault(point, {Prompt(12)}, OnValues([](const TokenAt&, int64_t, double*) {}));
    ASSERT_EQ(fault.errors().summary.verdict, OpVerdict::kClean);
    std::vector<Hypothesis> proposed;
    ProposeForValues(Evidence(fault.errors(), fault.sample()), &proposed);
    EXPECT_TRUE(proposed.empty());
  }
}

}  // namespace
}  // namespace lockstep
