// Blocked attention against its slow twin, and against itself in three steps.
#include "engine/attention.h"

#include <deque>

#include "engine/test_values.h"

namespace lockstep::kernels {
namespace {

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

  int64_t QueryStride() const { return shape.heads * shape.head_dim; }
  int64_t Tokens() const { return static_cast<int64_t>(positions.size()); }
  int64_t Keys() const { return *std::max_element(positions.begin(), positions.end()) + 1; }
  size_t KvAt(size_t sequence, int64_t kv_head, int64_t position) const {
    return static_cast<size_t>((kv_head * capacities[sequence] + position) * shape.head_dim);
  }
};

// The cache of a case in panels, and its tokens as runs.
class Panels {
 public:
  explicit Panels(const AttentionCase& c) {
    for (size_t s = 0; s < c.capacities.size(); ++s) views_.push_back(Written(c, s));
    for (size_t t = 0; t < c.positions.size(); ++t) {
      const bool follows = t > 0 && c.sequences[t] == c.sequences[t - 1] && c.positions[t] == c.positions[t - 1] + 1;
      if (!follows)
        runs_.push_back({static_cast<int64_t>(t), 0, c.positions[t], views_[static_cast<size_t>(c.sequences[t])]});
      ++runs_.back().count;
    }
  }
  std::span<const Run> runs() const { return runs_; }

 private:
  // All the keys and values of a sequence, token by token as an engine writes them.
  KvView Written(const AttentionCase& c, size_t s) {
    const int64_t capacity = (c.capacities[s] + 15) / 16 * 16;
    memory_.emplace_back(KeyBytes(c.dtype, c.shape, capacity));
    std::byte* k = memory_.back().data();
    memory_.emplace_back(ValueBytes(c.dtype, c.shape, capacity));
    const KvView view{k, memory_.back().data(), capacity};
    const auto [heads, kv_heads, d] = c.shape;
    std::vector<float> keys, values;  // [tokens, kv_heads, head_dim]
    for (int64_t j = 0; j < c.capacities[s]; ++j) {
      for (int64_t head = 0; head < kv_heads; ++head) {
        const auto at = static_cast<std::ptrdiff_t>(c.KvAt(s, head, j));
        keys.insert(keys.end(), c.keys[s].begin() + at, c.keys[s].begin() + at + d);
        values.insert(values.end(), c.values[s].begin() + at, c.values[s].begin() + at + d);
      }
    }
    // In two pieces, the second at a position that need not be even.
    const Bytes stored_keys = Stored(c.dtype, keys), stored_values = Stored(c.dtype, values);
    const int64_t first = c.capacities[s] / 2;
    const auto offset = static_cast<size_t>(first * kv_heads * d) * DTypeSize(c.dtype);
    WriteKeysAndValues(c.dtype, c.shape, view, 0, first, stored_keys.data(), stored_values.data(), kv_heads * d);
    WriteKeysAndValues(c.dtype, c.shape, view, first, c.capacities[s] - first, stored_keys.data() + offset,
                       stored_values.data() + offset, kv_heads * d);
    return view;
  }

  std::deque<Bytes> memory_;
  std::vector<KvView> views_;
  std::vector<Run> runs_;
};

Bytes RunAttention(const AttentionCase& c) {
  const Panels kv(c);
  const Bytes q = Stored(c.dtype, c.q);
  Bytes context(q.size());
  Attention(c.dtype, c.shape, q.data(), c.QueryStride(), kv.runs(), context.data());
  return context;
}

struct Steps {
  std::vector<float> scores, probs;  // [tokens, heads, keys]
  Bytes context;
};

Steps RunSteps(const AttentionCase& c, int64_t keys) {
  const Panels kv(c);
  const Bytes q = Stored(c.dtype, c.q);
  Steps steps;
  steps.scores.resize(static_cast<size_t>(c.Tokens() * c.shape.heads * keys), kNaN);
  steps.context.resize(q.size());
  AttentionScores(c.dtype, c.shape, q.data(), c.QueryStride(), kv.runs(), keys, steps.scores.data());
  steps.probs = steps.scores;
  AttentionProbs(c.dtype, c.shape, kv.runs(), keys, steps.probs.data());
  AttentionContext(c.dtype, c.shape, steps.probs.data(), kv.runs(), keys, steps.context.data());
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
    // Several blocks of rows a run, and runs of different length.
    std::vector<int32_t> sequences(130, 0), positions(130);
    for (int32_t t = 0; t < 130; ++t) {
      sequences[static_cast<size_t>(t)] = t < 101 ? 0 : 1;
      positions[static_cast<size_t>(t)] = t < 101 ? t + 30 : t - 101;
    }
    cases.push_back(Case({6, 2, 40}, {131, 29}, sequences, positions));
    return cases;
  }
};

INSTANTIATE_TEST_SUITE_P(, AttentionTest, testing::Values(DType::kF32, DType::kBF16, DType::kF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

// Each step from what the step before it gave.
TEST_P(AttentionTest, StepsAreTheTwins) {
  for (const AttentionCase& c : Cases()) {
    const auto [heads, kv_heads, d] = c.shape;
    const int64_t keys = c.Keys();
    const Steps steps = RunSteps(c, keys);
    const std::vector<float> context = Loaded(dtype_, steps.context);
    for (int64_t row = 0; row < c.Tokens() * heads; ++row) {
      const auto token = static_cast<size_t>(row / heads);
      const auto s = static_cast<size_t>(c.sequences[token]);
      const int64_t kv_head = row % heads / (heads / kv_heads);
      const int64_t valid = c.positions[token] + 1;
      double total = 0;
      for (int64_t j = 0; j < valid; ++j) {
        const float* q = &c.q[static_cast<size_t>(row * d)];
        const float* key = &c.keys[s][c.KvAt(s, kv_head, j)];
        double dot = 0, magnitude = 0;
        for (int64_t i = 0; i < d; ++i) {
          dot += double{q[i]} * key[i];
          magnitude += std::abs(double{q[i]} * key[i]);
        }
        const Interval product = Rounded(dtype_, Around(dot, kF32Error * magnitude));
        const double scale = 1 / std::sqrt(static_cast<double>(d));
        ExpectInside(steps.scores[row * keys + j], Rounded(dtype_, Widened(Scaled(product, scale))), {d, row, j});
        total += std::exp(double{steps.scores[row * keys + j]});
      }
      for (int64_t j = 0; j < valid; ++j) {
        const double p = std::exp(double{steps.scores[row * keys + j]}) / total;
        ExpectInside(steps.probs[row * keys + j], Rounded(dtype_, Around(p, 2 * kF32Error * p)), {d, row, j});
      }
      for (int64_t i = 0; i < d; ++i) {
        double sum = 0, magnitude = 0;
        for (int64_t j = 0; j < valid; ++j) {
          const double term = double{steps.probs[row * keys + j]} * c.values[s][c.KvAt(s, kv_head, j) + i];
          sum += term;
          magnitude += std::abs(term);
        }
        ExpectInside(context[row * d + i], Rounded(dtype_, Around(sum, kF32Error * magnitude)), {d, row, i});
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

TEST_P(AttentionTest, TheFutureAndOtherSequencesChangeNoBit) {
  const AttentionCase before = Ragged({6, 2, 17});
  AttentionCase after = before;
  // Everything that no token may see: keys beyond the last position of each sequence. (Values there are never written.)
  const std::vector<int64_t> seen = {5, 17, 9};
  for (size_t s = 0; s < 3; ++s) {
    for (int64_t kv_head = 0; kv_head < 2; ++kv_head) {
      for (int64_t j = seen[s]; j < after.capacities[s]; ++j) {
        std::fill_n(after.keys[s].begin() + static_cast<int64_t>(after.KvAt(s, kv_head, j)), 17, kNaN);
      }
    }
  }
  EXPECT_EQ(RunAttention(after), RunAttention(before));

  // A batch in one call gives what its tokens give one by one.
  const AttentionCase whole = Cases().back();
  const size_t row = static_cast<size_t>(whole.QueryStride()) * DTypeSize(dtype_);
  const Bytes context = RunAttention(whole);
  for (const size_t t : {0, 1, 47, 48, 100, 101, 129}) {
    AttentionCase alone = whole;
    alone.sequences = {whole.sequences[t]};
    alone.positions = {whole.positions[t]};
    const auto at = whole.q.begin() + static_cast<std::ptrdiff_t>(t) * whole.QueryStride();
    alone.q.assign(at, at + whole.QueryStride());
    const auto begin = context.begin() + static_cast<std::ptrdiff_t>(t * row);
    EXPECT_EQ(RunAttention(alone), Bytes(begin, begin + static_cast<std::ptrdiff_t>(row))) << t;
  }

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

TEST_P(AttentionTest, NoRunsAreNoWork) { Attention(dtype_, {2, 1, 4}, nullptr, 8, {}, nullptr); }

}  // namespace
}  // namespace lockstep::kernels
