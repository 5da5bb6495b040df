// Matrix products: y = x Wᵀ. Which weight was read is searched: a few output channels tell.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/parallel.h"
#include "base/round.h"
#include "diagnose/linear.h"
#include "replay/noise.h"
#include "replay/product.h"

namespace lockstep {
namespace {

constexpr int64_t kProbeRows = 6;
constexpr int64_t kProbeChannels = 12;
constexpr double kTolerance = 16;             // noise units
constexpr int64_t kMostReordered = 48 << 20;  // elements of a weight that is held in memory to be reordered

}  // namespace

Probe::Probe(const Case& fault) : fault_(fault) {
  const OpCall& call = fault.errors.call;
  const std::optional<Block> input = InputRows(fault, call.inputs.front());
  if (!input) return;
  rows_ = std::min(kProbeRows, input->rows);
  columns_ = input->width;
  const Grid operands(fault.errors.arithmetic.operands);
  for (int64_t i = 0; i < rows_ * columns_; ++i) {
    input_.push_back(operands.Round(input->value[static_cast<size_t>(i)]));
  }
  weights_ = FitWeights(fault);
  std::vector<int64_t> affected;
  for (int64_t c = 0; c < width(); ++c) {
    if (Affected(0, c)) affected.push_back(c);
  }
  const auto count = std::min<int64_t>(kProbeChannels, static_cast<int64_t>(affected.size()));
  for (int64_t i = 0; i < count; ++i) {
    channels_.push_back(affected[static_cast<size_t>(i * static_cast<int64_t>(affected.size()) / count)]);
  }
}

bool Probe::Affected(int64_t row, int64_t channel) const {
  return weights_[static_cast<size_t>(row * width() + channel)] > 0;
}

bool Probe::Is(int64_t row, int64_t channel, double value) const {
  const Block& right = fault_.sample.expected.block;
  const double captured = Captured(row, channel);
  const double variance = right.Variance(row)[channel] + Grid(fault_.errors.arithmetic.storage).Rounding(captured);
  return std::abs(captured - value) <= kTolerance * std::sqrt(variance);
}

bool Probe::Reproduces(const Matrix& weight) const {
  std::vector<double> row(static_cast<size_t>(columns_));
  int64_t right = 0, all = 0;
  for (const int64_t channel : channels_) {
    if (channel >= weight.rows) return false;
    weight.read(channel, 1, row.data());
    for (int64_t r = 0; r < rows_; ++r) {
      if (!Affected(r, channel)) continue;
      ++all;
      right += Is(r, channel, std::inner_product(row.begin(), row.end(), input_.data() + r * columns_, 0.0));
    }
    if (right < all / 2) return false;
  }
  return all > 0 && right * 10 >= all * 9;
}

std::vector<double> Probe::Products(const Matrix& weight, const std::vector<double>& input, int64_t rows) {
  constexpr int64_t kAtOnce = 64;
  std::vector<double> out(static_cast<size_t>(rows * weight.rows));
  ParallelForDynamic(CeilDiv(weight.rows, kAtOnce), [&](int64_t block) {
    const int64_t begin = block * kAtOnce, count = std::min(kAtOnce, weight.rows - begin);
    std::vector<double> part(static_cast<size_t>(count * weight.columns));
    weight.read(begin, count, part.data());
    Product({input.data(), weight.columns}, rows, {part.data(), weight.columns}, count, weight.columns,
            {out.data() + begin, weight.rows});
  });
  return out;
}

void AddWeight(const Probe& probe, const std::string& cause, const std::string& text, const MatrixPtr& weight,
               std::vector<Hypothesis>* out) {
  AddRow(probe.fault(), {cause, text, [&](OpCall& c) { c.matrix = weight; }}, out);
}

namespace {

void AddReordered(const Probe& probe, std::vector<Hypothesis>* out) {
  const MatrixPtr& w = probe.fault().errors.call.matrix;
  const int64_t n = w->rows, k = w->columns;
  if (n * k > kMostReordered) return;
  const auto add = [&](const char* cause, const std::string& text, std::function<int64_t(int64_t, int64_t)> at,
                       int64_t partial_sums = 1) {
    const MatrixPtr other = Reordered(w, n, k, std::move(at));
    if (!probe.Reproduces(*other)) return;
    AddWeight(probe, cause, text, other, out);
    out->back().call.partial_sums = partial_sums;
  };
  const std::string shape = "[" + std::to_string(n) + ", " + std::to_string(k) + "]";
  if (n == k) {
    add("linear-transposed", "uses the weight transposed", [k](int64_t r, int64_t c) { return c * k + r; });
  } else {
    add("linear-reinterpreted", "reads the weight " + shape + " as if it were stored transposed",
        [n](int64_t r, int64_t c) { return c * n + r; });
    add("linear-reinterpreted", "reads the transposed weight as if it were " + shape, [n, k](int64_t r, int64_t c) {
      const int64_t flat = r * k + c;
      return flat % n * k + flat / n;
    });
  }
  for (const int64_t shards : {2, 4, 8, 16}) {
    if (n % shards != 0 || k % shards != 0) continue;
    const std::string text = " of " + std::to_string(shards) + " shards";
    const int64_t part = n * k / shards, columns = k / shards, rows = n / shards;
    add(
        "linear-input-slices", "takes the weight's row blocks instead of its column blocks" + text,
        [=](int64_t r, int64_t c) { return c / columns * part + r * columns + c % columns; }, shards);
    add("linear-input-slices", "takes the weight's column blocks instead of its row blocks" + text,
        [=](int64_t r, int64_t c) {
          const int64_t flat = r % rows * k + c;  // in the shard [n, k / shards], taken as [n / shards, k]
          return flat / columns * k + r / rows * columns + flat % columns;
        });
  }
}

// Weights of other layers, at the same output channels.
void AddOtherLayers(const Probe& probe, std::vector<Hypothesis>* out) {
  const Case& fault = probe.fault();
  const ReplayModel& model = fault.evaluator.model();
  const PointAt& own = fault.errors.call.point;
  if (own.layer < 0) return;
  for (int layer = 0; layer < model.config().num_hidden_layers; ++layer) {
    if (layer == own.layer) continue;
    for (const PointSpec& spec : Points()) {
      if (!spec.per_layer || spec.op != SpecOf(own.id).op || spec.weights.empty()) continue;
      const PointAt other = {spec.id, layer};
      const MatrixPtr weight = model.Weight(model.WeightName(other), fault.errors.arithmetic.operands);
      if (weight->columns != probe.columns() || weight->rows < probe.width()) continue;
      if (!probe.Reproduces(*weight)) continue;
      std::vector<int64_t> first(static_cast<size_t>(probe.width()));
      for (size_t i = 0; i < first.size(); ++i) first[i] = static_cast<int64_t>(i);
      AddWeight(probe, spec.id == own.id ? "linear-other-layer" : "linear-other-weight",
                "uses the weight of " + NameSeenFrom(other, own.layer), WithRows(weight, first), out);
    }
  }
}

void AddTie(const Probe& probe, std::vector<Hypothesis>* out) {
  const ReplayModel& model = probe.fault().evaluator.model();
  if (probe.fault().errors.call.point.id != Point::kLogits || model.config().tie_word_embeddings) return;
  const MatrixPtr embedding = model.Weight("model.embed_tokens.weight", probe.fault().errors.arithmetic.operands);
  if (probe.Reproduces(*embedding)) {
    AddWeight(probe, "linear-tie", "uses embed_tokens instead of lm_head", embedding, out);
  }
}

// The same for every token: the mean over the affected rows.
void AddBias(const Case& fault, std::vector<Hypothesis>* out) {
  constexpr int64_t kLeastRows = 4;  // fewer would fit anything
  const Block& captured = fault.sample.captured;
  const std::vector<double> weights = FitWeights(fault);
  std::vector<double> bias(static_cast<size_t>(captured.width)), uncertainty(bias.size());
  bool any = false;
  for (int64_t c = 0; c < captured.width; ++c) {
    double sum = 0, total = 0;
    int64_t rows = 0;
    for (int64_t r = 0; r < captured.rows; ++r) {
      const double weight = weights[static_cast<size_t>(r * captured.width + c)];
      if (weight == 0) continue;
      ++rows, total += weight;
      sum += weight * (captured.Row(r)[c] - fault.sample.expected.block.Row(r)[c]);
    }
    if (rows < kLeastRows) continue;
    any = true;
    bias[static_cast<size_t>(c)] = sum / total;
    uncertainty[static_cast<size_t>(c)] = 1 / total;
  }
  if (!any) return;
  const Grid storage(fault.errors.arithmetic.storage);
  AddRow(fault,
         {"linear-bias", "adds a bias that the checkpoint does not have",
          [&](OpCall& c) {
            c.bias = bias;
            c.after = [bias, uncertainty, storage](const std::vector<TokenAt>&, Block* block) {
              for (size_t e = 0; e < block->variance.size(); ++e) {
                const size_t channel = e % bias.size();
                // The product is rounded before the bias is added.
                block->variance[e] += uncertainty[channel] + storage.Rounding(block->value[e] - bias[channel]);
              }
            };
          },
          2},
         out);
}

// Its 16-bit buffers taken for the other 16-bit dtype.
void AddReinterpreted(const Probe& probe, std::vector<Hypothesis>* out) {
  const Case& fault = probe.fault();
  const DType own = fault.errors.arithmetic.storage;
  if (own != DType::kBF16 && own != DType::kF16) return;
  const DType other = own == DType::kBF16 ? DType::kF16 : DType::kBF16;
  const std::string as = own == DType::kBF16 ? "bf16 as f16" : "f16 as bf16";
  AddRow(fault,
         {"linear-wrong-input", "reads its input's " + as,
          [=](OpCall& c) {
            c.before = [=](const std::vector<TokenAt>&, size_t, Block* block) {
              for (double& x : block->value) x = Reinterpreted(x, own, other);
            };
          }},
         out);
  const MatrixPtr weight = fault.errors.call.matrix;
  const auto taken =
      std::make_shared<Matrix>(Matrix{weight->rows, weight->columns, [=](int64_t begin, int64_t count, double* values) {
                                        weight->read(begin, count, values);
                                        for (int64_t i = 0; i < count * weight->columns; ++i)
                                          values[i] = Reinterpreted(values[i], own, other);
                                      }});
  if (probe.Reproduces(*taken)) AddWeight(probe, "linear-weight-rounded", "reads its weight's " + as, taken, out);
}

void AddInputOrders(const Case& fault, std::vector<Hypothesis>* out) {
  const Config& config = fault.evaluator.model().config();
  const bool heads = fault.errors.call.point.id == Point::kAttnOProj;
  const int64_t columns = fault.errors.call.matrix->columns;
  for (const NamedOrder& order : NamedOrders(columns, heads ? config.head_dim : columns)) {
    AddRow(fault,
           {"linear-rows-permuted", "reads its input in another order: " + order.text,
            [map = order.map](OpCall& c) {
              c.before = [map](const std::vector<TokenAt>&, size_t, Block* block) {
                const Block was = *block;
                for (int64_t r = 0; r < block->rows; ++r) {
                  for (size_t i = 0; i < map.size(); ++i) block->Row(r)[i] = was.Row(r)[map[i]];
                }
              };
            }},
           out);
  }
}

}  // namespace

void ProposeForLinear(const Case& fault, std::vector<Hypothesis>* out) {
  const DType storage = fault.errors.arithmetic.storage;
  const Row doubled = {"linear-doubled", "gives twice the product: it was accumulated twice", [storage](OpCall& c) {
                         c.after = [storage](const std::vector<TokenAt>&, Block* block) {
                           ScaleRounded(2, storage, block);
                         };
                       }};
  AddRow(fault, doubled, out);
  const Probe probe(fault);
  if (!probe.empty()) {
    AddReordered(probe, out);
    AddTie(probe, out);
    AddRowMaps(probe, out);
    AddOtherLayers(probe, out);
    AddShards(probe, out);
    AddGrids(probe, out);
    AddReinterpreted(probe, out);
  }
  AddBias(fault, out);
  AddWrongInputs(fault, 0, "linear-wrong-input", {}, out);
  AddInputOrders(fault, out);
}

}  // namespace lockstep
