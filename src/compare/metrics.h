// The figures of one point: one streaming pass over the joined rows of both sides.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "compare/accumulator.h"
#include "compare/kernels.h"
#include "lockstep/compare.h"
#include "trace/rows.h"

namespace lockstep {

struct DetailSums;

struct RowAt {
  int32_t piece = -1;
  int32_t row = -1;
};

// One token that both sides have.
struct JoinedRow {
  int32_t sequence = 0;  // the reference's number
  int32_t position = 0;
  RowAt reference;
  RowAt candidate;
};

enum class RowKind : uint8_t {
  kPlain,
  kHeads,   // the first axis of a row is the heads
  kScores,  // [heads, key], masked
  kProbs,
};

// REQUIRES: all pieces that `rows` names have the same row shape; attention's may differ in the last axis.
struct PointPass {
  const std::vector<Piece>* reference = nullptr;
  const std::vector<Piece>* candidate = nullptr;
  std::span<const JoinedRow> rows;
  RowKind kind = RowKind::kPlain;
  std::optional<Limit> user;
  DetailSums* detail = nullptr;   // null: not wanted
  std::span<const Phase> phases;  // by the candidate's piece; only read for `detail`
};

// Of one joined row.
struct RowDigest {
  // Hashes of the values; 0: all are zeros.
  uint64_t reference = 0;
  uint64_t candidate = 0;
  float norm = 0;      // of the candidate's row
  float distance = 0;  // |candidate - reference|
};

// Adds the rows to `totals`, one ParallelFor over blocks of them, and returns what is kept of each row. The sums are
// the same whatever the number of threads, and whether the rows come at once or, in the same order, in calls of whole
// pieces of the candidate. REQUIRES: rows sorted by the candidate's piece and row.
std::vector<RowDigest> MeasureRows(const PointPass& pass, Totals* totals);

// |a - b| / |b| of two rows of one side, for telling stale data from data that hardly changes; 0 where their sizes
// differ (attention).
double RowDistance(const Piece& piece_a, int64_t row_a, const Piece& piece_b, int64_t row_b);

// True where a score counts as masked: -inf, or at most half of the lowest finite value of the dtype it is stored in.
bool IsMasked(float score, DType dtype);

}  // namespace lockstep
