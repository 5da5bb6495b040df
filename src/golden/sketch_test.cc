#include "golden/sketch.h"

#include <gmock/gmock.h>

#include <cmath>
#include <deque>
#include <limits>

#include "base/convert.h"
#include "base/fingerprint.h"

namespace lockstep {
namespace {

using testing::ElementsAre;

// Rows of one tensor of that dtype, as a piece.
struct Fixture {
  explicit Fixture(const std::vector<float>& values, int64_t rows, DType dtype = DType::kF32) {
    const auto width = static_cast<int64_t>(values.size()) / rows;
    bytes.resize(values.size() * DTypeSize(dtype));
    NarrowFromFloat(dtype, values.data(), values.size(), bytes.data());
    tensor.dtype = dtype;
    tensor.shape = {rows, width};
    tensor.data = bytes.data();
    tensor.bytes = bytes.size();
    pieces.push_back(Piece::View(tensor, {"hidden"}, {}));
    for (int32_t i = 0; i < rows; ++i) at.push_back({0, i});
  }
  BlockSums Sum(size_t first = 0) const { return SumBlock(pieces, at, first); }

  std::vector<std::byte> bytes;
  TraceTensor tensor;
  std::vector<Piece> pieces;
  std::vector<RowAt> at;
};

// Uniform in [-1, 1).
float Uniform(uint64_t key) { return static_cast<float>(static_cast<double>(SplitMix64(key)) * 0x1p-63 - 1); }

std::vector<float> Random(size_t count, uint64_t seed) {
  std::vector<float> values;
  for (size_t i = 0; i < count; ++i) values.push_back(Uniform(seed * 1000003 + i));
  return values;
}

TEST(Blocks, KeepFirstRowsAndSequencesApart) {
  const auto sizes = [](const std::vector<int32_t>& sequences, int32_t most) {
    std::vector<size_t> out;
    size_t next = 0;
    for (const BlockRange& block : BlocksOf(sequences, most)) {
      EXPECT_EQ(block.begin, next);
      next = block.end;
      out.push_back(block.end - block.begin);
    }
    EXPECT_EQ(next, sequences.size());
    return out;
  };
  EXPECT_THAT(sizes({0, 0, 0, 0, 0, 0}, 2), ElementsAre(1, 2, 2, 1));
  EXPECT_THAT(sizes({0, 0, 0, 3, 3, 3, 3}, 2), ElementsAre(1, 2, 1, 2, 1));
  EXPECT_THAT(sizes({0, 1, 2}, 5), ElementsAre(1, 1, 1));
  EXPECT_THAT(sizes({0, 0, 0}, 1), ElementsAre(1, 1, 1));
  EXPECT_THAT(sizes({}, 3), ElementsAre());
}

TEST(Blocks, ShortRunsAreKeptRowByRow) {
  EXPECT_EQ(BlockRowsFor(1), 1);
  EXPECT_EQ(BlockRowsFor(32), 1);
  EXPECT_EQ(BlockRowsFor(33), 3);
  EXPECT_EQ(BlockRowsFor(512), 32);
}

// The hash is the fingerprint of docs/trace-format.md, of the rows as f32.
TEST(Sketch, HashIsTheFingerprintOfTheRows) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Fixture rows(Random(3 * 130, 1), 3, dtype);
    char hash[17];
    std::snprintf(hash, sizeof(hash), "%016llx", static_cast<unsigned long long>(rows.Sum().block.hash));
    EXPECT_EQ(hash, FingerprintOfMatrix(dtype, rows.bytes.data(), 3, 130));
  }
}

// The slow twin: one sign at a time, as docs/golden.md says it.
TEST(Sketch, IsWhatTheDocumentSays) {
  const size_t width = 201, first = 5;
  const std::vector<float> values = Random(2 * width, 2);
  const BlockSums sums = Fixture(values, 2).Sum(first);
  for (size_t k = 0; k < kProjections; ++k) {
    double expected = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t row = first + i / width, element = i % width;
      const uint64_t word = SplitMix64(SplitMix64(row * kProjections + k) + element / 64);
      expected += (word >> (element % 64) & 1) != 0 ? -values[i] : values[i];
    }
    EXPECT_NEAR(sums.block.sketch[k], expected, 1e-5) << k;
  }
  double squares = 0, sum = 0;
  for (const float value : values) squares += static_cast<double>(value) * value, sum += value;
  EXPECT_NEAR(sums.block.norm, std::sqrt(squares), 1e-5);
  EXPECT_NEAR(sums.sum, sum, 1e-9);
}

TEST(Sketch, OneChangedElementChangesTheHash) {
  std::vector<float> values = Random(2 * 70, 3);
  const uint64_t before = Fixture(values, 2).Sum().block.hash;
  values[99] = std::nextafter(values[99], 2.0f);
  EXPECT_NE(Fixture(values, 2).Sum().block.hash, before);
}

TEST(Sketch, NotFiniteValuesAreCountedAndLeftOut) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  const BlockSums sums = Fixture({3, kNaN, -kInf, -4}, 1).Sum();
  EXPECT_EQ(sums.nans, 1);
  EXPECT_EQ(sums.infs, 1);
  EXPECT_EQ(sums.count, 2);
  EXPECT_EQ(sums.min, -4);
  EXPECT_EQ(sums.max, 3);
  EXPECT_EQ(sums.block.norm, 5);
  EXPECT_NE(sums.block.hash, Fixture({3, 0, 0, -4}, 1).Sum().block.hash);
  EXPECT_EQ(Fixture({3, -kNaN, -kInf, -4}, 1).Sum().block.hash, sums.block.hash) << "any NaN is one NaN";
  // Too large for f32, and yet a number.
  EXPECT_TRUE(std::isfinite(Fixture(std::vector<float>(64, 3e38f), 1).Sum().block.norm));
}

// Over many differences, the estimate of |a - b|^2 is right on average and scatters as sqrt(2 / k); also for
// differences that many rows share, and for those of one element.
TEST(Sketch, EstimatesTheSquaredDistanceWithoutBias) {
  enum class Kind { kDense, kSameInEveryRow, kOneElement };
  for (const Kind kind : {Kind::kDense, Kind::kSameInEveryRow, Kind::kOneElement}) {
    constexpr int kTrials = 4000;
    constexpr size_t kWidth = 100, kRows = 3;
    double sum = 0, squares = 0;
    for (int trial = 0; trial < kTrials; ++trial) {
      const std::vector<float> a = Random(kRows * kWidth, static_cast<uint64_t>(trial));
      std::vector<float> b = a;
      double distance = 0;
      for (size_t i = 0; i < b.size(); ++i) {
        const size_t key = kind == Kind::kSameInEveryRow ? i % kWidth : i;
        if (kind != Kind::kOneElement || i == 77) b[i] += 0.1f * Uniform(9000000 + key);
        distance += std::pow(static_cast<double>(b[i]) - a[i], 2);
      }
      // Another first row, other signs.
      const auto first = static_cast<size_t>(trial) * kRows;
      const double estimate =
          SquaredDistance(Fixture(a, kRows).Sum(first).block, Fixture(b, kRows).Sum(first).block) / distance;
      sum += estimate;
      squares += estimate * estimate;
    }
    const double mean = sum / kTrials, deviation = std::sqrt(squares / kTrials - mean * mean);
    EXPECT_NEAR(mean, 1, 0.05);
    if (kind == Kind::kOneElement) {
      EXPECT_LT(deviation, 1e-3) << "a single element is found exactly";
    } else {
      EXPECT_NEAR(deviation, std::sqrt(2.0 / kProjections), 0.06);
    }
  }
}

TEST(Sketch, EqualHashesAreNoDistance) {
  GoldenBlock a, b;
  b.sketch[0] = 1;
  EXPECT_EQ(SquaredDistance(a, b), 0);
  b.hash = 1;
  EXPECT_EQ(SquaredDistance(a, b), 1.0 / kProjections);
}

}  // namespace
}  // namespace lockstep
