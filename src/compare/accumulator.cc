#include "compare/accumulator.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <tuple>

#include "base/convert.h"
#include "base/fingerprint.h"
#include "compare/detail.h"

namespace lockstep {
namespace {

void KeepFirst(std::optional<Place>& first, const std::optional<Place>& other) {
  if (other && (!first || IsBefore(*other, *first))) first = other;
}

SideStats Stats(const SideTotals& side, DType dtype) {
  SideStats stats;
  stats.dtype = dtype;
  stats.nan_count = side.nans;
  stats.inf_count = side.infs;
  stats.first_nan = side.first_nan;
  stats.first_inf = side.first_inf;
  if (side.count == 0) return stats;
  const auto count = static_cast<double>(side.count);
  stats.mean = side.sum / count;
  stats.std = std::sqrt(std::max(0.0, side.squares / count - stats.mean * stats.mean));
  stats.min = side.min;
  stats.max = side.max;
  return stats;
}

}  // namespace

bool SameNonFinite(float a, float b) { return (std::isnan(a) && std::isnan(b)) || a == b; }

bool IsBefore(const Place& a, const Place& b) {
  return std::tie(a.sequence, a.position, a.head, a.channel) < std::tie(b.sequence, b.position, b.head, b.channel);
}

void SideTotals::Merge(const SideTotals& other) {
  count += other.count;
  sum += other.sum;
  squares += other.squares;
  min = std::min(min, other.min);
  max = std::max(max, other.max);
  nans += other.nans;
  infs += other.infs;
  KeepFirst(first_nan, other.first_nan);
  KeepFirst(first_inf, other.first_inf);
}

void Extreme::Raise(double other, const Place& place) {
  if (set && !(other > value) && !(other == value && IsBefore(place, at))) return;
  *this = {other, place, true};
}

void Extreme::Lower(double other, const Place& place) {
  if (set && !(other < value) && !(other == value && IsBefore(place, at))) return;
  *this = {other, place, true};
}

void Totals::Merge(const Totals& other) {
  elements += other.elements;
  products.Add(other.products);
  abs += other.abs;
  rel += other.rel;
  max_rel = std::max(max_rel, other.max_rel);
  zero_b += other.zero_b;
  zero_mismatches += other.zero_mismatches;
  for (size_t i = 0; i < kNumLimits; ++i) within[i] += other.within[i];
  if (other.max_abs.set) {
    max_abs.Raise(other.max_abs.value, other.max_abs.at);
    if (!IsBefore(max_abs.at, other.max_abs.at) && !IsBefore(other.max_abs.at, max_abs.at)) {
      worst_a = other.worst_a;
      worst_b = other.worst_b;
    }
  }
  identical = identical && other.identical;
  a.Merge(other.a);
  b.Merge(other.b);
  if (heads.size() < other.heads.size()) heads.resize(other.heads.size());
  for (size_t i = 0; i < other.heads.size(); ++i) heads[i].Add(other.heads[i]);
  if (other.worst_token.set) worst_token.Raise(other.worst_token.value, other.worst_token.at);
  if (other.min_token_cosine.set) min_token_cosine.Lower(other.min_token_cosine.value, other.min_token_cosine.at);
  mask_mismatches += other.mask_mismatches;
  non_finite_mismatches += other.non_finite_mismatches;
  KeepFirst(first_mask_mismatch, other.first_mask_mismatch);
  KeepFirst(first_non_finite_mismatch, other.first_non_finite_mismatch);
}

void Fill(const Totals& totals, PointResult* result) {
  PointResult& r = *result;
  const Products& all = totals.products;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  r.elements = totals.elements;
  r.bit_identical = totals.identical;
  r.candidate = Stats(totals.a, r.candidate.dtype);
  r.reference = Stats(totals.b, r.reference.dtype);
  r.max_abs = totals.max_abs.value;
  r.worst = totals.max_abs.at;
  r.worst_candidate = totals.worst_a;
  r.worst_reference = totals.worst_b;
  r.max_rel = totals.max_rel;
  r.zero_mismatches = totals.zero_mismatches;
  const auto elements = static_cast<double>(std::max<int64_t>(1, totals.elements));
  r.mean_abs = totals.abs / elements;
  r.mean_rel = totals.rel / static_cast<double>(std::max<int64_t>(1, totals.elements - totals.zero_b));
  r.cosine = all.Cosine();
  r.relative_l2 = all.RelativeL2();
  r.snr_db = all.dd == 0 ? kInfinity : 10 * std::log10(all.bb / all.dd);
  r.best_scale = all.bb != 0 ? all.ab / all.bb : all.aa == 0 ? 1 : kInfinity;

  r.mask_mismatches = totals.mask_mismatches;
  r.first_mask_mismatch = totals.first_mask_mismatch;
  r.non_finite_mismatches = totals.non_finite_mismatches;
  r.first_non_finite_mismatch = totals.first_non_finite_mismatch;

  const int64_t judged = totals.elements + totals.mask_mismatches + totals.non_finite_mismatches;
  const auto share = [&](int64_t within) {
    return judged == 0 ? 1.0 : static_cast<double>(within) / static_cast<double>(judged);
  };
  for (size_t i = 0; i < kTolerances.size(); ++i) r.within[i] = share(totals.within[i]);
  if (r.within_user) {
    r.within_user = share(totals.within[kTolerances.size()]);
    r.user_tolerance_missed = totals.within[kTolerances.size()] < judged;
  }

  r.worst_token = totals.worst_token.at;
  r.worst_token_relative_l2 = totals.worst_token.value;
  if (totals.min_token_cosine.set) {
    r.min_token_cosine = totals.min_token_cosine.value;
    r.min_token_cosine_at = totals.min_token_cosine.at;
  }
  Extreme head_l2, head_cosine;
  for (size_t i = 0; i < totals.heads.size(); ++i) {
    const Place head{.head = static_cast<int>(i)};
    head_l2.Raise(totals.heads[i].RelativeL2(), head);
    head_cosine.Lower(totals.heads[i].Cosine(), head);
  }
  if (head_l2.set) {
    r.worst_head = head_l2.at.head;
    r.worst_head_relative_l2 = head_l2.value;
    r.min_head_cosine = head_cosine.value;
  }
}

void RowMeter::Begin(int32_t sequence, int32_t position) {
  row_ = Place{.sequence = sequence, .position = position};
  token_ = {};
  hash_a_ = hash_b_ = 0;
  zero_a_ = zero_b_ = true;
  if (map_) map_->Begin({sequence, position});
}

void RowMeter::End() {
  if (map_) map_->End();
  totals_.products.Add(token_);
  totals_.worst_token.Raise(token_.RelativeL2(), row_);
  totals_.min_token_cosine.Lower(token_.Cosine(), row_);
}

Place RowMeter::At(const Chunk& chunk, size_t i) const {
  Place place = row_;
  place.head = chunk.head < 0 ? -1 : chunk.head + static_cast<int>(i / chunk.part);
  place.channel = chunk.channels ? chunk.channels[i] : chunk.channel_begin + static_cast<int>(i % chunk.part);
  return place;
}

// A segment may be longer than a chunk: heads stay whole where they fit.
void RowMeter::Add(const Segment& segment) {
  if (segment.count == 0) return;
  if (map_) map_->Add(segment);
  const size_t part = segment.part == 0 ? segment.count : segment.part;
  const size_t step = part > kChunk ? kChunk : std::min(kChunk / part, kMaxParts) * part;
  for (size_t begin = 0; begin < segment.count;) {
    const size_t in_part = begin % part;
    Segment chunk = segment;
    chunk.a += begin * DTypeSize(segment.dtype_a);
    chunk.b += begin * DTypeSize(segment.dtype_b);
    chunk.count = std::min(step, part > kChunk ? part - in_part : segment.count - begin);
    chunk.part = std::min(part, chunk.count);
    if (segment.head >= 0) chunk.head += static_cast<int>(begin / part);
    chunk.channel_begin += static_cast<int>(in_part);
    if (chunk.channels) chunk.channels += begin;
    AddChunk(chunk);
    begin += chunk.count;
  }
}

void RowMeter::MaskMismatch(int head, int channel) {
  if (map_) map_->MaskMismatch(head);
  Place place = row_;
  place.head = head;
  place.channel = channel;
  ++totals_.mask_mismatches;
  KeepFirst(totals_.first_mask_mismatch, place);
  totals_.identical = false;
}

void RowMeter::AddChunk(const Segment& segment) {
  Chunk chunk{{Format::kF32, segment.a, segment.b, segment.count},
              segment.head,
              segment.part,
              segment.channel_begin,
              segment.channels};
  if (segment.dtype_a == DType::kBF16 && segment.dtype_b == DType::kBF16) {
    chunk.pairs.format = Format::kBF16;
  } else if (segment.dtype_a != DType::kF32 || segment.dtype_b != DType::kF32) {
    WidenToFloat(segment.dtype_a, segment.a, segment.count, wide_a_);
    WidenToFloat(segment.dtype_b, segment.b, segment.count, wide_b_);
    chunk.pairs.a = reinterpret_cast<const std::byte*>(wide_a_);
    chunk.pairs.b = reinterpret_cast<const std::byte*>(wide_b_);
  }
  const ChunkScan scan = kernels_.scan(chunk.pairs);
  AddHash(segment, scan);
  zero_a_ = zero_a_ && scan.zero_a;
  zero_b_ = zero_b_ && scan.zero_b;
  totals_.identical = totals_.identical && scan.equal;
  if (scan.finite) {
    AddFinite(chunk, scan);
  } else {
    AddNotFinite(chunk);
  }
}

// A bf16 side is hashed as bf16, also beside another dtype.
void RowMeter::AddHash(const Segment& segment, const ChunkScan& scan) {
  uint64_t hash_a = scan.hash_a, hash_b = scan.hash_b;
  if (segment.dtype_a != segment.dtype_b) {
    if (segment.dtype_a == DType::kBF16)
      hash_a = kernels_.scan({Format::kBF16, segment.a, segment.a, segment.count}).hash_a;
    if (segment.dtype_b == DType::kBF16)
      hash_b = kernels_.scan({Format::kBF16, segment.b, segment.b, segment.count}).hash_b;
  }
  hash_a_ = SplitMix64(hash_a_ ^ hash_a);
  hash_b_ = SplitMix64(hash_b_ ^ hash_b);
}

void RowMeter::AddFinite(const Chunk& chunk, const ChunkScan& scan) {
  Products parts[kMaxParts];
  const Pairs& pairs = chunk.pairs;
  const ChunkSums sums =
      scan.equal ? kernels_.sum_equal(pairs, chunk.part, parts) : kernels_.sum(pairs, chunk.part, limits_, parts);
  Products products;
  for (size_t i = 0; i < pairs.count / chunk.part; ++i) {
    products.Add(parts[i]);
    if (chunk.head < 0) continue;
    const size_t head = static_cast<size_t>(chunk.head) + i;
    if (totals_.heads.size() <= head) totals_.heads.resize(head + 1);
    totals_.heads[head].Add(parts[i]);
  }
  token_.Add(products);
  totals_.elements += static_cast<int64_t>(pairs.count);
  totals_.abs += sums.abs;
  totals_.rel += sums.rel;
  totals_.max_rel = std::max(totals_.max_rel, sums.max_rel);
  totals_.zero_b += scan.zeros_b;
  totals_.zero_mismatches += scan.zero_mismatches;
  for (size_t i = 0; i < kNumLimits; ++i) totals_.within[i] += sums.within[i];
  const auto add = [&](double sum, double squares, float min, float max, SideTotals* side) {
    side->count += static_cast<int64_t>(pairs.count);
    side->sum += sum;
    side->squares += squares;
    side->min = std::min<double>(side->min, min);
    side->max = std::max<double>(side->max, max);
  };
  add(sums.a, products.aa, scan.min_a, scan.max_a, &totals_.a);
  add(sums.b, products.bb, scan.min_b, scan.max_b, &totals_.b);
  RaiseMaximum(chunk, sums.max_abs);
}

void RowMeter::RaiseMaximum(const Chunk& chunk, double max_abs) {
  const Extreme& so_far = totals_.max_abs;
  if (so_far.set && (max_abs < so_far.value || (max_abs == so_far.value && !IsBefore(At(chunk, 0), so_far.at)))) return;
  const size_t i = kernels_.find(chunk.pairs, max_abs);
  const auto value = [&](const std::byte* values) {
    return chunk.pairs.format == Format::kBF16 ? ToFloat(LoadElement<BF16>(values, i)) : LoadElement<float>(values, i);
  };
  totals_.max_abs = {max_abs, At(chunk, i), true};
  totals_.worst_a = value(chunk.pairs.a);
  totals_.worst_b = value(chunk.pairs.b);
}

// The slow way, head by head.
void RowMeter::AddNotFinite(const Chunk& chunk) {
  const Pairs& pairs = chunk.pairs;
  float a[kChunk], b[kChunk];
  const DType dtype = pairs.format == Format::kBF16 ? DType::kBF16 : DType::kF32;
  WidenToFloat(dtype, pairs.a, pairs.count, a);
  WidenToFloat(dtype, pairs.b, pairs.count, b);
  for (size_t begin = 0; begin < pairs.count; begin += chunk.part) {
    Chunk part = chunk;
    part.pairs.count = chunk.part;
    if (chunk.head >= 0) part.head += static_cast<int>(begin / chunk.part);
    if (chunk.channels) part.channels += begin;
    AddNotFinitePart(a + begin, b + begin, part);
  }
}

// Pairs of finite values are packed together, the others are counted.
void RowMeter::AddNotFinitePart(const float* a, const float* b, const Chunk& chunk) {
  float packed_a[kChunk], packed_b[kChunk];
  int32_t channels[kChunk];
  size_t count = 0;
  // AddFinite adds the pairs to both sides' sums; the values whose partner is not finite are added to their side alone.
  for (size_t i = 0; i < chunk.pairs.count; ++i) {
    const bool finite_a = std::isfinite(a[i]), finite_b = std::isfinite(b[i]);
    if (finite_a && finite_b) {
      packed_a[count] = a[i];
      packed_b[count] = b[i];
      channels[count++] = At(chunk, i).channel;
      continue;
    }
    if (!SameNonFinite(a[i], b[i])) {
      ++totals_.non_finite_mismatches;
      KeepFirst(totals_.first_non_finite_mismatch, At(chunk, i));
    }
    const auto alone = [](float value, SideTotals* side) {
      ++side->count;
      side->sum += value;
      side->squares += static_cast<double>(value) * value;
    };
    if (finite_a) alone(a[i], &totals_.a);
    if (finite_b) alone(b[i], &totals_.b);
  }
  CountSide(a, chunk, &totals_.a);
  CountSide(b, chunk, &totals_.b);
  if (count == 0) return;
  const Pairs pairs{Format::kF32, reinterpret_cast<const std::byte*>(packed_a),
                    reinterpret_cast<const std::byte*>(packed_b), count};
  AddFinite({pairs, chunk.head, count, 0, channels}, kernels_.scan(pairs));
}

void RowMeter::CountSide(const float* values, const Chunk& chunk, SideTotals* side) {
  for (size_t i = 0; i < chunk.pairs.count; ++i) {
    if (std::isnan(values[i])) {
      ++side->nans;
      KeepFirst(side->first_nan, At(chunk, i));
    } else if (std::isinf(values[i])) {
      ++side->infs;
      KeepFirst(side->first_inf, At(chunk, i));
    } else {
      side->min = std::min<double>(side->min, values[i]);
      side->max = std::max<double>(side->max, values[i]);
    }
  }
}

}  // namespace lockstep
