// Every kernel against a slow twin in double with the same rounding points. A twin's exact value and the kernel's f32
// error give an interval; it is rounded where the kernel rounds, and the kernel's value must lie in it. So a lost or an
// added rounding is seen.
#include "engine/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "base/convert.h"

namespace lockstep::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr double kF32Error = 1e-6;  // relative, of a few f32 operations on one another
constexpr int64_t kSizes[] = {1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 129};

using Bytes = std::vector<std::byte>;

float Round(DType dtype, double value) {
  return WithStorageType(dtype, [&]<typename T>() { return ToFloat(FromFloat<T>(static_cast<float>(value))); });
}

// Where a value may lie that is computed with some error.
struct Interval {
  double low, high;
};

Interval Around(double value, double error) { return {value - error, value + error}; }
Interval Rounded(DType dtype, Interval i) { return {Round(dtype, i.low), Round(dtype, i.high)}; }
Interval Scaled(Interval i, double factor) {
  return {std::min(i.low * factor, i.high * factor), std::max(i.low * factor, i.high * factor)};
}
Interval Widened(Interval i) {
  return {i.low - std::abs(i.low) * 1e-7, i.high + std::abs(i.high) * 1e-7};
}  // an f32 rounding

void ExpectInside(float value, Interval interval, std::array<int64_t, 3> where) {
  if (interval.low <= value && value <= interval.high) return;
  ADD_FAILURE() << where[0] << " " << where[1] << " " << where[2] << ": " << value << " is not in [" << interval.low
                << ", " << interval.high << "]";
}

Bytes Stored(DType dtype, const std::vector<float>& values) {
  Bytes bytes(values.size() * DTypeSize(dtype));
  NarrowFromFloat(dtype, values.data(), values.size(), bytes.data());
  return bytes;
}

std::vector<float> Loaded(DType dtype, const Bytes& bytes) {
  std::vector<float> values(bytes.size() / DTypeSize(dtype));
  WidenToFloat(dtype, bytes.data(), values.size(), values.data());
  return values;
}

class KernelsTest : public testing::TestWithParam<DType> {
 protected:
  // Values of the storage dtype.
  std::vector<float> Random(int64_t count, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = Round(dtype_, normal(random_));
    return values;
  }
  std::string Where(int64_t a, int64_t b = 0, int64_t c = 0) const {
    return std::string(DTypeName(dtype_)) + " " + std::to_string(a) + " " + std::to_string(b) + " " + std::to_string(c);
  }

  const DType dtype_ = GetParam();
  std::mt19937 random_{7};
};

INSTANTIATE_TEST_SUITE_P(, KernelsTest, testing::Values(DType::kF32, DType::kBF16, DType::kF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

// ---- RMSNorm ----

TEST_P(KernelsTest, RmsNormIsTheTwin) {
  constexpr double kEps = 1e-6;
  for (const int64_t width : kSizes) {
    for (const int64_t rows : {1, 2, 5, 33}) {
      const std::vector<float> x = Random(rows * width, 3), w = Random(width);
      const Bytes from = Stored(dtype_, x);
      Bytes to(from.size());
      RmsNorm(dtype_, from.data(), w, kEps, rows, to.data());
      const std::vector<float> y = Loaded(dtype_, to);
      for (int64_t r = 0; r < rows; ++r) {
        double squares = 0;
        for (int64_t i = 0; i < width; ++i) squares += std::pow(double{x[r * width + i]}, 2);
        for (int64_t i = 0; i < width; ++i) {
          const double normed = x[r * width + i] / std::sqrt(squares / static_cast<double>(width) + kEps);
          const Interval rounded = Rounded(dtype_, Around(normed, std::abs(normed) * kF32Error));
          ExpectInside(y[r * width + i], Rounded(dtype_, Widened(Scaled(rounded, w[i]))), {width, r, i});
        }
      }
      Bytes in_place = from;
      RmsNorm(dtype_, in_place.data(), w, kEps, rows, in_place.data());
      EXPECT_EQ(in_place, to) << Where(width, rows);
    }
  }
}

TEST_P(KernelsTest, RmsNormAddsEpsilonBelowTheRoot) {
  const std::vector<float> ones(16, 1), tiny(16, 0x1p-10F);
  const Bytes from = Stored(dtype_, tiny);
  Bytes to(from.size());
  RmsNorm(dtype_, from.data(), ones, 3 * 0x1p-20, 1, to.data());
  EXPECT_EQ(Loaded(dtype_, to), std::vector<float>(16, 0.5F));  // 2^-10 / sqrt(4 · 2^-20)
  const Bytes zeros(from.size());
  RmsNorm(dtype_, zeros.data(), ones, 1e-6, 1, to.data());
  EXPECT_EQ(to, zeros);
}

// ---- RoPE ----

Config RopeConfig(int64_t head_dim) {
  Config config;
  config.head_dim = head_dim;
  config.rope_theta = 1e6;
  return config;
}

TEST_P(KernelsTest, RopeTableIsTheTwin) {
  constexpr int64_t kPositions = 4096;
  for (const int64_t head_dim : {2, 6, 48, 128}) {
    const RopeTable table(RopeConfig(head_dim), dtype_, kPositions);
    for (const int64_t position : {0, 1, 2, 63, 1000, 4095}) {
      ASSERT_EQ(table.Cos(position).size(), head_dim / 2);
      ASSERT_EQ(table.Sin(position).size(), head_dim / 2);
      for (int64_t i = 0; i < head_dim / 2; ++i) {
        // PyTorch keeps the power, its inverse and the angle in f32; the steps are exact in double.
        const auto power = static_cast<float>(std::pow(1e6, static_cast<float>(2 * i) / static_cast<float>(head_dim)));
        const auto inverse = static_cast<float>(1.0 / power);
        const auto angle = static_cast<float>(static_cast<double>(position) * inverse);
        ExpectInside(table.Cos(position)[i], Rounded(dtype_, Around(std::cos(double{angle}), 1.2e-7)),
                     {head_dim, position, i});
        ExpectInside(table.Sin(position)[i], Rounded(dtype_, Around(std::sin(double{angle}), 1.2e-7)),
                     {head_dim, position, i});
      }
    }
  }
}

TEST_P(KernelsTest, RopeIsTheTwinToTheBit) {
  for (const int64_t head_dim : {2, 6, 14, 30, 34, 62, 128}) {
    const RopeTable table(RopeConfig(head_dim), dtype_, 600);
    for (const int64_t heads : {1, 3, 8}) {
      const std::vector<int32_t> positions = {5, 0, 1, 599, 17, 17, 2};
      const std::vector<float> x = Random(static_cast<int64_t>(positions.size()) * heads * head_dim, 2);
      std::vector<float> expected(x.size());
      for (size_t head = 0; head < positions.size() * static_cast<size_t>(heads); ++head) {
        const int32_t position = positions[head / static_cast<size_t>(heads)];
        const size_t at = head * static_cast<size_t>(head_dim), half = static_cast<size_t>(head_dim / 2);
        for (size_t i = 0; i < half; ++i) {
          // A product of two floats is exact in double, and a sum of two of them rounds to float as if it were.
          const double cos = table.Cos(position)[i], sin = table.Sin(position)[i];
          const double a = x[at + i], b = x[at + half + i];
          expected[at + i] = Round(dtype_, double{Round(dtype_, a * cos)} + Round(dtype_, -b * sin));
          expected[at + half + i] = Round(dtype_, double{Round(dtype_, b * cos)} + Round(dtype_, a * sin));
        }
      }
      Bytes bytes = Stored(dtype_, x);
      Rope(dtype_, bytes.data(), table, positions, heads, head_dim);
      EXPECT_EQ(Loaded(dtype_, bytes), expected) << Where(head_dim, heads);
    }
  }
}

TEST_P(KernelsTest, RopeAtPositionZeroIsTheIdentity) {
  const RopeTable table(RopeConfig(48), dtype_, 8);
  const std::vector<int32_t> positions(5, 0);
  const Bytes before = Stored(dtype_, Random(5 * 3 * 48, 100));
  Bytes bytes = before;
  Rope(dtype_, bytes.data(), table, positions, 3, 48);
  EXPECT_EQ(bytes, before);
}

TEST_P(KernelsTest, RopeKeepsTheNormOfEachPair) {
  constexpr int64_t kHeadDim = 48;
  const double step = dtype_ == DType::kF32 ? 0x1p-23 : dtype_ == DType::kF16 ? 0x1p-10 : 0x1p-7;
  const RopeTable table(RopeConfig(kHeadDim), dtype_, 4096);
  const std::vector<int32_t> positions = {1, 2, 100, 4095};
  const std::vector<float> x = Random(4 * 2 * kHeadDim, 2);
  Bytes bytes = Stored(dtype_, x);
  Rope(dtype_, bytes.data(), table, positions, 2, kHeadDim);
  const std::vector<float> y = Loaded(dtype_, bytes);
  EXPECT_NE(x, y);
  for (size_t head = 0; head < 8; ++head) {
    for (size_t i = 0; i < kHeadDim / 2; ++i) {
      const size_t a = head * kHeadDim + i, b = a + kHeadDim / 2;
      const double norm = std::hypot(x[a], x[b]);
      EXPECT_NEAR(std::hypot(y[a], y[b]), norm, 2 * step * norm + 1e-6)
          << Where(static_cast<int64_t>(head), static_cast<int64_t>(i));
    }
  }
}

// ---- Elementwise ----

constexpr int64_t kCounts[] = {1, 3, 7, 15, 16, 17, 31, 129, 4095, 4096, 4097, 9001};

TEST_P(KernelsTest, AddIsTheTwinToTheBit) {
  for (const int64_t count : kCounts) {
    const std::vector<float> a = Random(count, 3), b = Random(count);
    std::vector<float> expected(a.size());
    for (size_t i = 0; i < a.size(); ++i) expected[i] = Round(dtype_, double{a[i]} + b[i]);
    const Bytes left = Stored(dtype_, a), right = Stored(dtype_, b);
    Bytes sum(left.size()), over_left = left, over_right = right;
    Add(dtype_, left.data(), right.data(), count, sum.data());
    Add(dtype_, over_left.data(), right.data(), count, over_left.data());
    Add(dtype_, left.data(), over_right.data(), count, over_right.data());
    EXPECT_EQ(Loaded(dtype_, sum), expected) << Where(count);
    EXPECT_EQ(over_left, sum) << Where(count);
    EXPECT_EQ(over_right, sum) << Where(count);
  }
}

TEST_P(KernelsTest, SwiGluIsTheTwin) {
  for (const int64_t count : kCounts) {
    const std::vector<float> gate = Random(count, 4), up = Random(count, 2);
    Bytes bytes = Stored(dtype_, gate);
    const Bytes right = Stored(dtype_, up);
    SwiGlu(dtype_, bytes.data(), right.data(), count);
    const std::vector<float> y = Loaded(dtype_, bytes);
    for (size_t i = 0; i < y.size(); ++i) {
      const double silu = gate[i] / (1 + std::exp(-double{gate[i]}));
      const Interval rounded = Rounded(dtype_, Around(silu, std::abs(silu) * kF32Error));
      ExpectInside(y[i], Rounded(dtype_, Widened(Scaled(rounded, up[i]))), {count, static_cast<int64_t>(i)});
    }
  }
}

TEST_P(KernelsTest, SwiGluOfLargeGates) {
  Bytes gate = Stored(dtype_, {1000, -1000, 0, 60000, -60000});
  const Bytes up = Stored(dtype_, {1, 1, 5, -1, 1});
  SwiGlu(dtype_, gate.data(), up.data(), 5);
  const std::vector<float> y = Loaded(dtype_, gate);
  EXPECT_EQ(y, (std::vector<float>{Round(dtype_, 1000), 0, 0, Round(dtype_, -60000), 0}));
}

// ---- Attention ----

// The largest relative error of one rounding to a 16-bit storage dtype; what f32 does is in kF32Error.
double HalfUlp(DType dtype) { return dtype == DType::kBF16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : 0; }

// The caches of a few sequences of different capacity, and tokens that look into them.
struct AttentionCase {
  DType dtype;
  AttentionShape shape;
  std::vector<int64_t> capacities;               // [sequences]
  std::vector<std::vector<float>> keys, values;  // [sequences][kv_heads, capacity, head_dim]
  std::vector<int32_t> sequences, positions;     // [tokens]
  std::vector<float> q;                          // [tokens, heads, head_dim]

  int64_t Tokens() const { return static_cast<int64_t>(positions.size()); }
  int64_t Keys() const { return *std::max_element(positions.begin(), positions.end()) + 1; }
  size_t KvAt(size_t sequence, int64_t kv_head, int64_t position) const {
    return static_cast<size_t>((kv_head * capacities[sequence] + position) * shape.head_dim);
  }
};

// Owns the storage that the views look into.
class Views {
 public:
  explicit Views(const AttentionCase& c) {
    for (const auto& keys : c.keys) memory_.push_back(Stored(c.dtype, keys));
    for (const auto& values : c.values) memory_.push_back(Stored(c.dtype, values));
    for (const int32_t sequence : c.sequences) {
      const auto s = static_cast<size_t>(sequence);
      views_.push_back({memory_[s].data(), memory_[c.keys.size() + s].data(), c.capacities[s]});
    }
  }
  std::span<const KvView> get() const { return views_; }

 private:
  std::vector<Bytes> memory_;
  std::vector<KvView> views_;
};

Bytes RunAttention(const AttentionCase& c) {
  const Views kv(c);
  const Bytes q = Stored(c.dtype, c.q);
  Bytes context(q.size());
  Attention(c.dtype, c.shape, q.data(), kv.get(), c.positions, context.data());
  return context;
}

struct Steps {
  std::vector<float> scores, probs;  // [tokens, heads, keys]
  Bytes context;
};

Steps RunSteps(const AttentionCase& c, int64_t keys) {
  const Views kv(c);
  const Bytes q = Stored(c.dtype, c.q);
  Steps steps;
  steps.scores.resize(static_cast<size_t>(c.Tokens() * c.shape.heads * keys), kNaN);
  steps.context.resize(q.size());
  AttentionScores(c.dtype, c.shape, q.data(), kv.get(), c.positions, keys, steps.scores.data());
  steps.probs = steps.scores;
  AttentionProbs(c.dtype, c.shape, c.positions, keys, steps.probs.data());
  AttentionContext(c.dtype, c.shape, steps.probs.data(), kv.get(), c.positions, keys, steps.context.data());
  return steps;
}

class AttentionTest : public KernelsTest {
 protected:
  AttentionCase Case(AttentionShape shape, std::vector<int64_t> capacities, std::vector<int32_t> sequences,
                     std::vector<int32_t> positions, float scale = 1) {
    AttentionCase c{dtype_, shape, std::move(capacities), {}, {}, std::move(sequences), std::move(positions), {}};
    for (const int64_t capacity : c.capacities) {
      c.keys.push_back(Random(shape.kv_heads * capacity * shape.head_dim, scale));
      c.values.push_back(Random(shape.kv_heads * capacity * shape.head_dim, scale));
    }
    c.q = Random(c.Tokens() * shape.heads * shape.head_dim, scale);
    return c;
  }
  AttentionCase Ragged(AttentionShape shape) {
    return Case(shape, {5, 40, 17}, {1, 1, 1, 0, 2, 2}, {0, 15, 16, 4, 7, 8});
  }
  std::vector<AttentionCase> Cases() {
    std::vector<AttentionCase> cases;
    for (const int64_t head_dim : {1, 3, 15, 16, 17, 48, 129}) {
      cases.push_back(Ragged({6, 2, head_dim}));
      cases.push_back(Ragged({3, 3, head_dim}));
      cases.push_back(Case({4, 1, head_dim}, {130}, {0}, {128}));
    }
    cases.push_back(Case({1, 1, 8}, {1}, {0}, {0}));
    return cases;
  }
};

INSTANTIATE_TEST_SUITE_P(, AttentionTest, testing::Values(DType::kF32, DType::kBF16, DType::kF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

TEST_P(AttentionTest, IsTheTwin) {
  for (const AttentionCase& c : Cases()) {
    const auto [heads, kv_heads, d] = c.shape;
    const std::vector<float> context = Loaded(dtype_, RunAttention(c));
    for (int64_t row = 0; row < c.Tokens() * heads; ++row) {
      const auto token = static_cast<size_t>(row / heads);
      const auto s = static_cast<size_t>(c.sequences[token]);
      const int64_t kv_head = row % heads / (heads / kv_heads);
      std::vector<double> weights;
      double total = 0, largest_score = 0;
      for (int64_t j = 0; j <= c.positions[token]; ++j) {
        double dot = 0;
        for (int64_t i = 0; i < d; ++i) dot += double{c.q[row * d + i]} * c.keys[s][c.KvAt(s, kv_head, j) + i];
        const double score = dot / std::sqrt(static_cast<double>(d));
        largest_score = std::max(largest_score, std::abs(score));
        weights.push_back(std::exp(score));
        total += weights.back();
      }
      for (int64_t i = 0; i < d; ++i) {
        double sum = 0, magnitude = 0;
        for (size_t j = 0; j < weights.size(); ++j) {
          const double term = weights[j] / total * c.values[s][c.KvAt(s, kv_head, static_cast<int64_t>(j)) + i];
          sum += term;
          magnitude += std::abs(term);
        }
        // Scores are rounded twice, which shifts all probabilities against each other; these are rounded once.
        const double u = HalfUlp(dtype_);
        const double error = 4 * kF32Error + 2 * 2 * u * largest_score + 2 * u;
        ExpectInside(context[row * d + i], Rounded(dtype_, Around(sum, error * magnitude)), {d, row, i});
      }
    }
  }
}

TEST_P(AttentionTest, StepsAreTheSameToTheBit) {
  for (const AttentionCase& c : Cases()) {
    for (const int64_t keys : {c.Keys(), c.Keys() + 3}) {
      const Steps steps = RunSteps(c, keys);
      EXPECT_EQ(steps.context, RunAttention(c)) << Where(c.shape.head_dim, keys);
      for (size_t i = 0; i < steps.probs.size(); ++i) {
        const auto key = static_cast<int64_t>(i) % keys;
        const size_t token = i / static_cast<size_t>(keys * c.shape.heads);
        if (key > c.positions[token]) {
          ASSERT_EQ(steps.scores[i], -kInfinity);
          ASSERT_EQ(steps.probs[i], 0);
        } else {
          ASSERT_TRUE(std::isfinite(steps.scores[i]));
        }
      }
      for (size_t row = 0; row < steps.probs.size(); row += static_cast<size_t>(keys)) {
        double sum = 0;
        for (size_t j = 0; j < static_cast<size_t>(keys); ++j) sum += steps.probs[row + j];
        EXPECT_NEAR(sum, 1, 1e-6 + HalfUlp(dtype_));
      }
    }
  }
}

TEST_P(AttentionTest, ScoresAreScaledProducts) {
  const AttentionCase c = Ragged({6, 2, 17});
  const int64_t keys = c.Keys();
  const Steps steps = RunSteps(c, keys);
  for (int64_t row = 0; row < c.Tokens() * 6; ++row) {
    const auto token = static_cast<size_t>(row / 6);
    const auto s = static_cast<size_t>(c.sequences[token]);
    for (int64_t j = 0; j <= c.positions[token]; ++j) {
      double dot = 0, magnitude = 0;
      for (int64_t i = 0; i < 17; ++i) {
        const double term = double{c.q[row * 17 + i]} * c.keys[s][c.KvAt(s, row % 6 / 3, j) + i];
        dot += term;
        magnitude += std::abs(term);
      }
      const Interval product = Rounded(dtype_, Around(dot, kF32Error * magnitude));
      ExpectInside(steps.scores[row * keys + j], Rounded(dtype_, Widened(Scaled(product, 1 / std::sqrt(17.0)))),
                   {row, j});
    }
  }
}

TEST_P(AttentionTest, TheFutureAndOtherSequencesChangeNoBit) {
  const AttentionCase before = Ragged({6, 2, 17});
  AttentionCase after = before;
  // Everything that no token may see: beyond the last position of each sequence.
  const std::vector<int64_t> seen = {5, 17, 9};
  for (size_t s = 0; s < 3; ++s) {
    for (int64_t kv_head = 0; kv_head < 2; ++kv_head) {
      for (int64_t j = seen[s]; j < after.capacities[s]; ++j) {
        std::fill_n(after.keys[s].begin() + static_cast<int64_t>(after.KvAt(s, kv_head, j)), 17, kNaN);
        std::fill_n(after.values[s].begin() + static_cast<int64_t>(after.KvAt(s, kv_head, j)), 17, kNaN);
      }
    }
  }
  EXPECT_EQ(RunAttention(after), RunAttention(before));

  // Token 1 (position 15 of sequence 1) does not see key 16, token 2 does; the other sequences see neither.
  after = before;
  for (int64_t kv_head = 0; kv_head < 2; ++kv_head) {
    after.keys[1][after.KvAt(1, kv_head, 16)] += 1;
    after.values[1][after.KvAt(1, kv_head, 16)] += 1;
  }
  const std::vector<float> a = Loaded(dtype_, RunAttention(before)), b = Loaded(dtype_, RunAttention(after));
  for (size_t token = 0; token < 6; ++token) {
    const auto begin = static_cast<int64_t>(token * 6 * 17);
    EXPECT_EQ(std::equal(a.begin() + begin, a.begin() + begin + 6 * 17, b.begin() + begin), token != 2) << token;
  }
}

TEST_P(AttentionTest, EachHeadReadsItsGroupsKeysAndValues) {
  for (const AttentionShape shape :
       {AttentionShape{6, 2, 5}, AttentionShape{6, 3, 5}, AttentionShape{4, 1, 5}, AttentionShape{4, 4, 5}}) {
    for (int64_t changed = 0; changed < shape.kv_heads; ++changed) {
      const AttentionCase before = Case(shape, {9}, {0}, {8});
      for (auto member : {&AttentionCase::keys, &AttentionCase::values}) {
        AttentionCase after = before;
        std::vector<float>& cache = (after.*member)[0];
        for (size_t i = after.KvAt(0, changed, 0); i < after.KvAt(0, changed + 1, 0); ++i) cache[i] = -2 * cache[i];
        const std::vector<float> a = Loaded(dtype_, RunAttention(before)), b = Loaded(dtype_, RunAttention(after));
        for (int64_t head = 0; head < shape.heads; ++head) {
          const bool same = std::equal(a.begin() + head * 5, a.begin() + (head + 1) * 5, b.begin() + head * 5);
          EXPECT_EQ(same, head / (shape.heads / shape.kv_heads) != changed) << Where(shape.heads, shape.kv_heads, head);
        }
      }
    }
  }
}

TEST_P(AttentionTest, OneKeyGivesItsValue) {
  const AttentionCase c = Case({6, 2, 17}, {4}, {0}, {0}, 30);
  EXPECT_EQ(RunSteps(c, 1).probs, std::vector<float>(6, 1));
  const std::vector<float> context = Loaded(dtype_, RunAttention(c));
  for (int64_t head = 0; head < 6; ++head) {
    const float* value = &c.values[0][c.KvAt(0, head / 3, 0)];
    EXPECT_TRUE(std::equal(value, value + 17, context.begin() + head * 17)) << head;
  }
}

TEST_P(AttentionTest, HugeScoresDoNotOverflow) {
  AttentionCase c = Case({2, 1, 16}, {4}, {0}, {3});
  // In f16 the product q·k itself must stay below 65504, as in PyTorch: 16 · 60².
  const float huge = dtype_ == DType::kF16 ? 60.0F : 0x1p50F;
  for (const float sign : {1.0F, -1.0F}) {  // four equal scores of ±4 · huge²: each key weighs a quarter
    std::fill(c.q.begin(), c.q.end(), huge);
    std::fill(c.keys[0].begin(), c.keys[0].end(), sign * huge);
    EXPECT_EQ(RunSteps(c, 4).probs, std::vector<float>(8, 0.25F));
    for (const float value : Loaded(dtype_, RunAttention(c))) EXPECT_TRUE(std::isfinite(value));
  }
  // One key far above the rest takes all.
  std::fill_n(c.keys[0].begin() + 2 * 16, 16, huge);
  const std::vector<float> expected = {0, 0, 1, 0, 0, 0, 1, 0};
  EXPECT_EQ(RunSteps(c, 4).probs, expected);
}

// ---- Bad values stay where they are ----

TEST_P(KernelsTest, NaNAndInfinityDoNotCrashAndStayInTheirRow) {
  constexpr int64_t kWidth = 34;
  for (const float bad : {kNaN, kInfinity, -kInfinity}) {
    const std::vector<float> clean = Random(3 * kWidth);
    std::vector<float> x = clean;
    x[kWidth + 3] = bad;
    const auto rows_but_1_are_equal = [&](const Bytes& a, const Bytes& b) {
      const std::vector<float> left = Loaded(dtype_, a), right = Loaded(dtype_, b);
      return std::equal(left.begin(), left.begin() + kWidth, right.begin()) &&
             std::equal(left.begin() + 2 * kWidth, left.end(), right.begin() + 2 * kWidth);
    };
    const auto both = [&](auto&& kernel) {
      Bytes a = Stored(dtype_, clean), b = Stored(dtype_, x);
      kernel(a);
      kernel(b);
      EXPECT_TRUE(rows_but_1_are_equal(a, b)) << bad;
      const std::vector<float> y = Loaded(dtype_, b);
      EXPECT_TRUE(std::any_of(y.begin() + kWidth, y.begin() + 2 * kWidth, [](float v) { return !std::isfinite(v); }) ||
                  bad == -kInfinity)
          << bad;  // silu(-inf) may be what it likes
    };
    const std::vector<float> w = Random(kWidth);
    const RopeTable table(RopeConfig(kWidth), dtype_, 4);
    const Bytes other = Stored(dtype_, Random(3 * kWidth));
    both([&](Bytes& v) { RmsNorm(dtype_, v.data(), w, 1e-6, 3, v.data()); });
    both([&](Bytes& v) { Rope(dtype_, v.data(), table, std::vector<int32_t>{1, 2, 3}, 1, kWidth); });
    both([&](Bytes& v) { Add(dtype_, v.data(), other.data(), 3 * kWidth, v.data()); });
    both([&](Bytes& v) { SwiGlu(dtype_, v.data(), other.data(), 3 * kWidth); });
  }
}

TEST_P(AttentionTest, NaNAndInfinityDoNotCrash) {
  for (const float bad : {kNaN, kInfinity, -kInfinity}) {
    const AttentionCase clean = Ragged({6, 2, 17});
    AttentionCase c = clean;
    c.q[3 * 6 * 17] = bad;                   // token 3, head 0
    c.keys[1][c.KvAt(1, 0, 16) + 2] = bad;   // seen by token 2, heads 0 to 2
    c.values[2][c.KvAt(2, 1, 0) + 5] = bad;  // seen by tokens 4 and 5, heads 3 to 5
    const std::vector<float> a = Loaded(dtype_, RunAttention(clean)), b = Loaded(dtype_, RunAttention(c));
    for (int64_t row = 0; row < 36; ++row) {
      const int64_t token = row / 6, head = row % 6;
      const bool touched = (token == 3 && head == 0) || (token == 2 && head < 3) || (token >= 4 && head >= 3);
      if (touched) continue;
      EXPECT_TRUE(std::equal(a.begin() + row * 17, a.begin() + (row + 1) * 17, b.begin() + row * 17)) << Where(row);
    }
    RunSteps(c, c.Keys());
  }
}

TEST_P(KernelsTest, NoRowsAreNoWork) {
  RmsNorm(dtype_, nullptr, std::vector<float>(4, 1), 1e-6, 0, nullptr);
  Rope(dtype_, nullptr, RopeTable(RopeConfig(4), dtype_, 1), {}, 2, 4);
  Add(dtype_, nullptr, nullptr, 0, nullptr);
  SwiGlu(dtype_, nullptr, nullptr, 0);
  Attention(dtype_, {2, 1, 4}, nullptr, {}, {}, nullptr);
}

}  // namespace
}  // namespace lockstep::kernels
