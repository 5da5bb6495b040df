// Linear against a naive product in double, on the packed and on the widened path: which dtype takes which depends on
// the machine, so that the whole program also runs under ONEDNN_MAX_CPU_ISA.
#include "engine/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <thread>

#include "base/convert.h"
#include "base/fingerprint.h"

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

// A weight of the checkpoint, at an odd address as in a mapped file.
class CheckpointWeight {
 public:
  CheckpointWeight(DType dtype, int64_t out, int64_t in, const std::vector<float>& values) : memory_(1) {
    const Bytes bytes = Stored(dtype, values);
    memory_.insert(memory_.end(), bytes.begin(), bytes.end());
    weight_ = {"weight", dtype, {out, in}, memory_.data() + 1, bytes.size()};
  }
  const Weight& get() const { return weight_; }
  std::vector<float> Values() const { return Loaded(weight_.dtype, {memory_.begin() + 1, memory_.end()}); }

 private:
  Bytes memory_;
  Weight weight_;
};

Bytes Apply(const Linear& linear, DType storage, const std::vector<float>& x, int64_t rows) {
  const Bytes from = Stored(storage, x);
  Bytes to(static_cast<size_t>(rows * linear.out()) * DTypeSize(storage), std::byte{0x7F});
  linear.Apply(from.data(), rows, to.data());
  return to;
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
  size_t shape = 0;  // each takes the next dtype of the checkpoint; small ones take all
  for (const int64_t n : kSizes) {
    for (const int64_t k : kSizes) {
      ++shape;
      for (size_t d = 0; d < 3; ++d) {
        if (n * k > 64 * 255 && d != shape % 3) continue;
        const CheckpointWeight weight(kStorages[d], n, k, Random(n * k));
        const Linear linear(weight.get(), storage_);
        ASSERT_EQ(linear.out(), n);
        ASSERT_EQ(linear.in(), k);
        const std::vector<float> distinct = Rounded(storage_, Random(kDistinct * k, 2, 5));
        const std::vector<Interval> expected =
            NaiveProduct(storage_, distinct, Rounded(storage_, weight.Values()), kDistinct, n, k);
        for (const int64_t rows : {1, 2, 17, 300}) {
          std::vector<float> x(static_cast<size_t>(rows * k));
          for (size_t i = 0; i < x.size(); ++i) x[i] = distinct[i % distinct.size()];
          const std::vector<float> y = Loaded(storage_, Apply(linear, storage_, x, rows));
          for (size_t i = 0; i < y.size(); ++i) {
            const auto [low, high] = expected[i % expected.size()];
            if (low <= y[i] && y[i] <= high) continue;
            FAIL() << DTypeName(kStorages[d]) << " [" << n << ", " << k << "], " << rows << " rows, element " << i
                   << ": " << y[i] << " is not in [" << low << ", " << high << "]";
          }
        }
      }
    }
  }
}

TEST_P(LinearTest, NoRowsAreNoWork) {
  const CheckpointWeight weight(DType::kF32, 3, 5, Random(15));
  const Linear linear(weight.get(), storage_);
  linear.Apply(nullptr, 0, nullptr);
}

TEST_P(LinearTest, AgainIsTheSameWhateverWasBetween) {
  const CheckpointWeight weight(DType::kF32, 257, 255, Random(257 * 255));
  const Linear linear(weight.get(), storage_);
  const std::vector<float> x = Random(17 * 255), other = Random(300 * 255);
  const Bytes first = Apply(linear, storage_, x, 17);
  Apply(linear, storage_, other, 300);
  Apply(linear, storage_, other, 1);
  EXPECT_EQ(Apply(linear, storage_, x, 17), first);
}

TEST_P(LinearTest, NaNAndInfinityDoNotCrash) {
  const CheckpointWeight weight(DType::kF32, 64, 33, Random(64 * 33));
  const Linear linear(weight.get(), storage_);
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

// ---- Fingerprint ----

TEST_P(LinearTest, FingerprintIsThatOfTheRoundedWeight) {
  constexpr int64_t kShapes[][2] = {{1, 1}, {3, 64}, {64, 3}, {255, 257}, {256, 256}, {1000, 64}};
  for (const auto& [n, k] : kShapes) {
    for (const DType checkpoint_dtype : kStorages) {
      const CheckpointWeight weight(checkpoint_dtype, n, k, Random(n * k));
      const Bytes rounded = Stored(storage_, weight.Values());
      EXPECT_EQ(Linear(weight.get(), storage_).Fingerprint(), FingerprintOfMatrix(storage_, rounded.data(), n, k))
          << DTypeName(checkpoint_dtype) << " [" << n << ", " << k << "]";
    }
  }
}

TEST_P(LinearTest, FingerprintChangesWithEachElement) {
  constexpr int64_t kOut = 65, kIn = 33;
  std::vector<float> values = Rounded(storage_, Random(kOut * kIn));
  const auto fingerprint = [&] {
    return Linear(CheckpointWeight(storage_, kOut, kIn, values).get(), storage_).Fingerprint();
  };
  std::map<std::string, size_t> seen = {{fingerprint(), values.size()}};
  for (size_t i = 0; i < values.size(); i += 97) {
    const float before = values[i];
    values[i] = -before;
    const auto [other, is_new] = seen.emplace(fingerprint(), i);
    EXPECT_TRUE(is_new) << i << " gives the fingerprint of " << other->second;
    values[i] = before;
  }
}

TEST_P(LinearTest, FingerprintChangesWithTheSmallestStep) {
  std::vector<float> values(65 * 33, 1.0F);
  const std::string before = Linear(CheckpointWeight(storage_, 65, 33, values).get(), storage_).Fingerprint();
  values[1000] = storage_ == DType::kF32 ? 1 + 0x1p-23F : storage_ == DType::kF16 ? 1 + 0x1p-10F : 1 + 0x1p-7F;
  EXPECT_NE(Linear(CheckpointWeight(storage_, 65, 33, values).get(), storage_).Fingerprint(), before);
}

// ---- Threads ----

// Same numbers of rows, so that both threads use one primitive, and different ones, so that they take it from each
// other.
TEST_P(LinearTest, TwoThreadsAtOnceGiveWhatEachGivesAlone) {
  constexpr int64_t kShapes[][3] = {{255, 1000, 300}, {256, 64, 17}, {1000, 255, 1}};
  for (const auto& [n, k, rows] : kShapes) {
    const CheckpointWeight weight(DType::kF32, n, k, Random(n * k));
    const Linear linear(weight.get(), storage_);
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
  const CheckpointWeight weight(DType::kF32, 255, 257, Random(255 * 257));
  const std::vector<float> x = Random(300 * 257);
  std::unique_ptr<Linear> linear;
  Bytes there;
  std::thread([&] {
    linear = std::make_unique<Linear>(weight.get(), storage_);
    there = Apply(*linear, storage_, x, 300);
  }).join();
  EXPECT_EQ(Apply(*linear, storage_, x, 300), there);
  std::thread([&] { linear.reset(); }).join();
}

TEST(MatmulDescription, NamesTheLibraryAndBf16) {
  const std::string text = MatmulDescription();
  EXPECT_NE(text.find("oneDNN"), std::string::npos) << text;
  EXPECT_NE(text.find("bf16"), std::string::npos) << text;
}

}  // namespace
}  // namespace lockstep
