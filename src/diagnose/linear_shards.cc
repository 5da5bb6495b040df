// y = sum over a, b of c[a, b] · W[:, slice a] x[slice b]: right where c is the identity. Fitted by least squares, so
// that a missing, a doubled and a misplaced slice are all read off c.
#include <algorithm>
#include <cmath>

#include "diagnose/linear.h"

namespace lockstep {
namespace {

constexpr int64_t kShards[] = {2, 4, 8};
constexpr int64_t kRows = 3;
constexpr int64_t kMostChannels = 2048;  // enough equations

// c [n, n], nearly integers; empty where the slices do not explain the values.
std::vector<double> Factors(const Probe& probe, int64_t n) {
  const MatrixPtr& w = probe.fault().errors.call.matrix;
  const int64_t columns = probe.columns(), slice = columns / n, rows = std::min(kRows, probe.rows());
  const int64_t step = std::max<int64_t>(1, w->rows / kMostChannels), channels = w->rows / step;
  std::vector<int64_t> chosen;
  for (int64_t c = 0; c < channels; ++c) chosen.push_back(c * step);
  const MatrixPtr some = WithRows(w, chosen);
  std::vector<double> x(static_cast<size_t>(n * n * rows * columns), 0.0);
  for (int64_t t = 0; t < n * n; ++t) {
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(probe.input().data() + r * columns + t % n * slice, slice,
                  x.data() + (t * rows + r) * columns + t / n * slice);
    }
  }
  const std::vector<double> products = Probe::Products(*some, x, n * n * rows);
  std::vector<const double*> terms;
  for (int64_t t = 0; t < n * n; ++t) terms.push_back(products.data() + t * rows * channels);
  std::vector<double> value, weight;
  for (int64_t r = 0; r < rows; ++r) {
    for (const int64_t c : chosen) {
      value.push_back(probe.Captured(r, c));
      weight.push_back(probe.Affected(r, c) && std::isfinite(value.back()) ? 1 : 0);
    }
  }
  std::vector<double> factors = LeastSquares(terms, value.data(), weight.data(), rows * channels);
  for (double& factor : factors) {
    const double whole = std::round(factor);
    if (std::abs(factor - whole) > 0.05 || whole < -0.5 || whole > 8) return {};
    factor = whole;
  }
  return factors;
}

// A multiple of the whole: nothing about slices.
bool IsMultiple(const std::vector<double>& factors, int64_t n) {
  for (int64_t t = 0; t < n * n; ++t) {
    if (factors[static_cast<size_t>(t)] != (t / n == t % n ? factors[0] : 0)) return false;
  }
  return true;
}

struct Said {
  std::string cause, text;
};

Said Describe(const std::vector<double>& factors, int64_t n) {
  const std::string of = " of " + std::to_string(n);
  bool diagonal = true;
  for (int64_t t = 0; t < n * n; ++t) diagonal = diagonal && (t / n == t % n || factors[static_cast<size_t>(t)] == 0);
  std::string missing, doubled;
  for (int64_t i = 0; i < n && diagonal; ++i) {
    const double factor = factors[static_cast<size_t>(i * n + i)];
    std::string* list = factor == 0 ? &missing : factor != 1 ? &doubled : nullptr;
    if (list) *list += (list->empty() ? "" : ", ") + std::to_string(i);
  }
  if (diagonal && doubled.empty()) return {"linear-shard-missing", "does not add the input's shard " + missing + of};
  if (diagonal && missing.empty()) return {"linear-shard-doubled", "adds the input's shard " + doubled + of + " twice"};
  if (diagonal) {
    return {"linear-shard-doubled", "adds the input's shard " + doubled + of + " twice, and not shard " + missing};
  }
  std::string order;
  for (int64_t a = 0; a < n; ++a) {
    for (int64_t b = 0; b < n; ++b) {
      if (factors[static_cast<size_t>(a * n + b)] != 0) order += (order.empty() ? "" : ",") + std::to_string(b);
    }
  }
  return {"linear-shard-order", "multiplies the weight's shards by the input's shards " + order + of};
}

}  // namespace

void AddShards(const Probe& probe, std::vector<Hypothesis>* out) {
  for (const int64_t n : kShards) {
    const int64_t columns = probe.columns(), slice = columns / n;
    if (columns % n != 0 || probe.rows() * probe.width() < 4 * n * n) continue;
    const std::vector<double> factors = Factors(probe, n);
    if (factors.empty() || IsMultiple(factors, n)) continue;
    const auto before = [=](const std::vector<TokenAt>&, size_t, Block* block) {
      const Block was = *block;
      std::fill(block->value.begin(), block->value.end(), 0.0);
      for (int64_t r = 0; r < was.rows; ++r) {
        for (int64_t t = 0; t < n * n; ++t) {
          const double factor = factors[static_cast<size_t>(t)];
          for (int64_t i = 0; factor != 0 && i < slice; ++i) {
            block->Row(r)[t / n * slice + i] += factor * was.Row(r)[t % n * slice + i];
          }
        }
      }
    };
    const Said said = Describe(factors, n);
    AddRow(probe.fault(), {said.cause, said.text, [&](OpCall& c) { c.before = before, c.partial_sums = n; }}, out);
    return;
  }
}

}  // namespace lockstep
