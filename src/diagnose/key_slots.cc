#include "diagnose/key_slots.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/parallel.h"

namespace lockstep {
namespace {

constexpr size_t kProbes = 4;
constexpr size_t kTried = 64;        // of those that fit one probe best, on all
constexpr int64_t kMostKeys = 4096;  // the search takes their square
constexpr double kMostLeft = 0.1;    // of the squared error, for a change to be proposed

// What is read in place of the right keys and values. Ranges and slots are positions.
struct Replaced {
  enum Kind : uint8_t { kSlot, kZero, kRing } kind = kSlot;
  int64_t first = 0;   // slot; begin of the range; length of the ring
  int64_t second = 0;  // the row that stands in the slot; end of the range
  bool keys = true, values = true;
  double left = INFINITY;  // of the squared error in noise units
};

// A query head of one row, and the keys and values of its sequence at that step.
class Probe {
 public:
  // Nothing where some row is not observable.
  static std::optional<Probe> Of(const Case& fault, int64_t row, int64_t head);

  int64_t keys() const { return keys_; }
  double Left() const { return Left(sum_.data(), total_); }
  // What is left of the error under the change.
  double Left(const Replaced& change) const;
  // The best slot changes of one slot, and the best ranges that begin there: by what is replaced.
  std::array<Replaced, 6> BestAt(int64_t slot) const;

 private:
  double Left(const double* sum, double total) const;
  double LeftOfRing(const Replaced& change) const;
  const double* Value(int64_t j) const { return values_.data() + j * d_; }

  int64_t keys_ = 0, seen_ = 0, d_ = 0;
  double zero_ = 0;                           // weight of a key that is zero
  std::vector<double> weights_;               // [keys] exp(score - largest)
  std::vector<double> values_;                // [keys, d]
  std::vector<double> sum_;                   // [d] of weight * value over the keys seen
  double total_ = 0;                          // of the weights
  std::vector<double> captured_, precision_;  // [d]
};

// The keys of the token's sequence when its step ran; empty where a position is missing.
std::vector<TokenAt> KeysOf(Captures& captures, const TokenAt& token) {
  std::vector<TokenAt> out;
  for (const auto& [position, writes] : captures.Written(token.run, token.sequence)) {
    const TokenAt* latest = nullptr;
    for (const TokenAt& write : writes) {
      if (write.step <= token.step) latest = &write;
    }
    if (!latest) continue;
    if (position != static_cast<int32_t>(out.size())) return {};
    out.push_back(*latest);
  }
  return out;
}

std::optional<Probe> Probe::Of(const Case& fault, int64_t row, int64_t head) {
  const OpCall& call = fault.errors.call;
  const TokenAt& token = fault.sample.tokens[static_cast<size_t>(row)];
  const std::vector<TokenAt> tokens = KeysOf(fault.evaluator.captures(), token);
  if (static_cast<int64_t>(tokens.size()) <= token.position || tokens.size() > kMostKeys) return std::nullopt;
  const std::optional<Block> q = InputRows(fault.evaluator, call.inputs[0], {token});
  const std::optional<Block> k = InputRows(fault.evaluator, call.inputs[1], tokens);
  const std::optional<Block> v = InputRows(fault.evaluator, call.inputs[2], tokens);
  if (!q || !k || !v) return std::nullopt;
  Probe out;
  out.keys_ = k->rows, out.seen_ = token.position + 1, out.d_ = call.head_dim;
  const int64_t from = call.attention.kv_head[static_cast<size_t>(head)] * out.d_, at = head * out.d_;
  double largest = 0;
  for (int64_t j = 0; j < out.keys_; ++j) {
    double dot = 0;
    for (int64_t c = 0; c < out.d_; ++c) dot += q->Row(0)[at + c] * k->Row(j)[from + c];
    out.weights_.push_back(dot * call.attention.scale);
    largest = std::max(largest, out.weights_.back());
    out.values_.insert(out.values_.end(), v->Row(j) + from, v->Row(j) + from + out.d_);
  }
  for (double& weight : out.weights_) weight = std::exp(weight - largest);
  out.zero_ = std::exp(-largest);
  out.sum_.assign(static_cast<size_t>(out.d_), 0.0);
  for (int64_t j = 0; j < out.seen_; ++j) {
    out.total_ += out.weights_[static_cast<size_t>(j)];
    for (int64_t c = 0; c < out.d_; ++c) out.sum_[c] += out.weights_[static_cast<size_t>(j)] * out.Value(j)[c];
  }
  const Block& expected = fault.sample.expected.block;
  for (int64_t c = 0; c < out.d_; ++c) {
    out.captured_.push_back(fault.sample.captured.Row(row)[at + c]);
    if (!std::isfinite(out.captured_.back())) return std::nullopt;
    out.precision_.push_back(1 / std::max(expected.Variance(row)[at + c], 1e-300));
  }
  return out;
}

double Probe::Left(const double* sum, double total) const {
  double out = 0;
  for (int64_t c = 0; c < d_; ++c) {
    const double off = sum[c] / total - captured_[static_cast<size_t>(c)];
    out += off * off * precision_[static_cast<size_t>(c)];
  }
  return out;
}

double Probe::LeftOfRing(const Replaced& change) const {
  std::vector<double> sum(static_cast<size_t>(d_), 0.0);
  double total = 0;
  for (int64_t j = 0; j < seen_; ++j) {
    const int64_t newest = j + (keys_ - 1 - j) / change.first * change.first;
    const double weight = weights_[static_cast<size_t>(change.keys ? newest : j)];
    const double* value = Value(change.values ? newest : j);
    total += weight;
    for (int64_t c = 0; c < d_; ++c) sum[static_cast<size_t>(c)] += weight * value[c];
  }
  return Left(sum.data(), total);
}

double Probe::Left(const Replaced& change) const {
  if (change.kind == Replaced::kRing) return LeftOfRing(change);
  const bool slot = change.kind == Replaced::kSlot;
  if (slot && change.second >= keys_) return INFINITY;
  std::vector<double> sum = sum_;
  double total = total_;
  for (int64_t j = change.first; j < std::min(slot ? change.first + 1 : change.second, seen_); ++j) {
    const double was = weights_[static_cast<size_t>(j)];
    const double is = !change.keys ? was : slot ? weights_[static_cast<size_t>(change.second)] : zero_;
    const double* value = !change.values ? Value(j) : slot ? Value(change.second) : nullptr;
    total += is - was;
    for (int64_t c = 0; c < d_; ++c) {
      sum[static_cast<size_t>(c)] += (value ? is * value[c] : 0) - was * Value(j)[c];
    }
  }
  return Left(sum.data(), total);
}

std::array<Replaced, 6> Probe::BestAt(int64_t slot) const {
  constexpr std::array<std::pair<bool, bool>, 3> kWhat = {{{true, true}, {true, false}, {false, true}}};
  std::array<Replaced, 6> best;
  for (size_t what = 0; what < kWhat.size(); ++what) {
    const auto [keys, values] = kWhat[what];
    for (int64_t from = 0; from < keys_; ++from) {
      Replaced change = {Replaced::kSlot, slot, from, keys, values, 0};
      change.left = from == slot ? INFINITY : Left(change);
      if (change.left < best[what].left) best[what] = change;
    }
    std::vector<double> sum = sum_;
    double total = total_;
    for (int64_t end = slot + 1; end <= seen_; ++end) {
      const double was = weights_[static_cast<size_t>(end - 1)], is = keys ? zero_ : was;
      total += is - was;
      for (int64_t c = 0; c < d_; ++c) {
        sum[static_cast<size_t>(c)] += ((values ? 0 : is) - was) * Value(end - 1)[c];
      }
      const double left = Left(sum.data(), total);
      // What this row does not see may be zero, too.
      Replaced& range = best[kWhat.size() + what];
      if (left < range.left) range = {Replaced::kZero, slot, end == seen_ ? keys_ : end, keys, values, left};
    }
  }
  return best;
}

// The worst affected head of the first rows of the sample.
std::vector<Probe> ProbesOf(const Case& fault) {
  std::vector<Probe> out;
  const PointErrors& errors = fault.errors;
  for (size_t i = 0; i < fault.row_of.size() && out.size() < kProbes; ++i) {
    const int64_t row = fault.row_of[i];
    int64_t worst = -1;
    for (int64_t h = 0; row >= 0 && h < errors.cells; ++h) {
      if (!fault.affected[static_cast<size_t>(row * errors.cells + h)]) continue;
      if (worst < 0 || errors.Cell(row, h) > errors.Cell(row, worst)) worst = h;
    }
    if (worst < 0) continue;
    std::optional<Probe> probe = Probe::Of(fault, static_cast<int64_t>(i), worst);
    if (probe) out.push_back(std::move(*probe));
  }
  return out;
}

Replaced Search(const std::vector<Probe>& probes) {
  const Probe& first = probes.front();
  std::vector<Replaced> found(static_cast<size_t>(first.keys()) * 7);
  ParallelForDynamic(first.keys(), [&](int64_t slot) {
    const std::array<Replaced, 6> best = first.BestAt(slot);
    std::copy(best.begin(), best.end(), found.begin() + slot * 7);
    Replaced& ring = found[static_cast<size_t>(slot * 7 + 6)];
    ring = {Replaced::kRing, slot + 1, 0, true, true, 0};
    ring.left = first.Left(ring);
  });
  const auto order = [](const Replaced& a, const Replaced& b) { return a.left < b.left; };
  const auto tried = found.begin() + static_cast<ptrdiff_t>(std::min(kTried, found.size()));
  std::partial_sort(found.begin(), tried, found.end(), order);
  for (auto change = found.begin(); change != tried; ++change) {
    change->left = 0;
    for (const Probe& probe : probes) change->left += probe.Left(*change);
  }
  return *std::min_element(found.begin(), tried, order);
}

std::string TextOf(const Replaced& change) {
  const std::string what = change.keys && change.values ? "keys and values" : change.keys ? "keys" : "values";
  const std::string first = std::to_string(change.first), second = std::to_string(change.second);
  if (change.kind == Replaced::kRing) {
    return "reads " + what + " from a ring of " + first + " rows, in which newer ones stand in the place of older ones";
  }
  if (change.kind == Replaced::kSlot) {
    return "reads the " + what + " of position " + second + " at position " + first + ", too";
  }
  const bool one = change.second == change.first + 1;
  return "reads zeros for the " + what + " of position" +
         (one ? " " + first : "s " + first + "-" + std::to_string(change.second - 1));
}

KeySource SourceOf(const Replaced& change) {
  return [change](int64_t count, int64_t j) {
    switch (change.kind) {
      case Replaced::kRing: return j + (count - 1 - j) / change.first * change.first;
      case Replaced::kSlot: return j == change.first && change.second < count ? change.second : j;
      case Replaced::kZero: return j >= change.first && j < change.second ? int64_t{-1} : j;
    }
    return j;
  };
}

}  // namespace

std::vector<int> AffectedKvHeads(const Case& fault) {
  const std::vector<int>& kv_head = fault.errors.call.attention.kv_head;
  std::vector<int> out;
  for (size_t i = 0; i < fault.affected.size(); ++i) {
    const size_t head = i % static_cast<size_t>(fault.errors.cells);
    if (head >= kv_head.size() || !fault.affected[i]) continue;
    if (std::find(out.begin(), out.end(), kv_head[head]) == out.end()) out.push_back(kv_head[head]);
  }
  std::sort(out.begin(), out.end());
  const auto all = static_cast<size_t>(fault.evaluator.model().config().num_key_value_heads);
  return out.size() < all ? out : std::vector<int>{};
}

Change CacheOf(const KeySource& source, bool keys, bool values, std::vector<int> kv_heads) {
  return [=](OpCall& c) {
    const int64_t d = c.head_dim;
    c.attention.by_step = true;
    c.before = [=](const std::vector<TokenAt>&, size_t input, Block* block) {
      if (input == 0 || (input == 1 && !keys) || (input == 2 && !values)) return;
      const Block was = *block;
      for (int64_t j = 0; j < block->rows; ++j) {
        const int64_t from = source(block->rows, j);
        if (from == j) continue;
        for (int64_t at = 0; at < block->width; at += d) {
          const auto head = static_cast<int>(at / d);
          if (!kv_heads.empty() && std::find(kv_heads.begin(), kv_heads.end(), head) == kv_heads.end()) continue;
          if (from < 0 || from >= was.rows) {
            std::fill_n(block->Row(j) + at, d, 0.0);
          } else {
            std::copy_n(was.Row(from) + at, d, block->Row(j) + at);
          }
        }
      }
    };
  };
}

void AddKeySlots(const Case& fault, std::vector<Hypothesis>* out) {
  const OpCall& call = fault.errors.call;
  if (call.op != Op::kAttention || call.before || call.after || call.inputs.size() < 3) return;
  const std::vector<Probe> probes = ProbesOf(fault);
  if (probes.empty()) return;
  double before = 0;
  for (const Probe& probe : probes) before += probe.Left();
  const Replaced best = Search(probes);
  if (!(best.left < kMostLeft * before)) return;
  const auto add = [&](const std::vector<int>& heads) {
    std::string text = TextOf(best);
    for (const int head : heads) text += (head == heads.front() ? " of key/value head " : ", ") + std::to_string(head);
    // Two numbers say where, but one a ring; the heads are chosen, too.
    const int freedom = (best.kind == Replaced::kRing ? 1 : 2) + (heads.empty() ? 0 : 1);
    AddRow(fault, {"attention-stale-cache", text, CacheOf(SourceOf(best), best.keys, best.values, heads), freedom},
           out);
  };
  add({});
  if (const std::vector<int> heads = AffectedKvHeads(fault); !heads.empty()) add(heads);
}

}  // namespace lockstep
