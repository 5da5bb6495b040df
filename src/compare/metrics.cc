#include "compare/metrics.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "base/convert.h"
#include "base/parallel.h"
#include "compare/detail.h"

namespace lockstep {
namespace {

constexpr int64_t kBlockElements = 1 << 16;

// Buffers of one thread's block.
struct Scratch {
  std::vector<std::byte> row_a, row_b;  // gathered
  std::vector<float> a, b;
};

void MeasurePlainRow(const PointPass& pass, const JoinedRow& joined, RowMeter& meter, Scratch& scratch) {
  const Piece& piece_a = (*pass.candidate)[joined.candidate.piece];
  const Piece& piece_b = (*pass.reference)[joined.reference.piece];
  const bool by_head = pass.kind == RowKind::kHeads;
  const auto size = static_cast<size_t>(piece_b.row_size());
  if (size == 0) return;
  const Piece::Row a = piece_a.At(joined.candidate.row, scratch.row_a);
  const Piece::Row b = piece_b.At(joined.reference.row, scratch.row_b);
  Segment segment{a.dtype, a.data, b.dtype, b.data, size};
  if (by_head) segment.head = 0, segment.part = size / static_cast<size_t>(piece_b.row_shape()[0]);
  meter.Add(segment);
}

// One side's attention row by absolute key position, as far as the row's own; what lies beyond is only checked.
class KeyRow {
 public:
  KeyRow(const Piece& piece, int64_t row, RowKind kind, int32_t position, std::vector<float>& buffer)
      : kind_(kind), position_(position), dtype_(piece.dtype()), values_(buffer) {
    values_.resize(static_cast<size_t>(piece.row_size()));
    piece.Read(row, values_.data());
    stored_keys_ = static_cast<size_t>(piece.row_shape().back());
    if (!piece.keys().empty()) keys_ = piece.keys().data() + static_cast<size_t>(row) * stored_keys_;
  }

  struct Entry {
    int32_t key;
    float value;
  };

  // The entries of a head that are not masked, sorted by key. Returns the first key beyond the row's own position that
  // is not masked; -1 if there is none.
  int32_t Unmasked(size_t head, std::vector<Entry>& entries) const {
    entries.clear();
    const float* stored = values_.data() + head * stored_keys_;
    int32_t beyond = -1;
    for (size_t i = 0; i < stored_keys_; ++i) {
      const int32_t key = keys_ ? keys_[i] : static_cast<int32_t>(i);
      const bool masked = kind_ == RowKind::kScores ? IsMasked(stored[i], dtype_) : stored[i] == 0;
      if (key < 0 || masked) continue;
      if (key > position_) {
        if (beyond < 0 || key < beyond) beyond = key;
      } else {
        entries.push_back({key, stored[i]});
      }
    }
    const auto by_key = [](const Entry& a, const Entry& b) { return a.key < b.key; };
    if (keys_) std::stable_sort(entries.begin(), entries.end(), by_key);
    return beyond;
  }

 private:
  RowKind kind_;
  int32_t position_;
  DType dtype_;
  std::vector<float>& values_;
  size_t stored_keys_ = 0;
  const int32_t* keys_ = nullptr;
};

// One head's pairs. A score that only one side has is a difference of the masks; a probability that one side lacks is 0
// there.
struct KeyPairs {
  std::vector<KeyRow::Entry> entries_a, entries_b;
  std::vector<float> a, b;
  std::vector<int32_t> keys;

  void Push(int32_t key, float value_a, float value_b) {
    keys.push_back(key);
    a.push_back(value_a);
    b.push_back(value_b);
  }

  void Merge(RowKind kind, int head, RowMeter& meter) {
    keys.clear(), a.clear(), b.clear();
    for (size_t i = 0, j = 0; i < entries_a.size() || j < entries_b.size();) {
      const bool has_a = i < entries_a.size() && (j == entries_b.size() || entries_a[i].key <= entries_b[j].key);
      const bool has_b = j < entries_b.size() && (i == entries_a.size() || entries_b[j].key <= entries_a[i].key);
      const int32_t key = has_a ? entries_a[i].key : entries_b[j].key;
      if (kind == RowKind::kScores && has_a != has_b) {
        meter.MaskMismatch(head, key);
      } else {
        Push(key, has_a ? entries_a[i].value : 0, has_b ? entries_b[j].value : 0);
      }
      i += has_a, j += has_b;
    }
  }
};

void MeasureAttentionRow(const PointPass& pass, const JoinedRow& joined, RowMeter& meter, Scratch& scratch) {
  const Piece& piece_a = (*pass.candidate)[joined.candidate.piece];
  const Piece& piece_b = (*pass.reference)[joined.reference.piece];
  const KeyRow row_a(piece_a, joined.candidate.row, pass.kind, joined.position, scratch.a);
  const KeyRow row_b(piece_b, joined.reference.row, pass.kind, joined.position, scratch.b);
  KeyPairs pairs;
  const auto heads = static_cast<int>(piece_b.row_shape()[0]);
  for (int head = 0; head < heads; ++head) {
    const int32_t beyond_a = row_a.Unmasked(static_cast<size_t>(head), pairs.entries_a);
    const int32_t beyond_b = row_b.Unmasked(static_cast<size_t>(head), pairs.entries_b);
    pairs.Merge(pass.kind, head, meter);
    if (beyond_a >= 0 || beyond_b >= 0) meter.MaskMismatch(head, std::max(beyond_a, beyond_b));
    const auto bytes = [](const std::vector<float>& values) {
      return reinterpret_cast<const std::byte*>(values.data());
    };
    Segment segment{DType::kF32, bytes(pairs.a), DType::kF32, bytes(pairs.b), pairs.keys.size(), head};
    segment.channels = pairs.keys.data();
    meter.Add(segment);
  }
}

// Rows [begin, end) that are added up one after the other.
struct Block {
  size_t begin = 0;
  size_t end = 0;
};

// Cut by the shapes and pieces of the candidate alone, never by the number of threads.
std::vector<Block> CutBlocks(const PointPass& pass) {
  std::vector<Block> blocks;
  for (size_t i = 0; i < pass.rows.size(); ++i) {
    const int32_t piece = pass.rows[i].candidate.piece;
    const int64_t row_size = std::max<int64_t>(1, (*pass.candidate)[static_cast<size_t>(piece)].row_size());
    const auto most = static_cast<size_t>(std::max<int64_t>(1, kBlockElements / row_size));
    const bool same = !blocks.empty() && pass.rows[blocks.back().begin].candidate.piece == piece;
    if (!same || i - blocks.back().begin >= most) blocks.push_back({i, i});
    blocks.back().end = i + 1;
  }
  return blocks;
}

}  // namespace

bool IsMasked(float score, DType dtype) {
  // Lowest finite values: f16 -65504; bf16 and f32 nearly the same.
  constexpr float kLowestBf16 = -0x1.FEp127f;
  const float lowest = dtype == DType::kF16 ? -65504.0f : dtype == DType::kBF16 ? kLowestBf16 : -0x1.FFFFFEp127f;
  return score <= lowest / 2;
}

std::vector<RowDigest> MeasureRows(const PointPass& pass, Totals* totals) {
  Limit limits[kNumLimits];
  for (size_t i = 0; i < kTolerances.size(); ++i) limits[i] = {kTolerances[i], kTolerances[i]};
  if (pass.user) limits[kTolerances.size()] = *pass.user;
  const std::span<const Limit> used = std::span(limits).first(pass.user ? kNumLimits : kNumTolerances);
  const bool attention = pass.kind == RowKind::kScores || pass.kind == RowKind::kProbs;

  std::vector<RowDigest> digests(pass.rows.size());
  const auto measure = [&](const Block& block, Totals* sums) {
    Scratch scratch;
    std::optional<MapMeter> map;
    if (pass.detail) map.emplace(&pass.detail->map);
    RowMeter meter(sums, used, map ? &*map : nullptr);
    for (size_t i = block.begin; i < block.end; ++i) {
      const JoinedRow& joined = pass.rows[i];
      meter.Begin(joined.sequence, joined.position);
      (attention ? MeasureAttentionRow : MeasurePlainRow)(pass, joined, meter, scratch);
      meter.End();
      const Products& products = meter.products();
      digests[i] = {meter.hash_b(), meter.hash_a(), static_cast<float>(std::sqrt(products.aa)),
                    static_cast<float>(std::sqrt(products.dd))};
    }
  };
  // So many blocks at a time that their sums stay small.
  constexpr size_t kBatch = 1024;
  const std::vector<Block> blocks = CutBlocks(pass);
  Totals piece_totals;
  int32_t of_piece = -1;
  for (size_t begin = 0; begin < blocks.size(); begin += kBatch) {
    std::vector<Totals> sums(std::min(kBatch, blocks.size() - begin));
    ParallelFor(static_cast<int64_t>(sums.size()),
                [&](int64_t i) { measure(blocks[begin + static_cast<size_t>(i)], &sums[static_cast<size_t>(i)]); });
    // Piece by piece, so that it does not matter whether they come in one call.
    for (size_t i = 0; i < sums.size(); ++i) {
      const int32_t piece = pass.rows[blocks[begin + i].begin].candidate.piece;
      if (piece != of_piece) totals->Merge(std::exchange(piece_totals, {}));
      of_piece = piece;
      piece_totals.Merge(sums[i]);
      if (pass.detail) pass.detail->AddPhase(pass.phases[static_cast<size_t>(piece)], sums[i].products);
    }
  }
  totals->Merge(piece_totals);
  return digests;
}

double RowDistance(const Piece& piece_a, int64_t row_a, const Piece& piece_b, int64_t row_b) {
  if (piece_a.row_size() != piece_b.row_size()) return 0;
  const auto size = static_cast<size_t>(piece_a.row_size());
  std::vector<float> a(size), b(size);
  piece_a.Read(row_a, a.data());
  piece_b.Read(row_b, b.data());
  Products products;
  for (size_t i = 0; i < size; ++i) {
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) {
      if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]))
        return std::numeric_limits<double>::infinity();
      continue;
    }
    const double difference = static_cast<double>(a[i]) - b[i];
    products.bb += static_cast<double>(b[i]) * b[i];
    products.dd += difference * difference;
  }
  return products.RelativeL2();
}

}  // namespace lockstep
