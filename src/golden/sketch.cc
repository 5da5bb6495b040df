#include "golden/sketch.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/convert.h"
#include "base/fingerprint.h"
#include "base/round.h"

namespace lockstep {
namespace {

constexpr size_t kMostSmallRows = 32;  // so many rows are kept one by one
constexpr size_t kBlocks = 16;         // of longer runs
constexpr size_t kChunk = 64;          // elements that share a word of signs
constexpr size_t kLanes = 4;           // sums that run side by side, always added up in the same order
constexpr uint32_t kNaN = 0x7FC00000;

using Lanes = std::array<double, kLanes>;

double Total(const Lanes& lanes) { return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]); }

float Narrowed(double value) {
  constexpr double kMost = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value, -kMost, kMost));
}

class BlockAdder {
 public:
  // values: [count], one row; `row`: its index in the point; `local`: its index in the block.
  void AddRow(std::span<float> values, uint64_t row, uint64_t local) {
    const uint64_t hash = HashAndZero(values);
    for (size_t begin = 0; begin < values.size(); begin += kChunk) {
      const std::span<const float> chunk = values.subspan(begin, std::min(kChunk, values.size() - begin));
      AddMoments(chunk);
      for (size_t k = 0; k < kProjections; ++k) {
        AddSigned(chunk, SplitMix64(SplitMix64(row * kProjections + k) + begin / kChunk), &projections_[k]);
      }
    }
    hash_ += FingerprintFactor(local + (uint64_t{1} << 32)) * hash;
  }

  BlockSums Finish() {
    BlockSums out = sums_;
    out.sum = Total(sum_);
    out.squares = Total(squares_);
    out.block.hash = hash_;
    out.block.norm = Narrowed(std::sqrt(out.squares));
    for (size_t k = 0; k < kProjections; ++k) out.block.sketch[k] = Narrowed(Total(projections_[k]));
    return out;
  }

 private:
  // Returns the hash of the bits; then puts 0 where a value is not finite, and counts.
  uint64_t HashAndZero(std::span<float> values) {
    for (size_t i = factors_.size(); i < values.size(); ++i) factors_.push_back(FingerprintFactor(i));
    uint64_t hash = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      uint32_t bits = std::bit_cast<uint32_t>(values[i]);
      if ((bits & 0x7F800000u) == 0x7F800000u) {
        const bool nan = (bits & 0x007FFFFFu) != 0;
        if (nan) bits = kNaN;
        (nan ? sums_.nans : sums_.infs) += 1;
        values[i] = 0;
      } else {
        sums_.max = sums_.count == 0 ? values[i] : std::max<double>(sums_.max, values[i]);
        sums_.min = sums_.count == 0 ? values[i] : std::min<double>(sums_.min, values[i]);
        ++sums_.count;
      }
      hash += factors_[i] * bits;
    }
    return hash;
  }

  void AddMoments(std::span<const float> chunk) {
    for (size_t i = 0; i < chunk.size(); ++i) {
      const double value = chunk[i];
      sum_[i % kLanes] += value;
      squares_[i % kLanes] += value * value;
    }
  }

  static void AddSigned(std::span<const float> chunk, uint64_t signs, Lanes* lanes) {
    for (size_t i = 0; i < chunk.size(); ++i) {
      const uint64_t sign = (signs >> i) << 63;
      (*lanes)[i % kLanes] += std::bit_cast<double>(std::bit_cast<uint64_t>(static_cast<double>(chunk[i])) ^ sign);
    }
  }

  std::vector<uint64_t> factors_;  // by element
  uint64_t hash_ = 0;
  Lanes sum_{}, squares_{};
  std::array<Lanes, kProjections> projections_{};
  BlockSums sums_;
};

}  // namespace

int32_t BlockRowsFor(size_t rows) { return rows <= kMostSmallRows ? 1 : static_cast<int32_t>(CeilDiv(rows, kBlocks)); }

std::vector<BlockRange> BlocksOf(std::span<const int32_t> sequences, int32_t block_rows) {
  const auto most = static_cast<size_t>(block_rows);
  std::vector<BlockRange> blocks;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const bool first = i == 0 || sequences[i] != sequences[i - 1];
    const bool second = i > 0 && (i == 1 || sequences[i - 1] != sequences[i - 2]);
    if (first || second || i - blocks.back().begin == most) blocks.push_back({i, i});
    blocks.back().end = i + 1;
  }
  return blocks;
}

BlockSums SumBlock(const std::vector<Piece>& pieces, std::span<const RowAt> rows, size_t first) {
  BlockAdder adder;
  std::vector<float> values;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Piece& piece = pieces[static_cast<size_t>(rows[i].piece)];
    values.resize(static_cast<size_t>(piece.row_size()));
    piece.Read(rows[i].row, values.data());
    adder.AddRow(values, first + i, i);
  }
  return adder.Finish();
}

SideStats StatsOf(const std::vector<std::optional<BlockSums>>& blocks) {
  SideStats stats;
  double sum = 0, squares = 0;
  int64_t count = 0;
  for (const std::optional<BlockSums>& block : blocks) {
    if (!block) continue;
    stats.nan_count += block->nans;
    stats.inf_count += block->infs;
    if (block->count == 0) continue;
    stats.min = count == 0 ? block->min : std::min(stats.min, block->min);
    stats.max = count == 0 ? block->max : std::max(stats.max, block->max);
    sum += block->sum;
    squares += block->squares;
    count += block->count;
  }
  if (count == 0) return stats;
  stats.mean = sum / static_cast<double>(count);
  stats.std = std::sqrt(std::max(0.0, squares / static_cast<double>(count) - stats.mean * stats.mean));
  return stats;
}

double SquaredDistance(const GoldenBlock& a, const GoldenBlock& b) {
  if (a.hash == b.hash) return 0;
  double sum = 0;
  for (size_t k = 0; k < kProjections; ++k) {
    const double difference = static_cast<double>(a.sketch[k]) - static_cast<double>(b.sketch[k]);
    sum += difference * difference;
  }
  return sum / kProjections;
}

}  // namespace lockstep
