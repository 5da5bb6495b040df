// Linear against a naive product in double, through oneDNN and through panels: which dtype takes which depends on the
// machine, so that the whole program also runs under ONEDNN_MAX_CPU_ISA.
#include "engine/linear.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <memory>
#include <random>
#include <thread>

#include "base/convert.h"
#include "lockstep/engine.h"

namespace lockstep {
namespace {

using Bytes = std::vector<std::byte>;

constexpr DType kStorages[] = {DType::kF32, DType::kBF16, DType::kF16};

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

std::vector<float> Rounded(DType dtype, const std::vector<float>& values) {
  return Loaded(dtype, Stored(dtype, values));
}

float Round(DType dtype, double value) {
  return WithStorageType(dtype, [&]<typename T>() { return ToFloat(FromFloat<T>(static_cast<float>(value))); });
}

std::vector<float> Random(int64_t count, float scale = 1, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = uniform(random);
  return values;
}

Bytes Apply(const Linear& linear, DType storage, const std::vector<float>& x, int64_t rows) {
  static thread_local LinearWorkspace workspace;
  const Bytes from = Stored(storage, x);
  Bytes to(static_cast<size_t>(rows * linear.out()) * DTypeSize(storage), std::byte{0x7F});
  linear.Apply(from.data(), rows, to.data(), workspace);
  return to;
}

Linear Packed(DType storage, int64_t out, int64_t in, const std::vector<float>& values) {
  return {Stored(storage, values).data(), out, in, storage};
}

// Where an output may lie: the sum is in f32, whose error is measured by the sum of the magnitudes, and is rounded
// once.
struct Interval {
  float low, high;
};

std::vector<Interval> NaiveProduct(DType storage, const std::vector<float>& x, const std::vector<float>& w,
                                   int64_t rows, int64_t n, int64_t k) {
  std::vector<Interval> out(static_cast<size_t>(rows * n));
  for (size_t at = 0; at < out.size(); ++at) {
    const float* row = &x[at / static_cast<size_t>(n) * static_cast<size_t>(k)];
    const float* column = &w[at % static_cast<size_t>(n) * static_cast<size_t>(k)];
    double sum = 0, magnitude = 0;
    for (int64_t i = 0; i < k; ++i) {
      const double term = double{row[i]} * column[i];
      sum += term;
      magnitude += std::abs(term);
    }
    out[at] = {Round(storage, sum - 4e-7 * magnitude), Round(storage, sum + 4e-7 * magnitude)};
  }
  return out;
}

class LinearTest : public testing::TestWithParam<DType> {
 protected:
  const DType storage_ = GetParam();
};

INSTANTIATE_TEST_SUITE_P(, LinearTest, testing::ValuesIn(kStorages),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

TEST_P(LinearTest, IsTheNaiveProduct) {
  constexpr int64_t kDistinct = 17;  // rows of x; 300 rows repeat them
  constexpr int64_t kSizes[] = {1, 3, 64, 255, 256, 257, 1000};
  for (const int64_t n : kSizes) {
    for (const int64_t k : kSizes) {
      const std::vector<float> w = Rounded(storage_, Random(n * k));
      const Linear linear = Packed(storage_, n, k, w);
      ASSERT_EQ(linear.out(), n);
      ASSERT_EQ(linear.in(), k);
      const std::vector<float> distinct = Rounded(storage_, Random(kDistinct * k, 2, 5));
      const std::vector<Interval> expected = NaiveProduct(storage_, distinct, w, kDistinct, n, k);
      for (const int64_t rows : {1, 2, 5, 17, 300}) {
        std::vector<float> x(static_cast<size_t>(rows * k));
        for (size_t i = 0; i < x.size(); ++i) x[i] = distinct[i % distinct.size()];
        const std::vector<float> y = Loaded(storage_, Apply(linear, storage_, x, rows));
        for (size_t i = 0; i < y.size(); ++i) {
          const auto [low, high] = expected[i % expected.size()];
          if (low <= y[i] && y[i] <= high) continue;
          FAIL() << "[" << n << ", " << k << "], " << rows << " rows, element " << i << ": " << y[i] << " is not in ["
                 << low << ", " << high << "]";
        }
      }
    }
  }
}

// A row's bits depend on nothing but the row.
TEST_P(LinearTest, NumbersOfRowsAndThreadsChangeNoBit) {
  const int threads = omp_get_max_threads();
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1000, 1024}, {192, 3072}, {2048, 192}}) {
    const Linear linear = Packed(storage_, n, k, Random(n * k));
    const std::vector<float> x = Random(300 * k, 2, 5);
    const Bytes expected = Apply(linear, storage_, x, 300);
    for (const int count : {1, 2, 3, 4}) {
      omp_set_num_threads(count);
      for (const int64_t rows : {1, 2, 7, 64, 300}) {
        const std::vector<float> first(x.begin(), x.begin() + rows * k);
        LinearWorkspace workspace;  // oneDNN decides when it makes its kernel
        const Bytes from = Stored(storage_, first);
        Bytes y(static_cast<size_t>(rows * n) * DTypeSize(storage_));
        linear.Apply(from.data(), rows, y.data(), workspace);
        EXPECT_EQ(y, Bytes(expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(y.size())))
            << "[" << n << ", " << k << "], " << rows << " rows, " << count << " threads";
      }
    }
  }
  omp_set_num_threads(threads);
}

TEST_P(LinearTest, NoRowsAreNoWork) {
  LinearWorkspace workspace;
  Packed(storage_, 3, 5, Random(15)).Apply(nullptr, 0, nullptr, workspace);
}

TEST_P(LinearTest, AgainIsTheSameWhateverWasBetween) {
  const Linear linear = Packed(storage_, 257, 255, Random(257 * 255));
  const std::vector<float> x = Random(17 * 255), other = Random(300 * 255);
  const Bytes first = Apply(linear, storage_, x, 17);
  Apply(linear, storage_, other, 300);
  Apply(linear, storage_, other, 1);
  EXPECT_EQ(Apply(linear, storage_, x, 17), first);
}

TEST_P(LinearTest, NaNAndInfinityDoNotCrash) {
  const Linear linear = Packed(storage_, 64, 33, Random(64 * 33));
  std::vector<float> x = Random(2 * 33);
  const std::vector<float> clean = Loaded(storage_, Apply(linear, storage_, x, 2));
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    x[33 + 4] = bad;
    const std::vector<float> y = Loaded(storage_, Apply(linear, storage_, x, 2));
    for (size_t i = 0; i < 64; ++i) {
      EXPECT_EQ(y[i], clean[i]) << i;
      EXPECT_FALSE(std::isfinite(y[64 + i])) << i;
    }
  }
}

// ---- The packed weight again ----

TEST_P(LinearTest, UnpackedIsWhatWasPacked) {
  constexpr int64_t kShapes[][2] = {{1, 1}, {3, 64}, {64, 3}, {255, 257}, {256, 256}, {1000, 64}};
  for (const auto& [n, k] : kShapes) {
    const std::vector<float> w = Random(n * k);
    EXPECT_EQ(Packed(storage_, n, k, w).Unpacked(), Stored(storage_, w)) << "[" << n << ", " << k << "]";
  }
}

// ---- Threads ----

// Same numbers of rows, so that both threads use one primitive, and different ones, so that they take it from each
// other.
TEST_P(LinearTest, TwoThreadsAtOnceGiveWhatEachGivesAlone) {
  constexpr int64_t kShapes[][3] = {{255, 1000, 300}, {256, 64, 17}, {1000, 255, 1}};
  for (const auto& [n, k, rows] : kShapes) {
    const Linear linear = Packed(storage_, n, k, Random(n * k));
    for (const int64_t fewer : {0, 1}) {
      const int64_t row_counts[2] = {rows + 1, rows + 1 - fewer};
      std::vector<float> x[2];
      Bytes alone[2];
      for (uint32_t t = 0; t < 2; ++t) {
        x[t] = Random(row_counts[t] * k, 1, t + 1);
        alone[t] = Apply(linear, storage_, x[t], row_counts[t]);
      }
      int different[2] = {0, 0};
      const auto work = [&](size_t t) {
        for (int i = 0; i < 10; ++i) different[t] += Apply(linear, storage_, x[t], row_counts[t]) != alone[t];
      };
      std::thread thread(work, 0);
      work(1);
      thread.join();
      EXPECT_EQ(different[0] + different[1], 0) << "[" << n << ", " << k << "], " << rows << " rows";
    }
  }
}

TEST_P(LinearTest, MovesFromThreadToThread) {
  const std::vector<float> w = Random(255 * 257);
  const std::vector<float> x = Random(300 * 257);
  std::unique_ptr<Linear> linear;
  Bytes there;
  std::thread([&] {
    linear = std::make_unique<Linear>(Packed(storage_, 255, 257, w));
    there = Apply(*linear, storage_, x, 300);
  }).join();
  EXPECT_EQ(Apply(*linear, storage_, x, 300), there);
  std::thread([&] { linear.reset(); }).join();
}

TEST(MatmulDescription, NamesTheKernelsAndBf16) {
  const std::string text = MatmulDescription();
  EXPECT_NE(text.find("kernels"), std::string::npos) << text;
  EXPECT_NE(text.find("bf16"), std::string::npos) << text;
}

}  // namespace
}  // namespace lockstep
