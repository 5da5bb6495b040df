// Every kernel against its slow twin (test_values.h), on the instruction set of this run.
#include "engine/kernels.h"

#include "engine/test_values.h"

namespace lockstep::kernels {
namespace {

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
      Rope(dtype_, {bytes.data(), static_cast<int64_t>(positions.size()), heads, head_dim, heads * head_dim}, table,
           positions);
      EXPECT_EQ(Loaded(dtype_, bytes), expected) << Where(head_dim, heads);
    }
  }
}

TEST_P(KernelsTest, RopeAtPositionZeroIsTheIdentity) {
  const RopeTable table(RopeConfig(48), dtype_, 8);
  const std::vector<int32_t> positions(5, 0);
  const Bytes before = Stored(dtype_, Random(5 * 3 * 48, 100));
  Bytes bytes = before;
  Rope(dtype_, {bytes.data(), 5, 3, 48, 3 * 48}, table, positions);
  EXPECT_EQ(bytes, before);
}

TEST_P(KernelsTest, RopeKeepsTheNormOfEachPair) {
  constexpr int64_t kHeadDim = 48;
  const double step = dtype_ == DType::kF32 ? 0x1p-23 : dtype_ == DType::kF16 ? 0x1p-10 : 0x1p-7;
  const RopeTable table(RopeConfig(kHeadDim), dtype_, 4096);
  const std::vector<int32_t> positions = {1, 2, 100, 4095};
  const std::vector<float> x = Random(4 * 2 * kHeadDim, 2);
  Bytes bytes = Stored(dtype_, x);
  Rope(dtype_, {bytes.data(), 4, 2, kHeadDim, 2 * kHeadDim}, table, positions);
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

// [rows, (gate, up), width] from two matrices [rows, width].
Bytes GateUp(DType dtype, const std::vector<float>& gate, const std::vector<float>& up, int64_t rows) {
  const auto width = static_cast<std::ptrdiff_t>(gate.size()) / rows;
  std::vector<float> both;
  for (int64_t r = 0; r < rows; ++r) {
    both.insert(both.end(), gate.begin() + r * width, gate.begin() + (r + 1) * width);
    both.insert(both.end(), up.begin() + r * width, up.begin() + (r + 1) * width);
  }
  return Stored(dtype, both);
}

TEST_P(KernelsTest, SwiGluIsTheTwin) {
  for (const int64_t width : kCounts) {
    for (const int64_t rows : {1, 3}) {
      const std::vector<float> gate = Random(rows * width, 4), up = Random(rows * width, 2);
      Bytes bytes(gate.size() * DTypeSize(dtype_));
      SwiGlu(dtype_, GateUp(dtype_, gate, up, rows).data(), rows, width, bytes.data());
      const std::vector<float> y = Loaded(dtype_, bytes);
      for (size_t i = 0; i < y.size(); ++i) {
        const double silu = gate[i] / (1 + std::exp(-double{gate[i]}));
        const Interval rounded = Rounded(dtype_, Around(silu, std::abs(silu) * kF32Error));
        ExpectInside(y[i], Rounded(dtype_, Widened(Scaled(rounded, up[i]))), {width, rows, static_cast<int64_t>(i)});
      }
    }
  }
}

// The whole range of e^x, through 1 / (1 + e^-g): gates whose e^-g overflows, is subnormal, or both.
TEST_P(KernelsTest, SwiGluOfExtremeGates) {
  std::vector<float> gate = {1000, -1000, 0, 60000, -60000, -87.5F, -88.5F, -95, -103, -104.5F, 88.5F, 104};
  for (float& g : gate) g = Round(dtype_, g);
  const std::vector<float> up(gate.size(), 1);
  Bytes bytes(gate.size() * DTypeSize(dtype_));
  SwiGlu(dtype_, GateUp(dtype_, gate, up, 1).data(), 1, static_cast<int64_t>(gate.size()), bytes.data());
  const std::vector<float> y = Loaded(dtype_, bytes);
  for (size_t i = 0; i < y.size(); ++i) {
    // As PyTorch: e^-g in f32 is infinite from 88.7 on.
    const double e = std::exp(-double{gate[i]});
    const double silu = e > std::numeric_limits<float>::max() ? 0 : gate[i] / (1 + e);
    ExpectInside(y[i], Rounded(dtype_, Around(silu, std::abs(silu) * kF32Error)), {static_cast<int64_t>(i)});
  }
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
    both([&](Bytes& v) { Rope(dtype_, {v.data(), 3, 1, kWidth, kWidth}, table, std::vector<int32_t>{1, 2, 3}); });
    both([&](Bytes& v) { Add(dtype_, v.data(), other.data(), 3 * kWidth, v.data()); });
    both([&](Bytes& v) {
      const Bytes from = GateUp(dtype_, Loaded(dtype_, v), Loaded(dtype_, other), 3);
      SwiGlu(dtype_, from.data(), 3, kWidth, v.data());
    });
  }
}

TEST_P(KernelsTest, NoRowsAreNoWork) {
  RmsNorm(dtype_, nullptr, std::vector<float>(4, 1), 1e-6, 0, nullptr);
  Rope(dtype_, {nullptr, 0, 2, 4, 8}, RopeTable(RopeConfig(4), dtype_, 1), {});
  Add(dtype_, nullptr, nullptr, 0, nullptr);
  SwiGlu(dtype_, nullptr, 0, 4, nullptr);
}

}  // namespace
}  // namespace lockstep::kernels
