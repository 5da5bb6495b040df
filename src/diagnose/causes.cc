#include "diagnose/causes.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "diagnose/search.h"
#include "replay/noise.h"

namespace lockstep {
namespace {

// Place in the order of execution.
std::pair<int, int> OrderOf(const PointAt& point, int num_layers) {
  const int id = static_cast<int>(point.id);
  if (point.layer >= 0) return {point.layer, id};
  return {point.id == Point::kInputEmbeddings ? -1 : num_layers, id};
}

}  // namespace

Case::Case(Evaluator& of, const PointErrors& all, const Sample& some)
    : evaluator(of), errors(all), sample(some), affected(AffectedCells(all)), row_of(JudgedRowsOf(all, some.tokens)) {}

void AddRows(const Case& fault, std::span<const Row> rows, std::vector<Hypothesis>* out) {
  for (const Row& row : rows) {
    Hypothesis& hypothesis = out->emplace_back();
    hypothesis.cause = row.cause;
    hypothesis.text = row.text;
    hypothesis.advice = AdviceFor(row.cause);
    hypothesis.call = fault.errors.call;
    hypothesis.freedom = row.freedom;
    row.change(hypothesis.call);
  }
}

void AddWrongInputs(const Case& fault, size_t input, const std::string& cause,
                    const std::vector<std::pair<Point, std::string>>& causes, std::vector<Hypothesis>* out) {
  const OpCall& call = fault.errors.call;
  const PointAt& right = call.inputs[input];
  const int layer = call.point.layer;
  const int64_t width = fault.evaluator.model().WidthOf(right.id);
  for (const PointAt& point : EarlierPoints(fault.evaluator, call.point, width)) {
    if (point == right) continue;
    std::string named = cause;
    for (const auto& [id, other] : causes) {
      if (id == point.id) named = other;
    }
    const std::string text = "reads " + NameSeenFrom(point, layer) + " instead of " + NameSeenFrom(right, layer);
    AddRow(fault, {named, text, [&](OpCall& c) { c.inputs[input] = point; }}, out);
  }
}

std::vector<PointAt> EarlierPoints(Evaluator& evaluator, const PointAt& point, int64_t width) {
  const int num_layers = static_cast<int>(evaluator.model().config().num_hidden_layers);
  const std::pair<int, int> own = OrderOf(point, num_layers);
  std::vector<PointAt> out;
  for (const PointSpec& spec : Points()) {
    if (evaluator.model().WidthOf(spec.id) != width) continue;
    std::vector<int> layers = {-1};
    if (spec.per_layer) layers = {own.first, own.first - 1};
    for (const int layer : layers) {
      if (spec.per_layer && (layer < 0 || layer >= num_layers)) continue;
      const PointAt other = {spec.id, layer};
      if (OrderOf(other, num_layers) < own && !evaluator.captures().Of(other).empty()) out.push_back(other);
    }
  }
  std::sort(out.begin(), out.end(),
            [&](const PointAt& a, const PointAt& b) { return OrderOf(a, num_layers) > OrderOf(b, num_layers); });
  return out;
}

std::string Number(double value, int digits) {
  char text[40];
  std::snprintf(text, sizeof(text), "%.*g", digits, value);
  return text;
}

std::string LayerSeenFrom(int other, int layer) {
  if (other == layer + 1) return "the next layer's";
  if (other == layer - 1) return "the layer before's";
  return "layer " + std::to_string(other) + "'s";
}

std::string NameSeenFrom(const PointAt& point, int layer) {
  const std::string name(SpecOf(point.id).name);
  return point.layer < 0 || point.layer == layer ? name : LayerSeenFrom(point.layer, layer) + " " + name;
}

Evaluated EvaluateRows(Evaluator& evaluator, const OpCall& call, const std::vector<TokenAt>& tokens) {
  Evaluated out;
  for (size_t begin = 0, end = 0; begin < tokens.size(); begin = end) {
    while (end < tokens.size() && tokens[end].run == tokens[begin].run) ++end;
    Evaluated part = evaluator.Evaluate(
        call, {tokens.begin() + static_cast<ptrdiff_t>(begin), tokens.begin() + static_cast<ptrdiff_t>(end)});
    if (begin == 0) {
      out = std::move(part);
      continue;
    }
    out.block.rows += part.block.rows;
    const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
    append(out.block.value, part.block.value);
    append(out.block.variance, part.block.variance);
    append(out.observable, part.observable);
  }
  return out;
}

std::optional<Block> InputRows(Evaluator& evaluator, const PointAt& input, const std::vector<TokenAt>& tokens) {
  OpCall call;
  call.point = input;
  call.op = Op::kCopy;
  call.inputs = {input};
  Evaluated rows = EvaluateRows(evaluator, call, tokens);
  if (std::find(rows.observable.begin(), rows.observable.end(), 0) != rows.observable.end()) return std::nullopt;
  return std::move(rows.block);
}

std::optional<Block> InputRows(const Case& fault, const PointAt& input) {
  return InputRows(fault.evaluator, input, fault.sample.tokens);
}

bool ShowsInScaleAlone(const PointErrors& errors) {
  constexpr double kEven = 2;  // a fault of some rows stands out further than noise does
  const LocalError& summary = errors.summary;
  const Limits limits = errors.limits();
  return ScaleIsOff(errors, limits.scale_suspect) && summary.whole <= limits.row_suspect &&
         summary.worst_row <= kEven * limits.row_suspect && summary.worst_head <= kEven * limits.cell_suspect;
}

std::vector<char> AffectedCells(const PointErrors& errors) {
  const auto rows = static_cast<int64_t>(errors.tokens.size());
  const Limits limits = errors.limits();
  std::vector<char> out(static_cast<size_t>(rows * errors.cells), 0);
  bool any = false;
  for (int64_t r = 0; r < rows; ++r) {
    char* row = out.data() + r * errors.cells;
    bool in_row = false;
    for (int64_t c = 0; c < errors.cells; ++c) {
      row[c] = !(errors.Cell(r, c) <= limits.cell_suspect && errors.Peak(r, c) <= limits.max_suspect);
      in_row = in_row || row[c];
    }
    if (!in_row && errors.row[static_cast<size_t>(r)] > limits.row_suspect) {
      std::fill(row, row + errors.cells, 1);
      in_row = true;
    }
    any = any || in_row;
  }
  if (!any || ShowsInScaleAlone(errors)) std::fill(out.begin(), out.end(), 1);
  return out;
}

std::vector<int64_t> JudgedRowsOf(const PointErrors& errors, const std::vector<TokenAt>& tokens) {
  std::map<TokenAt, int64_t> rows;
  for (size_t r = 0; r < errors.tokens.size(); ++r) rows[errors.tokens[r]] = static_cast<int64_t>(r);
  std::vector<int64_t> out;
  for (const TokenAt& token : tokens) {
    const auto found = rows.find(token);
    out.push_back(found == rows.end() ? -1 : found->second);
  }
  return out;
}

void ScaleRounded(double factor, DType storage, Block* block) {
  const Grid grid(storage);
  block->variance.resize(block->value.size());
  for (size_t i = 0; i < block->value.size(); ++i) {
    block->value[i] *= factor;
    block->variance[i] = block->variance[i] * factor * factor + grid.Rounding(block->value[i]);
  }
}

std::vector<double> FitWeights(const Case& fault) {
  const PointErrors& errors = fault.errors;
  const Block& captured = fault.sample.captured;
  const Block& expected = fault.sample.expected.block;
  const int64_t cell_width = CellWidthOf(errors, captured.width);
  const Grid storage(errors.arithmetic.storage);
  std::vector<double> out(captured.value.size(), 0.0);
  for (int64_t r = 0; r < captured.rows; ++r) {
    const int64_t row = fault.row_of[static_cast<size_t>(r)];
    if (row < 0) continue;
    // Where the right result nearly vanishes its noise does, too; not that of what was computed instead.
    double mean = 0;
    for (int64_t i = 0; expected.Variance(r) && i < captured.width; ++i) mean += expected.Variance(r)[i];
    mean /= static_cast<double>(captured.width);
    for (int64_t i = 0; i < captured.width; ++i) {
      const auto cell = static_cast<size_t>(row * errors.cells + i / cell_width);
      const auto at = static_cast<size_t>(r * captured.width + i);
      if (!fault.affected[cell] || !std::isfinite(captured.value[at]) || !std::isfinite(expected.value[at])) continue;
      const double own = expected.Variance(r) == nullptr ? 0 : expected.Variance(r)[i];
      const double variance = own + storage.Rounding(captured.value[at]) + 0.1 * mean;
      out[at] = std::isfinite(variance) && variance > 0 ? 1 / variance : 1;
    }
  }
  return out;
}

std::vector<double> LeastSquares(const std::vector<const double*>& terms, const double* value, const double* weight,
                                 int64_t n) {
  const size_t k = terms.size();
  std::vector<double> a(k * (k + 1), 0.0);  // normal equations, the right side in the last column
  for (size_t i = 0; i < k; ++i) {
    for (size_t j = i; j <= k; ++j) {
      const double* other = j < k ? terms[j] : value;
      double sum = 0;
      for (int64_t e = 0; e < n; ++e) {
        if (weight[e] > 0) sum += weight[e] * terms[i][e] * other[e];
      }
      a[i * (k + 1) + j] = sum;
      if (j < k) a[j * (k + 1) + i] = sum;
    }
  }
  std::vector<double> diagonal(k);
  for (size_t i = 0; i < k; ++i) diagonal[i] = a[i * (k + 1) + i];
  for (size_t i = 0; i < k; ++i) {  // Gauss-Jordan: positive definite where determined
    const double pivot = a[i * (k + 1) + i];
    if (!(pivot > 1e-9 * diagonal[i])) return {};
    for (size_t r = 0; r < k; ++r) {
      if (r == i) continue;
      const double factor = a[r * (k + 1) + i] / pivot;
      for (size_t j = i; j <= k; ++j) a[r * (k + 1) + j] -= factor * a[i * (k + 1) + j];
    }
  }
  std::vector<double> out(k);
  for (size_t i = 0; i < k; ++i) out[i] = a[i * (k + 1) + k] / a[i * (k + 1) + i];
  return out;
}

double Minimum(double low, double high, const std::function<double(double)>& f) {
  constexpr double kGolden = 0.6180339887498949;
  constexpr int kSteps = 36;  // to 3e-8 of the range
  double a = high - kGolden * (high - low), b = low + kGolden * (high - low);
  double of_a = f(a), of_b = f(b);
  for (int i = 0; i < kSteps; ++i) {
    if (of_a < of_b) {
      high = b, b = a, of_b = of_a;
      a = high - kGolden * (high - low), of_a = f(a);
    } else {
      low = a, a = b, of_a = of_b;
      b = low + kGolden * (high - low), of_b = f(b);
    }
  }
  return (low + high) / 2;
}

double Simplest(const Case& fault, double value, const std::function<OpCall(double)>& of) {
  constexpr double kStandardErrors = 3;
  const auto rows = static_cast<int64_t>(fault.sample.tokens.size());
  const Fit best = FitOf(fault, of(value), rows);
  if (best.elements == 0 || !std::isfinite(best.whole)) return value;
  const double most = best.whole * best.whole + kStandardErrors * kStandardErrors / static_cast<double>(best.elements);
  for (int digits = 1; digits < 7; ++digits) {
    const double shorter = std::strtod(Number(value, digits).c_str(), nullptr);
    const double whole = FitOf(fault, of(shorter), rows).whole;
    if (whole * whole <= most) return shorter;
  }
  return value;
}

}  // namespace lockstep
