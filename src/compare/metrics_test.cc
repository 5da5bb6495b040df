#include "compare/metrics.h"

#include <gmock/gmock.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <cmath>
#include <limits>

#include "compare/classify.h"
#include "compare/fake_trace.h"

namespace lockstep {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// The figures, slowly and one after the other.
struct Naive {
  double max_abs = 0, sum_abs = 0, max_rel = 0, sum_rel = 0, aa = 0, bb = 0, ab = 0, dd = 0, sum_a = 0, sum_b = 0;
  double min_a = kInf, max_a = -kInf, min_b = kInf, max_b = -kInf;
  int64_t count = 0, nonzero_b = 0, zero_mismatches = 0, mismatches = 0, count_a = 0, count_b = 0;
  double square_a = 0, square_b = 0;
  double within[5] = {};
  size_t worst = 0;

  Naive(const std::vector<float>& a, const std::vector<float>& b, Limit user) {
    for (size_t i = 0; i < a.size(); ++i) {
      const double x = a[i], y = b[i];
      if (std::isfinite(x))
        ++count_a, sum_a += x, square_a += x * x, min_a = std::min(min_a, x), max_a = std::max(max_a, x);
      if (std::isfinite(y))
        ++count_b, sum_b += y, square_b += y * y, min_b = std::min(min_b, y), max_b = std::max(max_b, y);
      if (!std::isfinite(x) || !std::isfinite(y)) {
        mismatches += !(x == y || (std::isnan(x) && std::isnan(y)));
        continue;
      }
      ++count;
      const double d = std::abs(x - y);
      if (d > max_abs) max_abs = d, worst = i;
      sum_abs += d, aa += x * x, bb += y * y, ab += x * y, dd += d * d;
      if (y != 0) ++nonzero_b, sum_rel += d / std::abs(y), max_rel = std::max(max_rel, d / std::abs(y));
      if (y == 0 && x != 0) ++zero_mismatches;
      for (size_t k = 0; k < 4; ++k) within[k] += d <= kTolerances[k] + kTolerances[k] * std::abs(y);
      within[4] += d <= user.atol + user.rtol * std::abs(y);
    }
  }
};

struct Case {
  int rows, heads, width;
  DType dtype_a, dtype_b;
  bool odd_values;
};

void ExpectNear(double expected, double actual, const char* what) {
  EXPECT_NEAR(expected, actual, 1e-12 * std::max(1.0, std::abs(expected))) << what;
}

void CheckAgainstNaive(const Case& c) {
  SCOPED_TRACE(testing::Message() << c.rows << " rows of " << c.heads << " x " << c.width << " " << DTypeName(c.dtype_a)
                                  << " " << DTypeName(c.dtype_b) << (c.odd_values ? " odd" : ""));
  const std::vector<int32_t> positions = Range(0, c.rows);
  const int size = c.heads * c.width;
  std::vector<float> b = Rows(1, positions, size), a = b;
  const std::vector<float> noise = Rows(2, positions, size);
  for (size_t i = 0; i < a.size(); ++i) {
    if (i % 3 != 0) a[i] += noise[i] * std::pow(10.0f, -static_cast<float>(i % 7));
    if (i % 11 == 0) b[i] = 0;
    if (i % 22 == 0) a[i] = 0;
    if (c.odd_values && i % 13 == 1) a[i] = i % 2 ? kNan : kInf;
    if (c.odd_values && i % 17 == 1) b[i] = i % 2 ? kNan : -kInf;
    if (c.odd_values && i % 29 == 1) a[i] = b[i] = kNan;
  }
  FakeTrace reference, candidate;
  reference.AddStep(Ids(positions), positions);
  candidate.AddStep(Ids(positions), positions);
  std::vector<int64_t> shape = {c.rows, c.heads, c.width};
  if (c.heads == 1) shape = {c.rows, c.width};
  const std::string name = c.heads == 1 ? "layer_0_attn_o_proj" : "layer_0_attn_q_rope";
  reference.Add(name, shape, b, {}, c.dtype_b);
  candidate.Add(name, shape, a, {}, c.dtype_a);
  for (auto [values, dtype] : {std::pair{&a, c.dtype_a}, std::pair{&b, c.dtype_b}}) {
    std::vector<std::byte> bytes(values->size() * DTypeSize(dtype));
    NarrowFromFloat(dtype, values->data(), values->size(), bytes.data());
    WidenToFloat(dtype, bytes.data(), values->size(), values->data());
  }

  const CompareResult result = CompareFakes(reference, candidate, {.atol = 1e-3, .rtol = 0.05});
  ASSERT_EQ(result.points.size(), 1u);
  const PointResult& p = result.points[0];
  const Naive n(a, b, {1e-3, 0.05});
  EXPECT_EQ(p.elements, n.count);
  EXPECT_EQ(p.max_abs, n.max_abs);
  // Each relative difference is rounded to f32.
  EXPECT_NEAR(p.max_rel, n.max_rel, 2e-7 * n.max_rel);
  ExpectNear(n.sum_abs / static_cast<double>(n.count), p.mean_abs, "mean_abs");
  const double mean_rel = n.sum_rel / static_cast<double>(n.nonzero_b);
  EXPECT_NEAR(p.mean_rel, mean_rel, 2e-7 * mean_rel);
  EXPECT_EQ(p.zero_mismatches, n.zero_mismatches);
  ExpectNear(n.ab / std::sqrt(n.aa * n.bb), p.cosine, "cosine");
  ExpectNear(std::sqrt(n.dd / n.bb), p.relative_l2, "relative_l2");
  ExpectNear(10 * std::log10(n.bb / n.dd), p.snr_db, "snr_db");
  ExpectNear(n.ab / n.bb, p.best_scale, "best_scale");
  const auto judged = static_cast<double>(n.count + n.mismatches);
  for (size_t k = 0; k < 4; ++k) ExpectNear(n.within[k] / judged, p.within[k], "within");
  ExpectNear(n.within[4] / judged, *p.within_user, "within_user");
  EXPECT_EQ(p.non_finite_mismatches, n.mismatches);
  EXPECT_EQ(p.worst_candidate, a[n.worst]);
  EXPECT_EQ(p.worst_reference, b[n.worst]);
  EXPECT_EQ(p.worst.position, static_cast<int>(n.worst) / size);
  EXPECT_EQ(p.worst.channel, static_cast<int>(n.worst) % c.width);
  EXPECT_EQ(p.worst.head, c.heads == 1 ? -1 : static_cast<int>(n.worst) % size / c.width);
  ExpectNear(n.sum_a / static_cast<double>(n.count_a), p.candidate.mean, "mean a");
  ExpectNear(n.sum_b / static_cast<double>(n.count_b), p.reference.mean, "mean b");
  EXPECT_NEAR(
      std::sqrt(n.square_a / static_cast<double>(n.count_a) - std::pow(n.sum_a / static_cast<double>(n.count_a), 2)),
      p.candidate.std, 1e-12);
  EXPECT_NEAR(
      std::sqrt(n.square_b / static_cast<double>(n.count_b) - std::pow(n.sum_b / static_cast<double>(n.count_b), 2)),
      p.reference.std, 1e-12);
  EXPECT_EQ(p.candidate.min, n.min_a);
  EXPECT_EQ(p.candidate.max, n.max_a);
  EXPECT_EQ(p.reference.min, n.min_b);
  EXPECT_EQ(p.reference.max, n.max_b);

  // Tokens and heads: the worst of them, computed one by one.
  double worst_token = 0, worst_cosine = 1;
  for (int row = 0; row < c.rows; ++row) {
    const std::vector<float> ra(a.begin() + row * size, a.begin() + (row + 1) * size);
    const std::vector<float> rb(b.begin() + row * size, b.begin() + (row + 1) * size);
    const Naive token(ra, rb, {});
    if (token.dd == 0) continue;
    worst_token = std::max(worst_token, token.bb == 0 ? kInf : std::sqrt(token.dd / token.bb));
    worst_cosine = std::min(worst_cosine, token.aa * token.bb == 0 ? 0 : token.ab / std::sqrt(token.aa * token.bb));
  }
  EXPECT_NEAR(p.worst_token_relative_l2, worst_token, 1e-12 * worst_token);
  EXPECT_NEAR(p.min_token_cosine, worst_cosine, 1e-12);
  if (c.heads == 1) return;
  double worst_head = 0, head_cosine = 1;
  for (int head = 0; head < c.heads; ++head) {
    std::vector<float> ha, hb;
    for (size_t i = 0; i < a.size(); ++i) {
      if (static_cast<int>(i) % size / c.width == head) ha.push_back(a[i]), hb.push_back(b[i]);
    }
    const Naive naive(ha, hb, {});
    worst_head = std::max(worst_head, std::sqrt(naive.dd / naive.bb));
    head_cosine = std::min(head_cosine, naive.ab / std::sqrt(naive.aa * naive.bb));
  }
  EXPECT_NEAR(p.worst_head_relative_l2, worst_head, 1e-12);
  EXPECT_NEAR(p.min_head_cosine, head_cosine, 1e-12);
}

TEST(MetricsTest, AgreeWithTheNaiveTwin) {
  for (const bool odd : {false, true}) {
    CheckAgainstNaive({7, 1, 33, DType::kF32, DType::kF32, odd});
    CheckAgainstNaive({5, 3, 17, DType::kBF16, DType::kF32, odd});
    CheckAgainstNaive({4, 2, 64, DType::kF16, DType::kBF16, odd});
    CheckAgainstNaive({3, 1, 5003, DType::kF32, DType::kF32, odd});     // several chunks a row
    CheckAgainstNaive({300, 4, 100, DType::kBF16, DType::kBF16, odd});  // several blocks
  }
}

TEST(MetricsTest, TheWorstElementOfALaterBlock) {
  const auto positions = Range(0, 2000);
  std::vector<float> values = Rows(1, positions, 100);
  FakeTrace reference, candidate;
  for (FakeTrace* trace : {&reference, &candidate}) {
    trace->AddStep(Ids(positions), positions);
    trace->Add("layer_0_attn_o_proj", {2000, 100}, values);
    values[5] += 1;
    values[199 * 1000 + 7] += 2;
  }
  const PointResult p = CompareFakes(reference, candidate).points.at(0);
  EXPECT_EQ(p.worst.position, 1990);
  EXPECT_EQ(p.worst.channel, 7);
  EXPECT_EQ(p.worst_candidate, Rows(1, {1990}, 100)[7] + 2);
  EXPECT_EQ(p.worst_reference, Rows(1, {1990}, 100)[7]);
}

TEST(MetricsTest, IdenticalIsExact) {
  FakeTrace trace;
  trace.AddStep(Ids(Range(0, 9)), Range(0, 9));
  trace.Add("layer_0_attn_q_rope", {9, 2, 50}, Rows(1, Range(0, 9), 100));
  const PointResult p = CompareFakes(trace, trace).points.at(0);
  EXPECT_TRUE(p.bit_identical);
  EXPECT_EQ(p.cosine, 1);
  EXPECT_EQ(p.best_scale, 1);
  EXPECT_EQ(p.snr_db, kInf);
  EXPECT_THAT(p.within, testing::Each(1.0));
  EXPECT_EQ(p.diff_class, DiffClass::kExcellent);
}

TEST(MetricsTest, ThreadsDoNotShow) {
#ifdef _OPENMP
  FakeTrace reference, candidate;
  const auto positions = Range(0, 2000);
  for (FakeTrace* trace : {&reference, &candidate}) trace->AddStep(Ids(positions), positions);
  reference.Add("layer_0_attn_q_rope", {2000, 2, 64}, Rows(1, positions, 128));
  candidate.Add("layer_0_attn_q_rope", {2000, 2, 64}, Rows(2, positions, 128));
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const PointResult one = CompareFakes(reference, candidate).points.at(0);
  for (int n : {2, 3, 5}) {
    omp_set_num_threads(n);
    const PointResult many = CompareFakes(reference, candidate).points.at(0);
    EXPECT_EQ(one.mean_abs, many.mean_abs);
    EXPECT_EQ(one.cosine, many.cosine);
    EXPECT_EQ(one.relative_l2, many.relative_l2);
    EXPECT_EQ(one.candidate.std, many.candidate.std);
    EXPECT_EQ(one.worst.position, many.worst.position);
  }
  omp_set_num_threads(threads);
#endif
}

// The whole tensor's cosine is blind here.
TEST(MetricsTest, OneHeadOfOneTokenNegatedIsSignificant) {
  const auto positions = Range(0, 512);
  std::vector<float> values = Rows(1, positions, 8 * 16);
  FakeTrace reference, candidate;
  for (FakeTrace* trace : {&reference, &candidate}) {
    trace->AddStep(Ids(positions), positions);
    trace->Add("layer_1_attn_context", {512, 8, 16}, values);
    for (int i = 0; i < 16; ++i) values[static_cast<size_t>(300 * 128 + 5 * 16 + i)] *= -1;
  }
  const CompareResult result = CompareFakes(reference, candidate);
  const PointResult& p = result.points.at(0);
  EXPECT_GT(p.cosine, 0.999);
  EXPECT_EQ(p.diff_class, DiffClass::kSignificant);
  EXPECT_EQ(p.worst_token.position, 300);
  EXPECT_EQ(p.worst_head, 5);
  EXPECT_EQ(p.worst.head, 5);
  EXPECT_EQ(result.ExitCode(), 1);
}

TEST(MetricsTest, ZeroVectors) {
  FakeTrace reference, candidate;
  for (FakeTrace* trace : {&reference, &candidate}) trace->AddStep({1, 2}, {0, 1});
  reference.Add("layer_0_attn_o_proj", {2, 3}, {0, 0, 0, 0, 0, 0});
  candidate.Add("layer_0_attn_o_proj", {2, 3}, {0, 0, 0, 1, 0, 0});
  const PointResult p = CompareFakes(reference, candidate).points.at(0);
  EXPECT_EQ(p.cosine, 0);
  EXPECT_EQ(p.relative_l2, kInf);
  EXPECT_EQ(p.zero_mismatches, 1);
  EXPECT_EQ(p.max_rel, 0);
  EXPECT_EQ(p.worst_token.position, 1);
}

TEST(MetricsTest, NonFiniteOnOneSideIsSignificantAndEqualOnesAreNot) {
  FakeTrace reference, candidate;
  for (FakeTrace* trace : {&reference, &candidate}) trace->AddStep({1, 2}, {0, 1});
  reference.Add("layer_0_attn_o_proj", {2, 2}, {1, kNan, kInf, 2});
  candidate.Add("layer_0_attn_o_proj", {2, 2}, {1, kNan, kInf, 2});
  reference.Add("layer_0_mlp_up_proj", {2, 2}, {1, 2, kInf, 2});
  candidate.Add("layer_0_mlp_up_proj", {2, 2}, {1, 2, -kInf, 2});
  const CompareResult result = CompareFakes(reference, candidate);
  EXPECT_EQ(result.points[0].diff_class, DiffClass::kExcellent);
  EXPECT_EQ(result.points[0].reference.nan_count, 1);
  EXPECT_EQ(result.points[0].reference.first_nan->channel, 1);
  EXPECT_EQ(result.points[0].reference.first_inf->position, 1);
  EXPECT_EQ(result.points[1].diff_class, DiffClass::kSignificant);
  EXPECT_EQ(result.points[1].non_finite_mismatches, 1);
  EXPECT_EQ(result.points[1].first_non_finite_mismatch->position, 1);
}

// Scores [2 tokens, 1 head, keys]: what lies beyond the token is masked, in whatever way.
struct Attention {
  FakeTrace reference, candidate;
  explicit Attention(const char* name, std::vector<float> ref, std::vector<float> cand, int64_t keys = 3) {
    for (FakeTrace* trace : {&reference, &candidate}) trace->AddStep({1, 2}, {0, 1});
    reference.Add(name, {2, 1, 3}, ref);
    candidate.Add(name, {2, 1, keys}, cand);
  }
};

constexpr float kLowest = -3.4028235e38f;

TEST(AttentionTest, MasksAreEqualInAnyForm) {
  Attention t("layer_0_attn_scores", {1, kLowest, kLowest, 2, 3, kLowest}, {1, -kInf, 2, 3}, 2);
  const PointResult p = CompareFakes(t.reference, t.candidate).points.at(0);
  EXPECT_EQ(p.diff_class, DiffClass::kExcellent);
  EXPECT_EQ(p.mask_mismatches, 0);
  EXPECT_EQ(p.elements, 3);
}

TEST(AttentionTest, MissingMaskIsNamed) {
  Attention t("layer_0_attn_scores", {1, -kInf, -kInf, 2, 3, -kInf}, {1, 0.5, -kInf, 2, 3, -kInf});
  const PointResult p = CompareFakes(t.reference, t.candidate).points.at(0);
  EXPECT_EQ(p.diff_class, DiffClass::kSignificant);
  EXPECT_EQ(p.first_mask_mismatch->position, 0);
  EXPECT_EQ(p.first_mask_mismatch->channel, 1);
}

TEST(AttentionTest, MaskedOnOneSideOnly) {
  Attention t("layer_0_attn_scores", {1, -kInf, -kInf, 2, 3, -kInf}, {1, -kInf, -kInf, -kInf, 3, -kInf});
  const PointResult p = CompareFakes(t.reference, t.candidate).points.at(0);
  EXPECT_EQ(p.mask_mismatches, 1);
  EXPECT_EQ(p.first_mask_mismatch->position, 1);
  EXPECT_EQ(p.elements, 2);
}

TEST(AttentionTest, ProbabilitiesBeyondTheTokenMustBeZero) {
  Attention same("layer_0_attn_probs", {1, 0, 0, 0.5, 0.5, 0}, {1, 0, 0.5, 0.5}, 2);
  EXPECT_EQ(CompareFakes(same.reference, same.candidate).points.at(0).diff_class, DiffClass::kExcellent);
  Attention leak("layer_0_attn_probs", {1, 0, 0, 0.5, 0.5, 0}, {0.9f, 0.1f, 0, 0.5, 0.5, 0});
  EXPECT_EQ(CompareFakes(leak.reference, leak.candidate).points.at(0).mask_mismatches, 1);
}

TEST(AttentionTest, KeysSayWhereAColumnBelongs) {
  Attention t("layer_0_attn_scores", {1, -kInf, -kInf, 2, 3, -kInf}, {7, 1, 3, 2}, 2);
  t.candidate.steps[0].tensors[0].keys = {-1, 0, 1, 0};
  const PointResult p = CompareFakes(t.reference, t.candidate).points.at(0);
  EXPECT_TRUE(p.bit_identical);
  EXPECT_EQ(p.elements, 3);
}

}  // namespace
}  // namespace lockstep
