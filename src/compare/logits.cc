#include "compare/logits.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "base/convert.h"
#include "base/parallel.h"
#include "compare/kernels.h"

namespace lockstep {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr size_t kGroup = 16;  // of the kernel
constexpr size_t kTop = 10;

// The largest logits seen so far, the first of equals first. NaN and -inf are never among them.
class Top {
 public:
  void Add(int32_t id, float value) {
    if (!(value > threshold())) return;
    size_t at = kTop - 1;
    for (; at > 0 && values_[at - 1] < value; --at) {
      values_[at] = values_[at - 1];
      ids_[at] = ids_[at - 1];
    }
    values_[at] = value;
    ids_[at] = id;
  }

  // What is not above it is not among them.
  float threshold() const { return values_.back(); }
  int32_t first() const { return ids_.front(); }
  double largest() const { return values_.front(); }
  double margin() const { return ids_[1] < 0 ? kInfinity : largest() - values_[1]; }

  int Common(const Top& other, size_t k) const {
    int common = 0;
    for (size_t i = 0; i < k; ++i) {
      const auto end = other.ids_.begin() + static_cast<std::ptrdiff_t>(k);
      common += ids_[i] >= 0 && std::find(other.ids_.begin(), end, ids_[i]) != end;
    }
    return common;
  }

  void Fill(TokenSide* side) const {
    std::copy_n(ids_.begin(), side->ids.size(), side->ids.begin());
    std::copy_n(values_.begin(), side->values.size(), side->values.begin());
    side->margin = margin();
  }

 private:
  static constexpr float kLowest = -std::numeric_limits<float>::infinity();
  std::array<float, kTop> values_{kLowest, kLowest, kLowest, kLowest, kLowest,
                                  kLowest, kLowest, kLowest, kLowest, kLowest};
  std::array<int32_t, kTop> ids_{-1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
};

struct Logits {
  Piece::Row row;
  size_t size = 0;

  const std::byte* At(size_t index) const { return row.data + index * DTypeSize(row.dtype); }
  void Widen(size_t begin, size_t count, float* out) const { WidenToFloat(row.dtype, At(begin), count, out); }
  double Value(int32_t id) const {
    float value = 0;
    Widen(static_cast<size_t>(id), 1, &value);
    return value;
  }
};

// A row of both sides, chunk by chunk in a format of the kernels; a is the candidate, b the reference.
class PairedLogits {
 public:
  PairedLogits(const Logits& reference, const Logits& candidate) : r_(reference), c_(candidate) {}

  // Calls body(first index, pairs) for every chunk.
  template <typename Body>
  void ForEachChunk(Body&& body) {
    for (size_t begin = 0; begin < r_.size; begin += kChunk) {
      const size_t count = std::min(kChunk, r_.size - begin);
      if (r_.row.dtype == DType::kBF16 && c_.row.dtype == DType::kBF16) {
        body(begin, Pairs{Format::kBF16, c_.At(begin), r_.At(begin), count});
      } else {
        r_.Widen(begin, count, wide_r_);
        c_.Widen(begin, count, wide_c_);
        body(begin, Pairs{Format::kF32, reinterpret_cast<const std::byte*>(wide_c_),
                          reinterpret_cast<const std::byte*>(wide_r_), count});
      }
    }
  }

  const Logits& reference() const { return r_; }
  const Logits& candidate() const { return c_; }

 private:
  Logits r_, c_;
  float wide_r_[kChunk], wide_c_[kChunk];
};

// Calls body(index, reference's logit, candidate's logit).
template <typename Body>
void ForEachPair(const PairedLogits& logits, size_t begin, size_t count, Body&& body) {
  float r[kChunk], c[kChunk];
  logits.reference().Widen(begin, count, r);
  logits.candidate().Widen(begin, count, c);
  for (size_t i = 0; i < count; ++i) body(begin + i, r[i], c[i]);
}

// What the kernel does, for all values: -inf is ruled out and adds nothing where both sides have it.
void AddSoftmax(const PairedLogits& logits, size_t begin, size_t count, const Top& top_r, const Top& top_c,
                SoftmaxSums* sums) {
  ForEachPair(logits, begin, count, [&](size_t, float r, float c) {
    const double x = c - top_c.largest(), y = r - top_r.largest(), p = std::exp(y);
    sums->a += std::exp(x);
    sums->b += p;
    if (p != 0) sums->weighted += p * (y - x);
  });
}

// KL(reference || candidate) = sum p (log p - log q) in nats; p and q are the softmaxes. A token that only the
// candidate rules out (-inf) makes it infinite; NaN and +inf make it NaN.
double Divergence(PairedLogits& logits, const Top& top_r, const Top& top_c) {
  const Kernels& kernels = BestKernels();
  SoftmaxSums sums;
  logits.ForEachChunk([&](size_t begin, Pairs pairs) {
    const size_t count = pairs.count;
    pairs.count = kernels.scan(pairs).finite ? count / kGroup * kGroup : 0;
    if (pairs.count > 0) {
      const SoftmaxSums chunk = kernels.softmax(pairs, top_c.largest(), top_r.largest());
      sums.a += chunk.a, sums.b += chunk.b, sums.weighted += chunk.weighted;
    }
    AddSoftmax(logits, begin + pairs.count, count - pairs.count, top_r, top_c, &sums);
  });
  const double kl = sums.weighted / sums.b - (std::log(sums.b) - std::log(sums.a));
  return kl < 0 ? 0 : kl;  // by rounding
}

int StoredFraction(DType dtype) { return dtype == DType::kBF16 ? 7 : dtype == DType::kF16 ? 10 : 23; }

// Between neighbours of the dtype at that value.
double StepAt(double value, DType dtype) {
  return value == 0 || !std::isfinite(value) ? 0 : std::ldexp(1.0, std::ilogb(value) - StoredFraction(dtype));
}

// Sums over the pairs of finite logits.
struct Noise {
  double differences = 0, squares = 0, max_abs = 0;
  int64_t pairs = 0;
  int64_t mismatches = 0;  // only one is finite, or both are not and differ

  void AddFinite(const Pairs& chunk, bool equal) {
    constexpr Limit kNone = {std::numeric_limits<float>::max(), 0};
    constexpr std::array<Limit, kNumTolerances> kLimits = {kNone, kNone, kNone, kNone};
    Products products;
    const Kernels& kernels = BestKernels();
    const ChunkSums sums =
        equal ? kernels.sum_equal(chunk, chunk.count, &products) : kernels.sum(chunk, chunk.count, kLimits, &products);
    differences += products.dd;
    squares += products.bb;
    max_abs = std::max(max_abs, sums.max_abs);
    pairs += static_cast<int64_t>(chunk.count);
  }

  void Add(float r, float c) {
    if (!std::isfinite(r) || !std::isfinite(c)) {
      mismatches += !(r == c || (std::isnan(r) && std::isnan(c)));
      return;
    }
    const double difference = static_cast<double>(c) - r;
    differences += difference * difference;
    squares += static_cast<double>(r) * r;
    max_abs = std::max(max_abs, std::abs(difference));
    ++pairs;
  }

  void Fill(TokenRow* row) const {
    if (pairs > 0) row->noise_rms = std::sqrt(differences / static_cast<double>(pairs));
    if (differences > 0) row->noise_relative_l2 = squares > 0 ? std::sqrt(differences / squares) : kInfinity;
    row->noise_max = max_abs;
    row->non_finite_mismatches = mismatches;
  }
};

Noise MeasureNoise(PairedLogits& logits, Top* top_r, Top* top_c) {
  Noise noise;
  logits.ForEachChunk([&](size_t begin, const Pairs& pairs) {
    const ChunkScan scan = BestKernels().scan(pairs);
    if (scan.finite) noise.AddFinite(pairs, scan.equal);
    if (scan.finite && scan.max_b <= top_r->threshold() && scan.max_a <= top_c->threshold()) return;
    ForEachPair(logits, begin, pairs.count, [&](size_t i, float r, float c) {
      top_r->Add(static_cast<int32_t>(i), r);
      top_c->Add(static_cast<int32_t>(i), c);
      if (!scan.finite) noise.Add(r, c);
    });
  });
  return noise;
}

// Of the coarser dtype, at the largest logit.
double LargestStep(const PairedLogits& logits, const Top& top_r, const Top& top_c) {
  double step = 0;
  for (const double value : {top_r.largest(), top_c.largest()}) {
    for (const Logits* side : {&logits.reference(), &logits.candidate()}) {
      step = std::max(step, StepAt(value, side->row.dtype));
    }
  }
  return step;
}

TokenRow MeasureRow(const Logits& reference, const Logits& candidate) {
  PairedLogits logits(reference, candidate);
  TokenRow row;
  Top top_r, top_c;
  MeasureNoise(logits, &top_r, &top_c).Fill(&row);
  top_r.Fill(&row.reference);
  top_c.Fill(&row.candidate);
  row.common_top5 = top_r.Common(top_c, 5);
  row.common_top10 = top_r.Common(top_c, 10);
  row.kl = Divergence(logits, top_r, top_c);
  row.same_top = top_r.first() == top_c.first();
  if (!row.same_top && top_r.first() >= 0 && top_c.first() >= 0) {
    row.reference.gap = top_r.largest() - reference.Value(top_c.first());
    row.candidate.gap = top_c.largest() - candidate.Value(top_r.first());
  }
  row.noise_reach = std::max(kNoiseReach * row.noise_rms, 2 * LargestStep(logits, top_r, top_c));
  return row;
}

// The recorded choice is within reach of the largest logit, as one that fell out of a tie is.
bool ChoiceWithinReach(const TokenSide& side, double reach) {
  const auto at = std::find(side.ids.begin(), side.ids.end(), side.next);
  return at != side.ids.end() && side.values[0] - side.values[static_cast<size_t>(at - side.ids.begin())] <= reach;
}

bool IsWithinNoise(const TokenRow& row) {
  const TokenSide &r = row.reference, &c = row.candidate;
  const double reach = row.noise_reach;
  if (row.non_finite_mismatches > 0 || r.ids[0] < 0 || c.ids[0] < 0) return false;
  if (!row.same_next() || !row.same_top) {
    return ChoiceWithinReach(r, reach) && ChoiceWithinReach(c, reach) && r.gap <= reach && c.gap <= reach;
  }
  return r.margin <= reach || c.margin <= reach;
}

void Complete(const Choices& choices, const TokenRow& row, TokenSide* side) {
  const auto recorded = choices.find({row.sequence, row.position});
  side->next = recorded != choices.end() ? recorded->second : side->ids[0];
}

void Add(size_t index, TokenComparison* sums) {
  const TokenRow& row = sums->rows[index];
  sums->same_top += row.same_top;
  sums->same_next += row.same_next();
  sums->near_ties += row.near_tie;
  sums->different_near_ties += row.near_tie && !row.same_next();
  if (!row.same_next() && !sums->first_different) sums->first_different = index;
  sums->mean_common_top5 += row.common_top5;
  sums->mean_common_top10 += row.common_top10;
  if (std::isnan(row.kl)) return;
  ++sums->rows_with_kl;
  sums->mean_kl += row.kl;
  if (!sums->max_kl_row || row.kl > sums->rows[*sums->max_kl_row].kl) sums->max_kl_row = index;
}

}  // namespace

std::vector<TokenRow> MeasureLogits(const std::vector<Piece>& reference, const std::vector<Piece>& candidate,
                                    std::span<const JoinedRow> rows) {
  std::vector<TokenRow> out(rows.size());
  ParallelForDynamic(static_cast<int64_t>(rows.size()), [&](int64_t i) {
    const JoinedRow& joined = rows[static_cast<size_t>(i)];
    const Piece& piece_r = reference[static_cast<size_t>(joined.reference.piece)];
    const Piece& piece_c = candidate[static_cast<size_t>(joined.candidate.piece)];
    std::vector<std::byte> gathered_r, gathered_c;
    const auto size = static_cast<size_t>(piece_r.row_size());
    TokenRow& row = out[static_cast<size_t>(i)];
    row = MeasureRow({piece_r.At(joined.reference.row, gathered_r), size},
                     {piece_c.At(joined.candidate.row, gathered_c), size});
    row.sequence = joined.sequence;
    row.position = joined.position;
  });
  return out;
}

TokenComparison JudgeTokens(std::vector<TokenRow> rows, const Choices& reference, const Choices& candidate,
                            double bound) {
  std::sort(rows.begin(), rows.end(), [](const TokenRow& a, const TokenRow& b) {
    return std::tie(a.sequence, a.position) < std::tie(b.sequence, b.position);
  });
  TokenComparison sums;
  sums.rows = std::move(rows);
  for (size_t i = 0; i < sums.rows.size(); ++i) {
    TokenRow& row = sums.rows[i];
    Complete(reference, row, &row.reference);
    Complete(candidate, row, &row.candidate);
    row.within_noise = IsWithinNoise(row);
    row.near_tie = row.within_noise && row.noise_relative_l2 <= bound;
    Add(i, &sums);
  }
  const auto count = static_cast<double>(sums.rows.size());
  if (count > 0) sums.mean_common_top5 /= count, sums.mean_common_top10 /= count;
  if (sums.rows_with_kl > 0) sums.mean_kl /= static_cast<double>(sums.rows_with_kl);
  return sums;
}

}  // namespace lockstep
