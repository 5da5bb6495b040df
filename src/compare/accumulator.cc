#include "compare/accumulator.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/fingerprint.h"

namespace lockstep {
namespace {

template <typename T>
void KeepFirst(std::optional<T>& first, const std::optional<T>& later) {
  if (!first) first = later;
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

bool SameNonFinite(float a, float b) { return (std::isnan(a) && std::isnan(b)) || a == b; }

}  // namespace

void Products::Add(const Products& other) {
  aa += other.aa;
  bb += other.bb;
  ab += other.ab;
  dd += other.dd;
}

double Products::Cosine() const {
  if (dd == 0) return 1;
  if (aa == 0 || bb == 0) return 0;
  // Two roots, for the product of tiny squares may underflow.
  return std::clamp(ab / (std::sqrt(aa) * std::sqrt(bb)), -1.0, 1.0);
}

double Products::RelativeL2() const {
  if (dd == 0) return 0;
  return bb == 0 ? std::numeric_limits<double>::infinity() : std::sqrt(dd) / std::sqrt(bb);
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
  if (set && !(other > value)) return;
  *this = {other, place, true};
}

void Extreme::Lower(double other, const Place& place) {
  if (set && !(other < value)) return;
  *this = {other, place, true};
}

void Totals::Merge(const Totals& later) {
  elements += later.elements;
  products.Add(later.products);
  abs += later.abs;
  rel += later.rel;
  max_rel = std::max(max_rel, later.max_rel);
  zero_b += later.zero_b;
  zero_mismatches += later.zero_mismatches;
  for (size_t i = 0; i < kNumLimits; ++i) within[i] += later.within[i];
  if (later.max_abs.set && (!max_abs.set || later.max_abs.value > max_abs.value)) {
    max_abs = later.max_abs;
    worst_a = later.worst_a;
    worst_b = later.worst_b;
  }
  identical = identical && later.identical;
  a.Merge(later.a);
  b.Merge(later.b);
  if (heads.size() < later.heads.size()) heads.resize(later.heads.size());
  for (size_t i = 0; i < later.heads.size(); ++i) heads[i].Add(later.heads[i]);
  if (later.worst_token.set) worst_token.Raise(later.worst_token.value, later.worst_token.at);
  if (later.min_token_cosine.set) min_token_cosine.Lower(later.min_token_cosine.value, later.min_token_cosine.at);
  mask_mismatches += later.mask_mismatches;
  non_finite_mismatches += later.non_finite_mismatches;
  KeepFirst(first_mask_mismatch, later.first_mask_mismatch);
  KeepFirst(first_non_finite_mismatch, later.first_non_finite_mismatch);
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
}

void RowMeter::End() {
  totals_.products.Add(token_);
  totals_.worst_token.Raise(token_.RelativeL2(), row_);
  totals_.min_token_cosine.Lower(token_.Cosine(), row_);
}

Place RowMeter::At(const Span& span, size_t i) const {
  Place place = row_;
  place.head = span.head;
  place.channel = span.Channel(i);
  return place;
}

void RowMeter::Add(const float* a, const float* b, size_t count, int head, int channel_begin, const int32_t* channels) {
  for (size_t begin = 0; begin < count; begin += kChunk) {
    AddChunk({a + begin, b + begin, std::min(kChunk, count - begin), head, channel_begin + static_cast<int>(begin),
              channels ? channels + begin : nullptr});
  }
}

void RowMeter::MaskMismatch(int head, int channel) {
  Place place = row_;
  place.head = head;
  place.channel = channel;
  ++totals_.mask_mismatches;
  KeepFirst(totals_.first_mask_mismatch, std::optional(place));
  totals_.identical = false;
}

void RowMeter::AddChunk(const Span& span) {
  const ChunkScan scan = ScanChunk(span.a, span.b, span.count);
  hash_a_ = SplitMix64(hash_a_ ^ scan.hash_a);
  hash_b_ = SplitMix64(hash_b_ ^ scan.hash_b);
  zero_a_ = zero_a_ && scan.zero_a;
  zero_b_ = zero_b_ && scan.zero_b;
  totals_.identical = totals_.identical && scan.equal;
  if (!scan.finite) return AddNotFinite(span);

  AddFinite(span, scan.equal);
  SideTotals &a = totals_.a, &b = totals_.b;
  a.min = std::min<double>(a.min, scan.min_a);
  a.max = std::max<double>(a.max, scan.max_a);
  b.min = std::min<double>(b.min, scan.min_b);
  b.max = std::max<double>(b.max, scan.max_b);
}

// Sums of both sides and of the pairs; minima and maxima are the caller's.
void RowMeter::AddFinite(const Span& span, bool equal) {
  const ChunkSums sums = equal ? SumEqualChunk(span.a, span.count) : SumChunk(span.a, span.b, span.count, limits_);
  const auto count = static_cast<int64_t>(span.count);
  totals_.elements += count;
  totals_.a.count += count;
  totals_.b.count += count;
  totals_.a.sum += sums.a;
  totals_.b.sum += sums.b;
  totals_.a.squares += sums.aa;
  totals_.b.squares += sums.bb;
  totals_.abs += sums.abs;
  totals_.rel += sums.rel;
  totals_.max_rel = std::max(totals_.max_rel, sums.max_rel);
  totals_.zero_b += sums.zero_b;
  totals_.zero_mismatches += sums.zero_mismatches;
  for (size_t i = 0; i < kNumLimits; ++i) totals_.within[i] += sums.within[i];

  const Products products{sums.aa, sums.bb, sums.ab, sums.dd};
  token_.Add(products);
  if (span.head >= 0) {
    const auto head = static_cast<size_t>(span.head);
    if (totals_.heads.size() <= head) totals_.heads.resize(head + 1);
    totals_.heads[head].Add(products);
  }
  if (totals_.max_abs.set && !(sums.max_abs > totals_.max_abs.value)) return;
  size_t i = 0;
  while (i + 1 < span.count && std::abs(static_cast<double>(span.a[i]) - span.b[i]) != sums.max_abs) ++i;
  totals_.max_abs = {sums.max_abs, At(span, i), true};
  totals_.worst_a = span.a[i];
  totals_.worst_b = span.b[i];
}

// The slow way: pairs of finite values are packed together, the others are counted.
void RowMeter::AddNotFinite(const Span& span) {
  float a[kChunk], b[kChunk];
  int32_t channels[kChunk];
  size_t count = 0;
  // AddFinite adds the pairs to both sides' sums; the values whose partner is not finite are added to their side alone.
  for (size_t i = 0; i < span.count; ++i) {
    const bool finite_a = std::isfinite(span.a[i]), finite_b = std::isfinite(span.b[i]);
    if (finite_a && finite_b) {
      a[count] = span.a[i];
      b[count] = span.b[i];
      channels[count++] = span.Channel(i);
      continue;
    }
    if (!SameNonFinite(span.a[i], span.b[i])) {
      ++totals_.non_finite_mismatches;
      KeepFirst(totals_.first_non_finite_mismatch, std::optional(At(span, i)));
    }
    const auto alone = [](float value, SideTotals* side) {
      ++side->count;
      side->sum += value;
      side->squares += static_cast<double>(value) * value;
    };
    if (finite_a) alone(span.a[i], &totals_.a);
    if (finite_b) alone(span.b[i], &totals_.b);
  }
  CountSide(span.a, span, &totals_.a);
  CountSide(span.b, span, &totals_.b);
  if (count > 0) AddFinite({a, b, count, span.head, 0, channels}, std::equal(a, a + count, b));
}

void RowMeter::CountSide(const float* values, const Span& span, SideTotals* side) {
  for (size_t i = 0; i < span.count; ++i) {
    if (std::isnan(values[i])) {
      ++side->nans;
      KeepFirst(side->first_nan, std::optional(At(span, i)));
    } else if (std::isinf(values[i])) {
      ++side->infs;
      KeepFirst(side->first_inf, std::optional(At(span, i)));
    } else {
      side->min = std::min<double>(side->min, values[i]);
      side->max = std::max<double>(side->max, values[i]);
    }
  }
}

}  // namespace lockstep
