#include "compare/metrics.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/convert.h"
#include "base/parallel.h"
#include "compare/accumulator.h"

namespace lockstep {
namespace {

constexpr int64_t kBlockElements = 1 << 16;

// Buffers of one thread's block.
struct Scratch {
  std::vector<float> a, b;
};

// A row that is one run of memory, taken chunk by chunk; equal bytes are found before anything is converted.
class StoredRow {
 public:
  StoredRow(const Piece& piece, int64_t row) : dtype_(piece.dtype()), data_(piece.Contiguous(row)) {}

  explicit operator bool() const { return data_ != nullptr; }
  const std::byte* At(size_t begin) const { return data_ + begin * DTypeSize(dtype_); }
  DType dtype() const { return dtype_; }

  const float* Load(size_t begin, size_t count, float* buffer) const {
    const std::byte* data = At(begin);
    if (dtype_ == DType::kF32 && reinterpret_cast<uintptr_t>(data) % alignof(float) == 0) {
      return reinterpret_cast<const float*>(data);
    }
    WidenToFloat(dtype_, data, count, buffer);
    return buffer;
  }

 private:
  DType dtype_;
  const std::byte* data_;
};

bool SameBytes(const StoredRow& a, const StoredRow& b, size_t begin, size_t count) {
  return a.dtype() == b.dtype() && std::memcmp(a.At(begin), b.At(begin), count * DTypeSize(a.dtype())) == 0;
}

void MeasureStored(const StoredRow& a, const StoredRow& b, size_t begin, size_t count, int head, RowMeter& meter) {
  alignas(64) float buffer_a[kChunk], buffer_b[kChunk];
  for (size_t i = 0; i < count; i += kChunk) {
    const size_t length = std::min(kChunk, count - i);
    const float* values_a = a.Load(begin + i, length, buffer_a);
    const float* values_b = SameBytes(a, b, begin + i, length) ? values_a : b.Load(begin + i, length, buffer_b);
    meter.Add(values_a, values_b, length, head, static_cast<int>(i));
  }
}

void MeasurePlainRow(const PointPass& pass, const JoinedRow& joined, RowMeter& meter, Scratch& scratch) {
  const Piece& piece_a = (*pass.candidate)[joined.candidate.piece];
  const Piece& piece_b = (*pass.reference)[joined.reference.piece];
  const auto size = static_cast<size_t>(piece_b.row_size());
  const size_t heads = pass.kind == RowKind::kHeads ? static_cast<size_t>(piece_b.row_shape()[0]) : 1;
  if (size == 0 || heads == 0) return;
  const size_t length = size / heads;
  const StoredRow a(piece_a, joined.candidate.row), b(piece_b, joined.reference.row);
  if (!a || !b) {
    scratch.a.resize(size);
    scratch.b.resize(size);
    piece_a.Read(joined.candidate.row, scratch.a.data());
    piece_b.Read(joined.reference.row, scratch.b.data());
  }
  for (size_t head = 0; head < heads; ++head) {
    const int number = pass.kind == RowKind::kHeads ? static_cast<int>(head) : -1;
    if (a && b) {
      MeasureStored(a, b, head * length, length, number, meter);
    } else {
      meter.Add(scratch.a.data() + head * length, scratch.b.data() + head * length, length, number, 0);
    }
  }
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
    meter.Add(pairs.a.data(), pairs.b.data(), pairs.keys.size(), head, 0, pairs.keys.data());
  }
}

}  // namespace

bool IsMasked(float score, DType dtype) {
  // Lowest finite values: f16 -65504; bf16 and f32 nearly the same.
  constexpr float kLowestBf16 = -0x1.FEp127f;
  const float lowest = dtype == DType::kF16 ? -65504.0f : dtype == DType::kBF16 ? kLowestBf16 : -0x1.FFFFFEp127f;
  return score <= lowest / 2;
}

RowHashes Measure(const PointPass& pass, PointResult* result) {
  const auto rows = static_cast<int64_t>(pass.rows.size());
  RowHashes hashes;
  hashes.reference.resize(pass.rows.size());
  hashes.candidate.resize(pass.rows.size());
  if (rows == 0) return hashes;

  Limit limits[kNumLimits];
  for (size_t i = 0; i < kTolerances.size(); ++i) limits[i] = {kTolerances[i], kTolerances[i]};
  if (pass.user) limits[kTolerances.size()] = *pass.user;

  // Blocks are cut by the shape alone, never by the number of threads.
  const int64_t row_size = std::max<int64_t>(1, (*pass.reference)[pass.rows[0].reference.piece].row_size());
  const int64_t block_rows = std::max<int64_t>(1, kBlockElements / row_size);
  const int64_t blocks = (rows + block_rows - 1) / block_rows;
  std::vector<Totals> totals(static_cast<size_t>(blocks));
  const bool attention = pass.kind == RowKind::kScores || pass.kind == RowKind::kProbs;
  ParallelFor(blocks, [&](int64_t block) {
    Scratch scratch;
    RowMeter meter(&totals[static_cast<size_t>(block)], limits);
    const int64_t end = std::min(rows, (block + 1) * block_rows);
    for (int64_t i = block * block_rows; i < end; ++i) {
      const JoinedRow& joined = pass.rows[static_cast<size_t>(i)];
      meter.Begin(joined.sequence, joined.position);
      (attention ? MeasureAttentionRow : MeasurePlainRow)(pass, joined, meter, scratch);
      meter.End();
      hashes.candidate[static_cast<size_t>(i)] = meter.hash_a();
      hashes.reference[static_cast<size_t>(i)] = meter.hash_b();
    }
  });
  for (size_t i = 1; i < totals.size(); ++i) totals[0].Merge(totals[i]);
  if (pass.user) result->within_user = 0;
  Fill(totals[0], result);
  return hashes;
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
