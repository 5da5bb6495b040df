#include "replay/judge.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "replay/detail.h"
#include "replay/noise.h"

namespace lockstep {
namespace {

struct RowSums {
  ErrorSums all;
  std::vector<ErrorSums> cells;
  double weighted = 0, weights = 0;  // sum of captured * expected / variance, of expected^2 / variance
  double rounded = 0;                // the first with what rounding every step gives instead of captured
  bool has_rounded = false;
  int64_t non_finite = 0;
  int64_t first_non_finite = -1;
  bool inherited = false;
};

// Row r of a block as captured and as expected. histogram: null: not wanted.
RowSums SumRow(const Block& seen, const Block& right, int64_t r, int64_t cells, int64_t cell_width,
               ErrorHistogram* histogram) {
  const double* captured = seen.Row(r);
  const double* expected = right.Row(r);
  const double* variance = right.Variance(r);
  const double* rounded = right.rounded.empty() ? nullptr : right.rounded.data() + r * right.width;
  const int64_t width = right.width;
  RowSums out;
  out.cells.resize(static_cast<size_t>(cells));
  for (int64_t c = 0; c < width; ++c) {
    if (captured[c] == -INFINITY && expected[c] == -INFINITY) continue;  // masked
    const bool masked = expected[c] == -INFINITY && std::isfinite(captured[c]);
    const bool doubtful = right.IsDoubtful(r, c) && !std::isfinite(captured[c]);
    if ((!std::isfinite(expected[c]) && !masked) || doubtful) {
      out.inherited = true;
      continue;
    }
    const double error = masked ? INFINITY : NoiseUnits(captured[c], expected[c], variance[c]);
    out.cells[static_cast<size_t>(c / cell_width)].Add(error, c);
    if (histogram) Count(std::isinf(error) && captured[c] < expected[c] ? -INFINITY : error, histogram);
    if (!std::isfinite(captured[c])) {
      ++out.non_finite;
      if (out.first_non_finite < 0) out.first_non_finite = c;
    } else if (variance[c] > 0 && !masked) {
      out.weighted += captured[c] * expected[c] / variance[c];
      out.has_rounded = out.has_rounded || rounded;
      out.rounded += (rounded && std::isfinite(rounded[c]) ? rounded[c] : expected[c]) * expected[c] / variance[c];
      out.weights += Square(expected[c]) / variance[c];
    }
  }
  for (const ErrorSums& cell : out.cells) out.all.Add(cell);
  return out;
}

// Everything of a point, added up row by row in order.
class Judgement {
 public:
  Judgement(PointErrors* out, int64_t cell_width) : out_(*out), cell_width_(cell_width) {}

  // captured, expected: the row's values.
  void Add(const TokenAt& token, const RowSums& row, const double* captured, const double* expected) {
    LocalError& summary = out_.summary;
    if (row.inherited && row.all.count == 0) {
      ++summary.rows_inherited;
      return;
    }
    summary.rows_inherited += row.inherited;
    ++summary.rows;
    const double rms = row.all.Rms();
    out_.tokens.push_back(token);
    out_.row.push_back(static_cast<float>(rms));
    if (rms > summary.worst_row || summary.rows == 1) {
      summary.worst_row = rms;
      summary.worst_row_at = At(token, -1);
    }
    for (size_t c = 0; c < row.cells.size(); ++c) {
      const double cell = row.cells[c].Rms();
      out_.cell.push_back(static_cast<float>(cell));
      out_.peak.push_back(static_cast<float>(row.cells[c].peak));
      worst_cell_ = std::max(worst_cell_, cell);
      if (out_.call.heads > 0 && (cell > summary.worst_head || summary.worst_head_at.head < 0)) {
        summary.worst_head = cell;
        summary.worst_head_at = {token.sequence, token.position, static_cast<int>(c), -1};
      }
    }
    if (row.all.peak_at >= 0 && (row.all.peak > all_.peak || all_.peak_at < 0)) {
      summary.max = row.all.peak;
      summary.max_at = At(token, row.all.peak_at);
      summary.max_value = captured[row.all.peak_at];
      summary.max_expected = expected[row.all.peak_at];
    }
    if (row.non_finite > 0 && summary.non_finite == 0) summary.first_non_finite = At(token, row.first_non_finite);
    summary.non_finite += row.non_finite;
    all_.Add(row.all);
    weighted_ += row.weighted;
    rounded_ += row.rounded;
    has_rounded_ = has_rounded_ || row.has_rounded;
    weights_ += row.weights;
  }

  void Finish() {
    LocalError& summary = out_.summary;
    summary.elements = all_.count;
    summary.whole = all_.Rms();
    if (weights_ > 0) {
      summary.scale = weighted_ / weights_ - 1;
      summary.scale_error = 1 / std::sqrt(weights_);
      if (out_.call.op == Op::kAttention) {
        // The probabilities' rounding is common to all channels of a head.
        const double head_error = 0.08 * Grid(out_.arithmetic.storage).unit_error();
        const auto heads = static_cast<double>(summary.rows * std::max<int64_t>(1, out_.call.heads));
        summary.scale_error = std::sqrt(1 / weights_ + Square(head_error) / heads);
      }
    }
    // Rounding every step is as right as rounding once: the nearer of the two counts. Of the first all roundings are
    // known, and what an engine does otherwise (the order of a sum) turns few of them.
    constexpr double kKnown = 1.0 / 4;
    const double every_step = summary.scale - (weights_ > 0 ? rounded_ / weights_ - 1 : 0);
    if (has_rounded_ && std::abs(every_step) < kKnown * std::abs(summary.scale)) {
      summary.scale = every_step;
      summary.scale_error *= kKnown;
      out_.scale_share = kKnown;
    }
    const Limits limits = out_.limits();
    const auto beyond = [&](double row, double cell, double max, double scale) {
      return summary.worst_row > row || worst_cell_ > cell || summary.max > max || summary.non_finite > 0 ||
             ScaleIsOff(out_, scale);
    };
    if (beyond(limits.row_faulty, limits.cell_faulty, limits.max_faulty, limits.scale_faulty)) {
      summary.verdict = OpVerdict::kFaulty;
    } else if (beyond(limits.row_suspect, limits.cell_suspect, limits.max_suspect, limits.scale_suspect)) {
      summary.verdict = OpVerdict::kSuspect;
    }
    if (summary.rows == 0) summary.verdict = OpVerdict::kNotObservable;
  }

 private:
  Place At(const TokenAt& token, int64_t element) const {
    Place place = {token.sequence, token.position, -1, -1};
    if (element < 0) return place;
    const bool heads = out_.call.heads > 0;
    place.head = heads ? static_cast<int>(element / cell_width_) : -1;
    place.channel = static_cast<int>(heads ? element % cell_width_ : element);
    return place;
  }

  PointErrors& out_;
  const int64_t cell_width_;
  ErrorSums all_;
  double worst_cell_ = 0;
  double weighted_ = 0, weights_ = 0, rounded_ = 0;
  bool has_rounded_ = false;
};

Phase PhaseOf(Evaluator& evaluator, const TokenAt& token) {
  const Run& run = evaluator.captures().runs().runs[static_cast<size_t>(token.run)];
  return run.Tokens(static_cast<size_t>(token.step)).phase;
}

}  // namespace

Limits LimitsOf(Op op, const Arithmetic& arithmetic, bool bridged) {
  // Rounding to 16 bits is nearly all of the noise there, and bounded; in F32 the order of long sums shows.
  const Grid grid(arithmetic.storage);
  const bool is_short = grid.unit_error() > 0x1p-20;
  const bool attention = op == Op::kAttention || op == Op::kScores || op == Op::kSoftmax;
  const double u = grid.unit_error();
  Limits limits;
  if (attention) {
    limits = is_short ? Limits{2.5, 4, 4.5, 6, 8, 12, 0.1 * u, 0.15 * u} : Limits{4, 6, 8, 12, 20, 30, 8 * u, 16 * u};
  } else if (is_short) {
    limits = {2, 2.5, 2.2, 3, 5, 8, 0.04 * u, 0.06 * u};
  } else if (op == Op::kLinear) {
    limits = {2.5, 3.5, 3, 4.5, 16, 24, 8 * u, 16 * u};
  } else {
    limits = {2, 3, 3, 4, 6, 10, 8 * u, 16 * u};
  }
  if (!bridged) return limits;
  // The rounding of what was not captured is carried along to first order, and is common to whole rows.
  return {2 * limits.row_suspect, 2 * limits.row_faulty, 2 * limits.cell_suspect,   2 * limits.cell_faulty,
          2 * limits.max_suspect, 2 * limits.max_faulty, 16 * limits.scale_suspect, 16 * limits.scale_faulty};
}

PointErrors Judge(Evaluator& evaluator, const OpCall& call, const std::vector<TokenAt>* tokens, LocalDetail* detail) {
  PointErrors out;
  out.call = call;
  out.arithmetic = evaluator.ArithmeticOf(call.point);
  const CapturedPoint& captured = evaluator.captures().Of(call.point);
  const std::vector<TokenAt>& all = tokens ? *tokens : captured.tokens();
  const int64_t block = evaluator.RowsPerBlock(call.point);
  std::set<std::string> from;
  std::optional<Judgement> judgement;
  std::optional<LocalDetailMeter> meter;
  for (size_t begin = 0; begin < all.size();) {
    std::vector<TokenAt> part;
    for (size_t i = begin; i < all.size() && static_cast<int64_t>(part.size()) < block; ++i) {
      if (all[i].run != all[begin].run) break;
      part.push_back(all[i]);
    }
    begin += part.size();
    const Evaluated seen = evaluator.Captured(call.point, part);
    const Evaluated expected = evaluator.Evaluate(call, part);
    from.insert(expected.from.begin(), expected.from.end());
    out.summary.bridged = out.summary.bridged || expected.bridged;
    const int64_t width = expected.block.width;
    const int64_t cell_width = call.heads > 0 ? width / call.heads : std::min(width, kCellWidth);
    out.cells = CeilDiv(width, cell_width);
    if (!judgement) judgement.emplace(&out, cell_width);
    if (detail && !meter) meter.emplace(all, call.heads, out.cells, cell_width);
    std::vector<RowSums> rows(part.size());
    std::vector<ErrorHistogram> histograms(detail ? part.size() : 0);
    ParallelFor(static_cast<int64_t>(part.size()), [&](int64_t r) {
      const auto at = static_cast<size_t>(r);
      if (!seen.observable[at] || !expected.observable[at]) return;
      rows[at] = SumRow(seen.block, expected.block, r, out.cells, cell_width, detail ? &histograms[at] : nullptr);
    });
    for (size_t r = 0; r < part.size(); ++r) {
      if (!seen.observable[r] || !expected.observable[r]) {
        ++out.summary.rows_not_observable;
        if (!expected.missing.empty() && out.summary.reasons.empty()) {
          out.summary.reasons.push_back(expected.missing + " was not captured");
        }
        continue;
      }
      const auto at = static_cast<int64_t>(r);
      judgement->Add(part[r], rows[r], seen.block.Row(at), expected.block.Row(at));
      if (!detail || rows[r].all.count == 0) continue;
      Merge(histograms[r], &detail->histogram);
      meter->Add(part[r], PhaseOf(evaluator, part[r]), rows[r].cells);
    }
  }
  if (judgement) judgement->Finish();
  if (meter) meter->Finish(detail);
  const Limits limits = out.limits();
  out.summary.limits = {limits.row_faulty, limits.cell_faulty, limits.max_faulty,
                        limits.scale_faulty * out.scale_share};
  out.summary.from.assign(from.begin(), from.end());
  out.summary.arithmetic = out.arithmetic;
  return out;
}

}  // namespace lockstep
