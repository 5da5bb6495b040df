#include "compare/detail.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "base/convert.h"

namespace lockstep {
namespace {

constexpr int kWindowRows = 2;      // before and after the worst
constexpr int kWindowChannels = 4;  // the same

bool IsAttention(RowKind kind) { return kind == RowKind::kScores || kind == RowKind::kProbs; }

int64_t WidthOf(const std::vector<int64_t>& shape, RowKind kind) {
  if (kind != RowKind::kPlain) return shape.front();
  int64_t width = 1;
  for (const int64_t extent : shape) width *= extent;
  return width;
}

double RelativeL2(const std::optional<Products>& products) {
  return products ? products->RelativeL2() : std::numeric_limits<double>::quiet_NaN();
}

// A row's elements by head and channel, or by head and absolute key position.
class WindowRow {
 public:
  WindowRow(const Piece& piece, int64_t row, RowKind kind) : kind_(kind), values_(piece.row_size()) {
    piece.Read(row, values_.data());
    heads_ = kind == RowKind::kPlain ? 1 : static_cast<size_t>(piece.row_shape().front());
    if (piece.keys().empty() || !IsAttention(kind)) return;
    const auto begin = piece.keys().begin() + static_cast<ptrdiff_t>(row * static_cast<int64_t>(width()));
    keys_.assign(begin, begin + static_cast<ptrdiff_t>(width()));
  }

  size_t width() const { return heads_ == 0 ? 0 : values_.size() / heads_; }

  float At(int head, int channel) const {
    auto column = static_cast<size_t>(channel);
    if (!keys_.empty()) {
      column = static_cast<size_t>(std::find(keys_.begin(), keys_.end(), channel) - keys_.begin());
    }
    if (column < width()) return values_[static_cast<size_t>(std::max(0, head)) * width() + column];
    return kind_ == RowKind::kScores ? -std::numeric_limits<float>::infinity() : 0;  // a key that is not there
  }

 private:
  RowKind kind_;
  size_t heads_ = 1;
  std::vector<float> values_;
  std::vector<int32_t> keys_;  // empty: 0, 1, 2, …
};

// Rows of the place's sequence around it, by position; empty where it has none.
std::vector<JoinedRow> RowsAround(const PointPass& pass, const Place& at) {
  std::vector<JoinedRow> rows;
  const auto same = [&](const JoinedRow& row) { return row.sequence == at.sequence; };
  std::copy_if(pass.rows.begin(), pass.rows.end(), std::back_inserter(rows), same);
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.position < b.position; });
  const auto middle = std::lower_bound(rows.begin(), rows.end(), at.position,
                                       [](const JoinedRow& row, int position) { return row.position < position; });
  if (middle == rows.end() || middle->position != at.position) return {};
  const auto begin = middle - std::min<ptrdiff_t>(kWindowRows, middle - rows.begin());
  return {begin, middle + std::min<ptrdiff_t>(kWindowRows + 1, rows.end() - middle)};
}

}  // namespace

DetailSums::DetailSums(std::vector<RowKey> rows, const std::vector<int64_t>& shape, RowKind kind)
    : map(std::move(rows), kind != RowKind::kPlain, WidthOf(shape, kind)) {}

void DetailSums::AddPhase(Phase phase, const Products& products) {
  std::optional<Products>& sums = phase == Phase::kDecode ? decode : prefill;
  if (!sums) sums.emplace();
  sums->Add(products);
}

std::shared_ptr<const DifferenceDetail> DetailSums::Finish() const {
  return std::make_shared<const DifferenceDetail>(
      DifferenceDetail{map.Finish(), window, {RelativeL2(prefill), RelativeL2(decode)}});
}

void MapMeter::Begin(const RowKey& row) {
  row_ = row;
  std::fill(columns_.begin(), columns_.end(), Column{});
}

void MapMeter::Add(const Segment& segment) {
  // A whole row of equal values adds nothing to any column's difference.
  const bool whole = segment.channels == nullptr && segment.dtype_a == segment.dtype_b;
  if (whole && std::memcmp(segment.a, segment.b, segment.count * DTypeSize(segment.dtype_a)) == 0) return;
  for (size_t begin = 0; begin < segment.count; begin += kChunk) {
    AddChunk(segment, begin, std::min(kChunk, segment.count - begin));
  }
}

void MapMeter::AddChunk(const Segment& segment, size_t begin, size_t count) {
  WidenToFloat(segment.dtype_a, segment.a + begin * DTypeSize(segment.dtype_a), count, a_);
  WidenToFloat(segment.dtype_b, segment.b + begin * DTypeSize(segment.dtype_b), count, b_);
  // Of one column: channels, or the elements of a head.
  const size_t part = segment.part == 0 ? segment.count : segment.part;
  const size_t run = segment.head >= 0 ? part : static_cast<size_t>(std::max<int64_t>(1, map_.per_column()));
  for (size_t i = 0; i < count;) {
    const size_t at = begin + i, size = std::min(count - i, run - at % run);
    const size_t column = segment.head >= 0 ? ColumnOf(segment.head + static_cast<int64_t>(at / part)) : at / run;
    AddRun(a_ + i, b_ + i, size, &columns_[column]);
    i += size;
  }
}

void MapMeter::AddRun(const float* a, const float* b, size_t count, Column* column) {
  constexpr size_t kLanes = 8;
  double dd[kLanes] = {}, bb[kLanes] = {};
  const auto add = [&](size_t lane, double x, double y) {
    dd[lane] += (x - y) * (x - y);
    bb[lane] += y * y;
  };
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) add(lane, a[i + lane], b[i + lane]);
  }
  for (; i < count; ++i) add(0, a[i], b[i]);
  double sum_dd = 0, sum_bb = 0;
  for (size_t lane = 0; lane < kLanes; ++lane) sum_dd += dd[lane], sum_bb += bb[lane];
  if (!std::isfinite(sum_dd + sum_bb)) {
    // The slow way: squares of finite values of f32 do not overflow in f64, so some are not finite.
    sum_dd = sum_bb = 0;
    for (size_t k = 0; k < count; ++k) {
      const double x = a[k], y = b[k];
      if (std::isfinite(x) && std::isfinite(y)) {
        sum_dd += (x - y) * (x - y), sum_bb += y * y;
      } else if (!SameNonFinite(a[k], b[k])) {
        column->differs = true;
      }
    }
  }
  column->dd += sum_dd;
  column->bb += sum_bb;
}

void MapMeter::End() {
  float values[ErrorMap::kMaxColumns];
  for (size_t i = 0; i < columns_.size(); ++i) {
    const Products products{.bb = columns_[i].bb, .dd = columns_[i].dd};
    values[i] =
        columns_[i].differs ? std::numeric_limits<float>::infinity() : static_cast<float>(products.RelativeL2());
  }
  map_.Raise(row_, std::span(values).first(columns_.size()));
}

std::optional<Place> WindowPlace(const Totals& totals) {
  if (totals.max_abs.set) return totals.max_abs.at;
  return totals.first_non_finite_mismatch ? totals.first_non_finite_mismatch : totals.first_mask_mismatch;
}

ValueWindow ReadWindow(const PointPass& pass, const Place& at) {
  ValueWindow window;
  const std::vector<JoinedRow> rows = RowsAround(pass, at);
  if (rows.empty()) return window;
  window.sequence = at.sequence;
  window.head = at.head;
  int end = std::max(at.channel, rows.back().position) + 1;  // keys
  for (const JoinedRow& row : rows) {
    window.positions.push_back(row.position);
    const WindowRow a((*pass.candidate)[static_cast<size_t>(row.candidate.piece)], row.candidate.row, pass.kind);
    const WindowRow b((*pass.reference)[static_cast<size_t>(row.reference.piece)], row.reference.row, pass.kind);
    if (!IsAttention(pass.kind)) end = static_cast<int>(b.width());
    const int begin = std::max(0, at.channel - kWindowChannels);
    window.channels.clear();
    for (int channel = begin; channel < std::min(end, at.channel + kWindowChannels + 1); ++channel) {
      window.channels.push_back(channel);
      window.candidate.push_back(a.At(at.head, channel));
      window.reference.push_back(b.At(at.head, channel));
    }
  }
  return window;
}

}  // namespace lockstep
