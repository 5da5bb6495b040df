// From rows to hashes and sketches (docs/golden.md has the formulas). The sketch is that of Alon, Matias and Szegedy
// (1996): a sum of all values with random signs, whose square is an unbiased estimate of the sum of squares; and it is
// linear, so that the difference of two sketches is the sketch of the difference.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "compare/metrics.h"
#include "lockstep/golden.h"
#include "trace/rows.h"

namespace lockstep {

// Rows [begin, end) of a point.
struct BlockRange {
  size_t begin = 0;
  size_t end = 0;
};

// No block spans two sequences; a sequence's first row, often a thousand times larger than the others, is one by
// itself. sequences: [rows], equal ones together. REQUIRES: block_rows > 0.
std::vector<BlockRange> BlocksOf(std::span<const int32_t> sequences, int32_t block_rows);

// How many rows make a block in a golden of that many rows: 1 for short runs.
int32_t BlockRowsFor(size_t rows);

struct BlockSums {
  GoldenBlock block;
  int64_t count = 0;  // of finite values
  double sum = 0;
  double squares = 0;
  double min = 0, max = 0;  // where count > 0
  int64_t nans = 0, infs = 0;
};

// Adds up one block, row after row in one thread. `first`: its first row's index in the point, which seeds the signs.
BlockSums SumBlock(const std::vector<Piece>& pieces, std::span<const RowAt> rows, size_t first);

// Blocks in order; those that are missing are left out. dtype is not set.
SideStats StatsOf(const std::vector<std::optional<BlockSums>>& blocks);

// The square of the distance between what two blocks were made of, estimated without bias, with a relative standard
// error of at most sqrt(2 / kProjections).
double SquaredDistance(const GoldenBlock& a, const GoldenBlock& b);

}  // namespace lockstep
