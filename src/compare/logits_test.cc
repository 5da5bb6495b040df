#include "compare/logits.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "base/parallel.h"
#include "compare/fake_trace.h"

namespace lockstep {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Rows of logits at positions 0, 1, …
using Table = std::vector<std::vector<float>>;

FakeTrace MakeTrace(const Table& rows, DType dtype = DType::kF32, const std::vector<float>& next = {}) {
  FakeTrace trace;
  trace.meta.arithmetic.storage = dtype;
  trace.meta.has_arithmetic = true;
  const auto positions = Range(0, static_cast<int32_t>(rows.size()));
  trace.AddStep(Ids(positions), positions);
  std::vector<float> values;
  for (const auto& row : rows) values.insert(values.end(), row.begin(), row.end());
  trace.Add("logits", {static_cast<int64_t>(rows.size()), static_cast<int64_t>(rows[0].size())}, values, {}, dtype);
  if (!next.empty()) {
    // 1-byte shifted like every fake tensor; ids as I32.
    TraceTensor& tensor = trace.Add("next_token", {static_cast<int64_t>(next.size())}, next);
    tensor.dtype = DType::kI32;
    for (size_t i = 0; i < next.size(); ++i) {
      const auto id = static_cast<int32_t>(next[i]);
      std::memcpy(const_cast<std::byte*>(tensor.data) + i * sizeof(id), &id, sizeof(id));
    }
  }
  return trace;
}

TokenComparison TokensOf(const FakeTrace& reference, const FakeTrace& candidate) {
  return CompareFakes(reference, candidate).tokens;
}

TokenComparison TokensOf(const Table& reference, const Table& candidate, DType dtype = DType::kF32) {
  return TokensOf(MakeTrace(reference, dtype), MakeTrace(candidate, dtype));
}

// The definition, in long double and without any trick.
double SlowKl(const std::vector<float>& r, const std::vector<float>& c) {
  const auto log_softmax = [](const std::vector<float>& x) {
    long double sum = 0;
    for (float value : x) sum += std::exp(static_cast<long double>(value));
    std::vector<long double> out;
    for (float value : x) out.push_back(value - std::log(sum));
    return out;
  };
  const auto p = log_softmax(r), q = log_softmax(c);
  long double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) kl += std::exp(p[i]) * (p[i] - q[i]);
  return static_cast<double>(kl);
}

// Logits like those of a model: wide, with noise of the given size.
std::vector<float> ModelRow(int seed, int width, float noise) {
  std::vector<float> row;
  for (int i = 0; i < width; ++i) row.push_back(8 * ValueAt(seed, 0, 0, i) + noise * ValueAt(seed + 1000, 1, 0, i));
  return row;
}

TEST(LogitsTest, FiguresOfOneRow) {
  const std::vector<float> r = {1, 7, 5, -2, 6, 3, 2, 0, 2.5f, 4, -1, -3};
  std::vector<float> c = r;
  c[1] -= 0.5f, c[3] += 0.25f;
  const TokenComparison tokens = TokensOf({r}, {c});
  ASSERT_EQ(tokens.rows.size(), 1u);
  const TokenRow& row = tokens.rows[0];
  EXPECT_THAT(row.reference.ids, ElementsAre(1, 4, 2, 9, 5));
  EXPECT_THAT(row.reference.values, ElementsAre(7, 6, 5, 4, 3));
  EXPECT_THAT(row.candidate.values, ElementsAre(6.5f, 6, 5, 4, 3));
  EXPECT_EQ(row.reference.margin, 1);
  EXPECT_EQ(row.candidate.margin, 0.5);
  EXPECT_EQ(row.reference.gap, 0);
  EXPECT_TRUE(row.same_top);
  EXPECT_EQ(row.common_top5, 5);
  EXPECT_EQ(row.common_top10, 10);
  EXPECT_DOUBLE_EQ(row.noise_rms, std::sqrt((0.25 + 0.0625) / 12));
  EXPECT_EQ(row.noise_max, 0.5);
  EXPECT_THAT(row.kl, DoubleNear(SlowKl(r, c), 1e-15));
  EXPECT_EQ(tokens.same_top, 1);
  EXPECT_EQ(tokens.max_kl_row, 0u);
  EXPECT_FALSE(tokens.first_different);
}

TEST(LogitsTest, KlIsTheDefinitionOverManyChunks) {
  constexpr int kVocabulary = 10007;  // no whole number of chunks
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const float noise : {0.0f, 1e-3f, 0.5f, 20.0f}) {
      Table r = {ModelRow(1, kVocabulary, 0), ModelRow(2, kVocabulary, 0)};
      Table c = {ModelRow(1, kVocabulary, noise), ModelRow(2, kVocabulary, noise)};
      const TokenComparison tokens = TokensOf(r, c, dtype);
      for (size_t i = 0; i < r.size(); ++i) {
        for (Table* table : {&r, &c}) {
          std::vector<std::byte> bytes((*table)[i].size() * DTypeSize(dtype));
          NarrowFromFloat(dtype, (*table)[i].data(), (*table)[i].size(), bytes.data());
          WidenToFloat(dtype, bytes.data(), (*table)[i].size(), (*table)[i].data());
        }
        const double expected = SlowKl(r[i], c[i]);
        EXPECT_THAT(tokens.rows[i].kl, DoubleNear(expected, 1e-13 + 1e-12 * expected)) << noise;
        EXPECT_TRUE(noise > 0 || tokens.rows[i].kl == 0) << tokens.rows[i].kl;
        const auto top = std::max_element(c[i].begin(), c[i].end());
        EXPECT_EQ(tokens.rows[i].candidate.ids[0], top - c[i].begin());
        EXPECT_EQ(tokens.rows[i].candidate.values[0], *top);
      }
    }
  }
}

TEST(LogitsTest, TheNumberOfThreadsChangesNothing) {
  Table r, c;
  for (int i = 0; i < 9; ++i) r.push_back(ModelRow(i, 5000, 0)), c.push_back(ModelRow(i, 5000, 0.1f));
  const int threads = MaxThreads();
  SetMaxThreads(1);
  const TokenComparison one = TokensOf(r, c);
  SetMaxThreads(4);
  const TokenComparison four = TokensOf(r, c);
  SetMaxThreads(threads);
  EXPECT_EQ(one.mean_kl, four.mean_kl);
  for (size_t i = 0; i < r.size(); ++i) {
    EXPECT_EQ(one.rows[i].position, static_cast<int>(i));
    EXPECT_EQ(one.rows[i].kl, four.rows[i].kl);
    EXPECT_EQ(one.rows[i].noise_rms, four.rows[i].noise_rms);
  }
}

TEST(LogitsTest, OfEqualLogitsTheFirstIsChosen) {
  const TokenComparison tokens = TokensOf({{1, 3, 3, 2}}, {{3, 1, 3, 3}});
  EXPECT_THAT(tokens.rows[0].reference.ids, ElementsAre(1, 2, 3, 0, -1));
  EXPECT_THAT(tokens.rows[0].candidate.ids, ElementsAre(0, 2, 3, 1, -1));
  EXPECT_EQ(tokens.rows[0].reference.margin, 0);
  const std::vector<float> falling = {0, -1, -2, -3, -4, -5, -6, -7, -8, -9, -10, -11};
  EXPECT_EQ(TokensOf({std::vector<float>(12, 1.0f)}, {falling}).rows[0].common_top10, 10);
}

TEST(LogitsTest, ALateChunkMayHoldTheLargestOfOneSideOnly) {
  std::vector<float> r(5000, 0.0f), c;
  for (int i = 0; i < 20; ++i) r[static_cast<size_t>(i)] = 20.0f - static_cast<float>(i);
  c = r;
  c[4500] = 30;
  for (const auto& [a, b] : {std::pair(r, c), std::pair(c, r)}) {
    const TokenRow row = TokensOf({a}, {b}).rows[0];
    EXPECT_EQ(row.reference.ids[0], a == c ? 4500 : 0);
    EXPECT_EQ(row.candidate.ids[0], b == c ? 4500 : 0);
    EXPECT_EQ(row.common_top5, 4);
    EXPECT_EQ(row.noise_max, 30);
  }
}

TEST(LogitsTest, NanAndInfinity) {
  const Table r = {{1, kNan, 2, 0},          {1, -kInf, 2, 0}, {1, 0, 2, 0},
                   {kNan, kNan, kNan, kNan}, {1, kInf, 2, 0},  {1, 2, 3, 0}};
  const Table c = {{1, kNan, 2, 0}, {1, -kInf, 2, 0}, {1, -kInf, 2, 0}, {1, 2, 3, 4}, {1, 3, 2, 0}, {1, 2, 3.5f, 0}};
  const TokenComparison tokens = TokensOf(r, c);
  const std::vector<TokenRow>& rows = tokens.rows;
  EXPECT_TRUE(std::isnan(rows[0].kl));
  EXPECT_EQ(rows[0].reference.ids[0], 2);
  EXPECT_EQ(rows[0].non_finite_mismatches, 0);
  EXPECT_EQ(rows[1].kl, 0);  // both rule it out
  EXPECT_THAT(rows[1].reference.ids, ElementsAre(2, 0, 3, -1, -1));
  EXPECT_EQ(rows[2].kl, kInf);
  EXPECT_EQ(rows[2].non_finite_mismatches, 1);
  EXPECT_EQ(rows[3].reference.ids[0], -1);
  EXPECT_FALSE(rows[3].near_tie);
  EXPECT_TRUE(std::isnan(rows[4].kl));
  EXPECT_EQ(rows[4].reference.ids[0], 1);
  EXPECT_THAT(rows[5].kl, DoubleNear(SlowKl(r[5], c[5]), 1e-15));
  EXPECT_EQ(tokens.rows_with_kl, 3);
  EXPECT_EQ(tokens.max_kl_row, 2u);
  EXPECT_EQ(tokens.mean_kl, kInf);
}

TEST(LogitsTest, ANearTieIsWhatNoiseCanTurnRound) {
  // 100 logits around 8 with noise 0.01: far below what bf16 explains, and a gap within or beyond it.
  const auto row = [](float first, float second, float noise) {
    std::vector<float> out = ModelRow(3, 100, noise);
    for (float& value : out) value = std::min(value, 5.0f);
    out[7] = first, out[9] = second;
    return out;
  };
  const Table r = {row(8, 7.99f, 0), row(8, 7.0f, 0), row(8, 7.99f, 0), row(8, 7.0f, 0), row(8, 7.99f, 0)};
  const Table c = {row(7.99f, 8, 0.02f), row(7.0f, 8, 0.02f), row(8, 7.99f, 0.02f), row(8, 7.0f, 0.02f),
                   row(7.99f, 8, 8.0f)};
  FakeTrace reference = MakeTrace(r), candidate = MakeTrace(c);
  for (FakeTrace* trace : {&reference, &candidate}) trace->meta.arithmetic.storage = DType::kBF16;
  const TokenComparison tokens = TokensOf(reference, candidate);
  std::vector<bool> near;
  for (const TokenRow& each : tokens.rows) near.push_back(each.near_tie);
  // The last: a garbage row is no near tie, though its noise is far above the margins.
  EXPECT_THAT(near, ElementsAre(true, false, true, false, false));
  EXPECT_TRUE(tokens.rows[4].within_noise);
  EXPECT_FALSE(tokens.rows[1].within_noise);
  EXPECT_NEAR(tokens.rows[0].noise_reach, 6 * tokens.rows[0].noise_rms, 1e-9);
  EXPECT_NEAR(tokens.rows[0].reference.gap, 0.01, 1e-6);
  EXPECT_EQ(tokens.near_ties, 2);
  EXPECT_EQ(tokens.different_near_ties, 1);
  EXPECT_EQ(tokens.first_different, 0u);
}

TEST(LogitsTest, AFlipThatJumpsOverOthersIsNoNearTie) {
  std::vector<float> r = ModelRow(3, 1000, 0);
  std::vector<float> c = r;
  r[0] = c[0] = 10, r[1] = c[1] = 9.999f;  // a narrow margin, but it is another token that wins
  r[2] = 2, c[2] = 10.5f;
  const TokenComparison tokens = TokensOf({r}, {c}, DType::kBF16);
  EXPECT_FALSE(tokens.rows[0].near_tie);
  EXPECT_EQ(tokens.rows[0].candidate.ids[0], 2);
  EXPECT_EQ(tokens.rows[0].reference.gap, 8);
}

TEST(LogitsTest, OneStepOfTheDtypeIsANearTieThoughHardlyAnyLogitDiffers) {
  std::vector<float> r = ModelRow(3, 2000, 0);
  r[0] = 20, r[1] = 20;
  std::vector<float> c = r;
  c[1] = 20.125f;  // the next bf16
  const TokenComparison tokens = TokensOf({r}, {c}, DType::kBF16);
  EXPECT_LT(6 * tokens.rows[0].noise_rms, 0.125);
  EXPECT_TRUE(tokens.rows[0].near_tie);
  EXPECT_FALSE(TokensOf({r}, {c}, DType::kF32).rows[0].near_tie);
}

TEST(LogitsTest, TheRecordedTokenCounts) {
  const Table rows = {{1, 2, 3, 0}, {1, 5, 5, 0}, {4, 2, 3, 0}};
  const FakeTrace reference = MakeTrace(rows, DType::kF32, {2, 1, 0});
  // A choice out of a tie, and one that the logits do not explain.
  const TokenComparison tokens = TokensOf(reference, MakeTrace(rows, DType::kF32, {2, 2, 3}));
  EXPECT_EQ(tokens.same_top, 3);
  EXPECT_EQ(tokens.same_next, 1);
  EXPECT_EQ(tokens.first_different, 1u);
  EXPECT_TRUE(tokens.rows[1].near_tie);
  EXPECT_EQ(tokens.rows[2].candidate.next, 3);
  EXPECT_FALSE(tokens.rows[2].near_tie);
  EXPECT_EQ(tokens.different_near_ties, 1);
  // Of one side only: the other's largest logit stands for it.
  EXPECT_EQ(TokensOf(MakeTrace(rows), MakeTrace(rows, DType::kF32, {2, 2, 0})).first_different, 1u);
}

TEST(LogitsTest, PrefillAndDecodeAndShards) {
  const Table r = {ModelRow(1, 64, 0), ModelRow(2, 64, 0), ModelRow(3, 64, 0)};
  FakeTrace candidate;
  candidate.meta.has_arithmetic = true;
  candidate.AddStep(Ids(Range(0, 2)), Range(0, 2));
  candidate.Add("logits", {1, 64}, r[1], {1});  // only the last row of the prompt
  candidate.AddStep(Ids({2}), {2});
  for (int i : {1, 0}) {
    TraceTensor& half = candidate.Add("logits", {1, 32}, {r[2].begin() + i * 32, r[2].begin() + i * 32 + 32});
    half.axes = {"token", "vocab"};
    half.shard = Shard{"vocab", i, 2};
    half.rank = i;
  }
  const TokenComparison tokens = TokensOf(MakeTrace(r), candidate);
  ASSERT_EQ(tokens.rows.size(), 2u);
  EXPECT_EQ(tokens.rows[0].position, 1);
  EXPECT_EQ(tokens.rows[1].position, 2);
  EXPECT_EQ(tokens.rows[1].noise_max, 0);
  EXPECT_EQ(tokens.same_next, 2);
}

TEST(LogitsTest, WithoutLogitsThereIsNothing) {
  FakeTrace trace;
  trace.AddStep(Ids({0}), {0});
  trace.Add("input_embeddings", {1, 8}, Rows(1, {0}, 8));
  const TokenComparison tokens = TokensOf(trace, trace);
  EXPECT_TRUE(tokens.rows.empty());
  EXPECT_FALSE(tokens.max_kl_row || tokens.first_different);
}

}  // namespace
}  // namespace lockstep
