#include "diagnose/search.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <tuple>

#include "diagnose/causes.h"

namespace lockstep {
namespace {

constexpr int64_t kSampleRows = 32;
constexpr int64_t kQuickRows = 4;  // enough to see that a hypothesis is wrong
constexpr size_t kVerified = 8;    // of those that fit the sample, the best
// A cause must leave at most this share of the error: what changes nearly nothing explains nothing.
constexpr double kMostLeft = 0.5;
// A fit is worse than another where it leaves so many times its error, and more than clean ops do.
constexpr double kClearly = 1.8;
constexpr double kFloor = 0.7;
constexpr double kUnmasked = 1e12;       // squared noise units of a value where there should be none
constexpr double kPairWork = 2e9;        // that the search for two mistakes may cost: seconds
constexpr double kVerifyElements = 4e7;  // of all rows of the logits there are more

struct Candidate {
  Hypothesis hypothesis;
  size_t entry = 0;
  Fit fit;
};

Explanation ExplanationOf(const Candidate& candidate) {
  const Hypothesis& hypothesis = candidate.hypothesis;
  return {hypothesis.cause, hypothesis.text, hypothesis.advice, candidate.fit.error};
}

// Sums of one call's errors over affected cells.
class Totals {
 public:
  explicit Totals(const Limits& limits) : limits_(limits) {}

  void AddCell(double squares, double peak, int64_t count) {
    const double rms = std::sqrt(squares / static_cast<double>(count));
    fit_.error = std::max(fit_.error, rms);
    fit_.ratio = std::max({fit_.ratio, rms / limits_.cell_faulty, peak / limits_.max_faulty});
    row_squares_ += squares;
    row_count_ += count;
  }
  // `judged`: all cells of the row were added, so that the limit of rows holds.
  void EndRow(bool judged) {
    if (row_count_ == 0) return;
    const double rms = std::sqrt(row_squares_ / static_cast<double>(row_count_));
    if (judged) fit_.ratio = std::max(fit_.ratio, rms / limits_.row_faulty);
    squares_ += row_squares_;
    fit_.elements += row_count_;
    row_squares_ = 0, row_count_ = 0;
  }
  Fit Result() const {
    Fit out = fit_;
    out.whole = fit_.elements > 0 ? std::sqrt(squares_ / static_cast<double>(fit_.elements)) : 0;
    if (!std::isfinite(out.whole)) out.error = out.ratio = Fit::kNone;
    return out;
  }

 private:
  const Limits limits_;
  Fit fit_ = {0, 0, 0, 0, 0, false, 0};
  double squares_ = 0, row_squares_ = 0;
  int64_t row_count_ = 0;
};

double Finite(double noise) { return std::isnan(noise) ? Fit::kNone : std::abs(noise); }

// Tokens with an affected cell, at most so many that their rows stay cheap: the worst, and others evenly.
std::vector<TokenAt> AffectedTokens(const PointErrors& errors, const std::vector<char>& affected, int64_t most) {
  std::vector<size_t> rows;
  for (size_t r = 0; r < errors.tokens.size(); ++r) {
    const auto begin = affected.begin() + static_cast<ptrdiff_t>(r) * errors.cells;
    if (std::find(begin, begin + errors.cells, 1) != begin + errors.cells) rows.push_back(r);
  }
  if (static_cast<int64_t>(rows.size()) > most) {
    std::vector<size_t> worst = rows;
    std::stable_sort(worst.begin(), worst.end(), [&](size_t a, size_t b) { return errors.row[a] > errors.row[b]; });
    std::set<size_t> chosen(worst.begin(), worst.begin() + most / 4);
    for (int64_t i = 0; static_cast<int64_t>(chosen.size()) < most && i < most; ++i) {
      chosen.insert(rows[static_cast<size_t>(i) * rows.size() / static_cast<size_t>(most)]);
    }
    rows.assign(chosen.begin(), chosen.end());
  }
  std::vector<TokenAt> out;
  for (const size_t r : rows) out.push_back(errors.tokens[r]);
  return out;
}

// Multiplications, about.
double WorkOf(const Case& fault, const OpCall& call, const std::vector<TokenAt>& tokens) {
  constexpr double kEach = 30;     // of an element of an op that works row by row
  constexpr double kProducts = 5;  // of attention
  const auto width = static_cast<double>(fault.sample.captured.width);
  if (call.op == Op::kLinear)
    return static_cast<double>(tokens.size()) * width * static_cast<double>(call.matrix->columns);
  if (call.op != Op::kAttention) return static_cast<double>(tokens.size()) * width * kEach;
  double keys = 0;
  for (const TokenAt& token : tokens) keys += token.position + 1;
  return keys * width * kProducts;
}

class Search {
 public:
  explicit Search(const Case& fault)
      : fault_(fault), limits_(fault.errors.limits()), only_scale_(ShowsInScaleAlone(fault.errors)) {
    const int64_t width = std::max<int64_t>(1, fault.sample.captured.width);
    const auto most = static_cast<int64_t>(kVerifyElements) / width;
    tokens_ = AffectedTokens(fault.errors, fault.affected, std::max<int64_t>(most, kSampleRows));
  }

  // Proposes by one entry of the catalogue (its size: any op) and tries what comes.
  void Try(size_t entry) {
    const auto catalogue = Catalogue();
    std::vector<Hypothesis> proposed;
    if (entry < catalogue.size()) {
      if (catalogue[entry].op != fault_.errors.call.op) return;
      catalogue[entry].propose(fault_, &proposed);
    } else {
      ProposeForAnyOp(fault_, &proposed);
    }
    for (Hypothesis& hypothesis : proposed) {
      // Those for any op are read off the values.
      if (entry == catalogue.size()) {
        // Nothing is simpler than zero.
        hypothesis.freedom = hypothesis.cause == "values-zero" ? -1 : std::max(hypothesis.freedom, 1);
      }
      Try(std::move(hypothesis), entry);
    }
  }

  void Try(Hypothesis hypothesis, size_t entry) {
    Candidate candidate = {std::move(hypothesis), entry, {}};
    const auto rows = static_cast<int64_t>(fault_.sample.tokens.size());
    candidate.fit = FitOf(fault_, candidate.hypothesis.call, std::min(rows, kQuickRows));
    const bool promising = candidate.fit.ratio <= 1;
    if (promising && rows > kQuickRows) candidate.fit = FitOf(fault_, candidate.hypothesis.call, rows);
    (Fits(candidate.fit) ? fitting_ : others_).push_back(std::move(candidate));
  }

  // Verifies what fits the sample on all affected rows.
  Explained Result() {
    std::vector<Candidate> accepted = Verified();
    std::stable_sort(accepted.begin(), accepted.end(), [](const Candidate& a, const Candidate& b) {
      return std::tuple(a.fit.contradicts, a.hypothesis.freedom, a.fit.scale) <
             std::tuple(b.fit.contradicts, b.hypothesis.freedom, b.fit.scale);
    });
    Explained out;
    const Candidate* best = nullptr;
    for (const Candidate& c : accepted) best = !best || Worse(*best, c) ? &c : best;
    std::set<std::string> named;
    for (const Candidate& c : accepted) {
      if (Worse(c, *best)) continue;
      if (out.cause && (c.hypothesis.freedom > best->hypothesis.freedom || c.fit.contradicts > best->fit.contradicts)) {
        continue;
      }
      if (!named.insert(c.hypothesis.cause).second) continue;
      if (out.cause) {
        out.also.push_back(ExplanationOf(c));
      } else {
        out.cause = ExplanationOf(c), out.entry = c.entry;
        best = &c;
      }
    }
    SetNext(accepted, named, &out);
    return out;
  }

  const std::vector<Candidate>& others() const { return others_; }

 private:
  bool Fits(const Fit& fit) const {
    // A scale that is off by less than the noise of a value leaves nearly all of the error: only all rows can tell.
    return fit.ratio <= 1 && (only_scale_ || fit.left <= kMostLeft);
  }

  // Whether `a` fits clearly worse than `b`: it leaves something systematic, not just another convention of rounding,
  // which a free fit absorbs.
  static bool Worse(const Candidate& a, const Candidate& b) {
    return a.fit.whole > kClearly * b.fit.whole && a.fit.whole > kFloor;
  }

  std::vector<Candidate> Verified() {
    std::vector<Candidate> out;
    std::vector<size_t> order(fitting_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return fitting_[a].fit.whole < fitting_[b].fit.whole; });
    // The best, and the first of the catalogue that are as good.
    std::set<size_t> chosen(order.begin(), order.begin() + static_cast<ptrdiff_t>(std::min(order.size(), kVerified)));
    for (size_t i = 0, more = 0; i < fitting_.size() && more < kVerified; ++i) {
      if (!Worse(fitting_[i], fitting_[order.front()])) more += chosen.insert(i).second;
    }
    for (const size_t i : chosen) {
      Candidate candidate = fitting_[i];
      const Fit of_sample = candidate.fit;
      candidate.fit = Verify(candidate.hypothesis.call);
      candidate.fit.left = of_sample.left;
      candidate.fit.contradicts = of_sample.contradicts;
      if (Fits(candidate.fit)) {
        out.push_back(std::move(candidate));
      } else {
        others_.push_back(std::move(candidate));
      }
    }
    return out;
  }

  Fit Verify(const OpCall& call) {
    const PointErrors judged = Judge(fault_.evaluator, call, &tokens_);
    Totals totals(limits_);
    if (judged.tokens.size() < tokens_.size()) return {};  // something it reads is not there for some rows
    const std::vector<int64_t> rows = JudgedRowsOf(fault_.errors, judged.tokens);
    for (size_t r = 0; r < judged.tokens.size(); ++r) {
      if (rows[r] < 0) return {};
      bool all = true;
      for (int64_t c = 0; c < judged.cells; ++c) {
        if (!fault_.affected[static_cast<size_t>(rows[r] * judged.cells + c)]) {
          all = false;
          continue;
        }
        const auto row = static_cast<int64_t>(r);
        const double rms = judged.Cell(row, c);
        const int64_t count = std::max<int64_t>(1, fault_.sample.captured.width / judged.cells);
        totals.AddCell(rms * rms * static_cast<double>(count), judged.Peak(row, c), count);
      }
      totals.EndRow(all);
    }
    Fit fit = totals.Result();
    if (only_scale_) {
      fit.scale = std::abs(judged.summary.scale) / (limits_.scale_suspect * judged.scale_share);
      if (ScaleIsOff(judged, limits_.scale_suspect)) fit.ratio = std::max(fit.ratio, 2.0);
    }
    return fit;
  }

  // The best of those that do not fit, of another cause than what was named.
  void SetNext(const std::vector<Candidate>& accepted, const std::set<std::string>& named, Explained* out) const {
    const Candidate* next = nullptr;
    const auto consider = [&](const Candidate& c) {
      if (named.count(c.hypothesis.cause) || !std::isfinite(c.fit.error)) return;
      if (!next || c.fit.error < next->fit.error) next = &c;
    };
    for (const Candidate& c : others_) consider(c);
    if (!next) {
      for (const Candidate& c : accepted) consider(c);
    }
    if (next) out->next = ExplanationOf(*next);
  }

  const Case& fault_;
  const Limits limits_;
  const bool only_scale_;
  std::vector<TokenAt> tokens_;
  std::vector<Candidate> fitting_, others_;
};

// Whether the call differs from the right one by more than rounding does: by what would be a fault.
bool IsFault(const Case& fault, const Block& given) {
  const Block& right = fault.sample.expected.block;
  double squares = 0;
  int64_t count = 0;
  for (size_t i = 0; i < right.value.size(); ++i) {
    if (!std::isfinite(right.value[i]) || !std::isfinite(given.value[i])) continue;
    const double noise = NoiseUnits(given.value[i], right.value[i], right.variance.empty() ? 0 : right.variance[i]);
    squares += noise * noise;
    ++count;
  }
  const double limit = fault.errors.limits().row_faulty;
  return squares > limit * limit * static_cast<double>(count);
}

// The second mistakes that may stand on one: of the op's own catalogue, proposed for what the first leaves.
void TryOnGround(const Case& fault, const Hypothesis& ground, Search* search) {
  PointErrors errors = fault.errors;
  errors.call = ground.call;
  Sample sample = fault.sample;
  sample.expected = EvaluateRows(fault.evaluator, ground.call, sample.tokens);
  if (sample.expected.block.width != sample.captured.width || !IsFault(fault, sample.expected.block)) return;
  const Case on_ground(fault.evaluator, errors, sample);
  const auto catalogue = Catalogue();
  for (size_t entry = 0; entry < catalogue.size(); ++entry) {
    if (catalogue[entry].op != fault.errors.call.op) continue;
    std::vector<Hypothesis> second;
    catalogue[entry].propose(on_ground, &second);
    for (Hypothesis& hypothesis : second) {
      if (hypothesis.cause == ground.cause) continue;
      hypothesis.text = ground.text + "; and " + hypothesis.text;
      hypothesis.cause = ground.cause;
      hypothesis.advice = ground.advice;
      hypothesis.freedom += ground.freedom;
      search->Try(std::move(hypothesis), entry);
    }
  }
  fault.work += on_ground.work;
}

// Two mistakes in one op: each hypothesis as the ground that the others are proposed on. Weights are too dear for it.
void TryPairs(const Case& fault, Search* search) {
  const Op op = fault.errors.call.op;
  if (op == Op::kLinear || op == Op::kEmbedding || op == Op::kScores || op == Op::kSoftmax) return;
  std::vector<Hypothesis> grounds;
  for (const CatalogueEntry& entry : Catalogue()) {
    if (entry.op == op) entry.propose(fault, &grounds);
  }
  const double most = fault.work + kPairWork;
  for (const Hypothesis& ground : grounds) {
    if (fault.work > most) return;
    if (ground.call.op == op) TryOnGround(fault, ground, search);  // else nothing is left of the op to go wrong
  }
}

}  // namespace

int64_t SampleRows(const OpCall& call, int64_t width) {
  return call.op == Op::kLinear && width > 32768 ? 8 : kSampleRows;
}

Sample MakeSample(Evaluator& evaluator, const PointErrors& errors, int64_t rows) {
  Sample out;
  std::vector<TokenAt> tokens = AffectedTokens(errors, AffectedCells(errors), rows);
  // The worst and the least in turn, so that the first few tell most.
  const std::vector<int64_t> at = JudgedRowsOf(errors, tokens);
  std::vector<size_t> order(tokens.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return errors.row[static_cast<size_t>(at[a])] > errors.row[static_cast<size_t>(at[b])];
  });
  for (size_t first = 0, last = order.size(); first < last;) {
    out.tokens.push_back(tokens[order[first++]]);
    if (first < last) out.tokens.push_back(tokens[order[--last]]);
  }
  std::stable_sort(out.tokens.begin(), out.tokens.end(),
                   [](const TokenAt& a, const TokenAt& b) { return a.run < b.run; });
  out.expected = EvaluateRows(evaluator, errors.call, out.tokens);
  for (size_t begin = 0, end = 0; begin < out.tokens.size(); begin = end) {
    while (end < out.tokens.size() && out.tokens[end].run == out.tokens[begin].run) ++end;
    const std::vector<TokenAt> part(out.tokens.begin() + static_cast<ptrdiff_t>(begin),
                                    out.tokens.begin() + static_cast<ptrdiff_t>(end));
    Block block = evaluator.Captured(errors.call.point, part).block;
    if (begin == 0) {
      out.captured = std::move(block);
    } else {
      out.captured.rows += block.rows;
      out.captured.value.insert(out.captured.value.end(), block.value.begin(), block.value.end());
      out.captured.variance.insert(out.captured.variance.end(), block.variance.begin(), block.variance.end());
    }
  }
  return out;
}

Fit FitOf(const Case& fault, const OpCall& call, int64_t rows) {
  const PointErrors& errors = fault.errors;
  // Rows of attention tensors are as wide as the longest of them.
  if (fault.evaluator.model().WidthOf(call.point.id) == 0) rows = static_cast<int64_t>(fault.sample.tokens.size());
  const std::vector<TokenAt> tokens(fault.sample.tokens.begin(),
                                    fault.sample.tokens.begin() + static_cast<ptrdiff_t>(rows));
  const Evaluated wrong = EvaluateRows(fault.evaluator, call, tokens);
  if (wrong.block.width != fault.sample.captured.width) return {};
  if (std::find(wrong.observable.begin(), wrong.observable.end(), 0) != wrong.observable.end()) return {};
  const Block& captured = fault.sample.captured;
  const Block& right = fault.sample.expected.block;
  const int64_t cell_width = CellWidthOf(errors, captured.width);
  const Limits limits = errors.limits();
  fault.work += WorkOf(fault, call, tokens);
  Totals totals(limits);
  double before = 0, after = 0;
  bool contradicts = false;
  for (int64_t r = 0; r < rows; ++r) {
    bool all = true;
    for (int64_t c = 0; c < errors.cells; ++c) {
      const int64_t row = fault.row_of[static_cast<size_t>(r)];
      if (row < 0) continue;
      const bool is_affected = fault.affected[static_cast<size_t>(row * errors.cells + c)];
      all = all && is_affected;
      double squares = 0, peak = 0;
      const int64_t end = std::min((c + 1) * cell_width, captured.width);
      for (int64_t i = c * cell_width; i < end; ++i) {
        const double value = captured.Row(r)[i], guess = wrong.block.Row(r)[i], was = right.Row(r)[i];
        const double* variance = wrong.block.Variance(r);
        const double noise = Finite(NoiseUnits(value, guess, variance ? variance[i] : 0));
        squares += noise * noise;
        peak = std::max(peak, noise);
        if (!is_affected) continue;
        // A score that should be masked, or should not; infinity that one of them has alone.
        if (std::isfinite(value) != std::isfinite(was)) before += kUnmasked;
        if (std::isfinite(value) != std::isfinite(guess)) after += kUnmasked;
        if (!std::isfinite(value) || !std::isfinite(guess) || !std::isfinite(was)) continue;
        const double unit = right.Variance(r) && right.Variance(r)[i] > 0 ? right.Variance(r)[i] : 1;
        before += (value - was) * (value - was) / unit;
        after += (value - guess) * (value - guess) / unit;
      }
      if (!is_affected) {
        contradicts = contradicts || peak > limits.max_suspect ||
                      squares > limits.cell_suspect * limits.cell_suspect * static_cast<double>(end - c * cell_width);
        continue;
      }
      totals.AddCell(squares, peak, end - c * cell_width);
    }
    totals.EndRow(all);
  }
  Fit fit = totals.Result();
  fit.contradicts = contradicts;
  fit.left = before > 0 ? std::sqrt(after / before) : std::isfinite(fit.ratio) ? 0 : Fit::kNone;
  return fit;
}

Explained Explain(const Case& fault, const std::vector<size_t>& likely, bool pairs) {
  const size_t any_op = Catalogue().size();
  if (!likely.empty()) {
    Search search(fault);
    for (const size_t entry : likely) search.Try(entry);
    const Explained out = search.Result();
    if (out.cause) return out;
  }
  Search search(fault);
  for (size_t entry = 0; entry <= any_op; ++entry) search.Try(entry);
  Explained out = search.Result();
  if (out.cause || !pairs) return out;
  Search two(fault);
  TryPairs(fault, &two);
  Explained paired = two.Result();
  if (!paired.cause) return out;
  paired.next = out.next;
  return paired;
}

}  // namespace lockstep
