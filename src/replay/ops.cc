#include "replay/ops.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "base/parallel.h"
#include "replay/noise.h"
#include "replay/product.h"

namespace lockstep {
namespace {

constexpr int64_t kColumns = 64;  // of a product at once: its weights stay in the second-level cache

Block Like(int64_t rows, int64_t width) {
  Block out;
  out.Resize(rows, width);
  out.variance.assign(out.value.size(), 0.0);
  return out;
}

// x rounded to what the product reads, and its squares over the largest of each row: they would overflow f32.
struct Operand {
  std::vector<double> value;     // [rows, depth]
  std::vector<float> squares;    // [rows, depth]
  std::vector<float> variances;  // [rows, depth], scaled alike; empty: exact
  std::vector<double> scale;     // [rows] of the squares
};

Operand OperandOf(const Block& x, DType dtype) {
  const Grid grid(dtype);
  Operand out;
  out.value.resize(x.value.size());
  out.squares.resize(x.value.size());
  out.variances.resize(x.variance.size());
  out.scale.resize(static_cast<size_t>(x.rows));
  ParallelFor(x.rows, [&](int64_t r) {
    const double* in = x.Row(r);
    const int64_t at = r * x.width;
    double largest = 0;
    for (int64_t k = 0; k < x.width; ++k) {
      out.value[at + k] = grid.Round(in[k]);
      largest = std::max(largest, std::abs(in[k]));
    }
    const double inverse = largest > 0 ? 1 / largest : 0;
    out.scale[r] = Square(largest);
    for (int64_t k = 0; k < x.width; ++k) out.squares[at + k] = static_cast<float>(Square(in[k] * inverse));
    if (x.variance.empty()) return;
    for (int64_t k = 0; k < x.width; ++k) {
      out.variances[at + k] = static_cast<float>(x.Variance(r)[k] * Square(inverse));
    }
  });
  return out;
}

// The sums over each of so many slices of the input: [slices, rows, columns]. Empty where there is but one.
std::vector<double> PartialSums(const Operand& x, const std::vector<double>& weight, int64_t rows, int64_t columns,
                                int64_t depth, int64_t slices) {
  std::vector<double> out(slices > 1 ? static_cast<size_t>(slices * rows * columns) : 0);
  for (int64_t s = 0; slices > 1 && s < slices; ++s) {
    const int64_t begin = s * depth / slices, end = (s + 1) * depth / slices;
    Product({x.value.data() + begin, depth}, rows, {weight.data() + begin, depth}, columns, end - begin,
            {out.data() + s * rows * columns, columns});
  }
  return out;
}

}  // namespace

Block Linear(const Block& x, const OpCall& call, const Arithmetic& arithmetic) {
  const Matrix& w = *call.matrix;
  assert(w.columns == x.width);
  const int64_t depth = x.width;
  const Grid storage(arithmetic.storage);
  const double a = Grid(arithmetic.accumulate).unit_error();
  const double sum_error = a * a * static_cast<double>(depth) / 4;
  const Operand operand = OperandOf(x, arithmetic.operands);
  Block y = Like(x.rows, w.rows);
  ParallelForDynamic(CeilDiv(w.rows, kColumns), [&](int64_t chunk) {
    const int64_t begin = chunk * kColumns, count = std::min(kColumns, w.rows - begin);
    std::vector<double> weight(static_cast<size_t>(count * depth));
    std::vector<float> squares(weight.size()), sums(static_cast<size_t>(x.rows * count)), inherited;
    w.read(begin, count, weight.data());
    for (size_t i = 0; i < weight.size(); ++i) squares[i] = static_cast<float>(Square(weight[i]));
    Product({operand.value.data(), depth}, x.rows, {weight.data(), depth}, count, depth, {y.Row(0) + begin, y.width});
    Product({operand.squares.data(), depth}, x.rows, {squares.data(), depth}, count, depth, {sums.data(), count});
    if (!operand.variances.empty()) {
      inherited.resize(sums.size());
      Product({operand.variances.data(), depth}, x.rows, {squares.data(), depth}, count, depth,
              {inherited.data(), count});
    }
    const std::vector<double> parts = PartialSums(operand, weight, x.rows, count, depth, call.partial_sums);
    for (int64_t r = 0; r < x.rows; ++r) {
      double* value = y.Row(r) + begin;
      double* variance = y.Variance(r) + begin;
      for (int64_t j = 0; j < count; ++j) {
        if (!call.bias.empty()) value[j] += call.bias[begin + j];
        double v = sum_error * sums[r * count + j];
        if (!inherited.empty()) v += inherited[r * count + j];
        variance[j] = storage.Rounding(value[j]) + v * operand.scale[r];
        for (size_t i = static_cast<size_t>(r * count + j); i < parts.size();
             i += static_cast<size_t>(x.rows * count)) {
          variance[j] += storage.Rounding(parts[i]);
        }
      }
    }
  });
  return y;
}

namespace {

// One group of one row.
void NormGroup(const double* x, const double* x_variance, const double* weight, const NormParams& norm,
               const Arithmetic& arithmetic, double* y, double* variance, double* rounded) {
  const int64_t n = norm.group;
  const Grid storage(arithmetic.storage), statistics(norm.statistics);
  const double a = Grid(arithmetic.accumulate).unit_error();
  double mean = 0, sum = 0, spread = 0;
  if (norm.subtract_mean) {
    for (int64_t i = 0; i < n; ++i) mean += x[i];
    mean /= static_cast<double>(n);
  }
  for (int64_t i = 0; i < n; ++i) {
    const double square = Square(x[i] - mean);
    const double seen = norm.statistics_of_rounded ? Square(statistics.Round(x[i] - mean)) : square;
    sum += norm.statistics == DType::kF64 ? square : statistics.Round(seen);
    if (x_variance) spread += square * x_variance[i];
  }
  const double mean_square = statistics.Round(sum / norm.count);
  const double inverse =
      norm.eps_outside_root ? 1 / (std::sqrt(mean_square) + norm.eps) : 1 / std::sqrt(mean_square + norm.eps);
  // Of the inverse root: half that of the sum, a reciprocal root of a few units, and what the inputs bring.
  const double relative = SumOfSquaresError(a, n) / 4 + 4 * a * a + spread * Square(Square(inverse) / norm.count);
  for (int64_t i = 0; i < n; ++i) {
    const double z = (x[i] - mean) * inverse;
    y[i] = z * weight[i];
    rounded[i] = storage.Round(weight[i] * storage.Round(z));
    variance[i] = storage.Rounding(y[i]) + Square(weight[i]) * storage.Rounding(z) + Square(y[i]) * relative;
    // What is left after the mean was subtracted may be far below what was rounded.
    if (norm.subtract_mean)
      variance[i] += Square(weight[i] * inverse * a) * (Square(x[i]) + Square(mean) + mean_square);
    // An element's own error turns the mean with it.
    if (x_variance) variance[i] += Square(weight[i] * inverse) * x_variance[i] * (1 - 2 * z * z / norm.count);
  }
}

}  // namespace

Block RmsNorm(const Block& x, const OpCall& call, const Arithmetic& arithmetic) {
  const NormParams& norm = call.norm;
  assert(x.width % norm.group == 0);
  Block y = x;
  const bool whole = static_cast<int64_t>(norm.weight.size()) == x.width;
  for (int i = 0; i < norm.times; ++i) {
    const Block in = std::move(y);
    y = Like(in.rows, in.width);
    // A row times a factor near a power of two rounds to itself throughout.
    y.rounded.resize(y.value.size());
    ParallelFor(in.rows, [&](int64_t r) {
      for (int64_t c = 0; c < in.width; c += norm.group) {
        const double* variance = in.Variance(r);
        NormGroup(in.Row(r) + c, variance ? variance + c : nullptr, norm.weight.data() + (whole ? c : 0), norm,
                  arithmetic, y.Row(r) + c, y.Variance(r) + c, y.rounded.data() + r * y.width + c);
      }
    });
  }
  if (y.variance.empty()) y.variance.assign(y.value.size(), 0.0);
  return y;
}

namespace {

// Of one token: what its heads are multiplied with.
struct Rotation {
  std::vector<double> cos, sin, cos_variance, sin_variance;  // [pairs]
};

Rotation RotationAt(double position, const RopeParams& rope, const Arithmetic& arithmetic) {
  const Grid storage(arithmetic.storage), tables(rope.tables), values(rope.values);
  const double a = Grid(arithmetic.accumulate).unit_error();
  Rotation out;
  for (const double frequency : rope.frequencies) {
    const double once = tables.Round(tables.Round(position) * tables.Round(frequency));
    const double angle = once * rope.times * rope.direction;
    // The angle is a product in f32 of a frequency that is a power: the rounding of its exponent counts by its
    // logarithm.
    const double log = std::log(std::abs(frequency) > 0 ? std::abs(frequency) : 1);
    const double angle_variance = Square(angle * a) * (4 + log * log / 3);
    const double cosine = std::cos(angle) * rope.magnitude, sine = std::sin(angle) * rope.magnitude;
    const auto add = [&](double value, double slope, std::vector<double>* list, std::vector<double>* variances) {
      // Near a border of the tables' grid the angle's rounding decides.
      const double reach = 4 * std::sqrt(slope * slope * angle_variance) + 4 * a * std::abs(value);
      const double low = values.Round(value - reach), high = values.Round(value + reach);
      const bool is_rounded = rope.values != DType::kF64;
      const double rounded = is_rounded ? (low + high) / 2 : value;
      list->push_back(rounded);
      variances->push_back(storage.Rounding(rounded) +
                           (is_rounded ? Square(high - low) / 4 : Square(slope) * angle_variance));
    };
    add(cosine, sine, &out.cos, &out.cos_variance);
    add(sine, cosine, &out.sin, &out.sin_variance);
  }
  return out;
}

void RotateHead(const double* x, const double* x_variance, const Rotation& rotation, const RopeParams& rope,
                const Grid& storage, double* y, double* variance) {
  const auto pairs = static_cast<int64_t>(rotation.cos.size());
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t first = rope.interleaved ? 2 * i : i, second = rope.interleaved ? 2 * i + 1 : i + pairs;
    const double c = rotation.cos[i], s = rotation.sin[i];
    const auto turn = [&](int64_t at, int64_t other, double sine) {
      const double straight = x[at] * c, cross = x[other] * sine;
      y[at] = straight + cross;
      variance[at] = storage.Rounding(y[at]) + storage.Rounding(straight) + storage.Rounding(cross) +
                     Square(x[at]) * rotation.cos_variance[i] + Square(x[other]) * rotation.sin_variance[i];
      // Each further rotation rounds values as large as the pair.
      if (rope.times > 1) variance[at] += (rope.times - 1) * 4 * storage.Rounding(std::hypot(x[at], x[other]));
      if (x_variance) variance[at] += c * c * x_variance[at] + s * s * x_variance[other];
    };
    turn(first, second, -s);
    turn(second, first, s);
  }
}

}  // namespace

Block Rope(const Block& x, const std::vector<TokenAt>& tokens, const OpCall& call, const Arithmetic& arithmetic) {
  const RopeParams& rope = call.rope;
  const Grid storage(arithmetic.storage);
  Block y = x;  // what is not rotated stays
  y.variance.resize(y.value.size(), 0.0);
  if (rope.times == 0) return y;
  ParallelFor(x.rows, [&](int64_t r) {
    const TokenAt& token = tokens[static_cast<size_t>(r)];
    const Rotation rotation = RotationAt(rope.position ? rope.position(token) : token.position, rope, arithmetic);
    for (int64_t h = 0; h < x.width; h += call.head_dim) {
      const double* variance = x.Variance(r);
      RotateHead(x.Row(r) + h, variance ? variance + h : nullptr, rotation, rope, storage, y.Row(r) + h,
                 y.Variance(r) + h);
    }
  });
  return y;
}

Block Add(const std::vector<Block>& inputs, const OpCall& call, const Arithmetic& arithmetic) {
  const Grid storage(arithmetic.storage);
  Block y = Like(inputs.front().rows, inputs.front().width);
  ParallelFor(y.rows, [&](int64_t r) {
    double* value = y.Row(r);
    double* variance = y.Variance(r);
    for (size_t i = 0; i < inputs.size(); ++i) {
      AddScaled(call.factors[i], inputs[i].Row(r), y.width, value);
      if (const double* v = inputs[i].Variance(r)) AddScaled(Square(call.factors[i]), v, y.width, variance);
      const double factor = std::abs(call.factors[i]);
      if (factor == 1 || factor == 0) continue;
      for (int64_t c = 0; c < y.width; ++c) variance[c] += storage.Rounding(factor * inputs[i].Row(r)[c]);
    }
    for (int64_t c = 0; c < y.width; ++c) variance[c] += storage.Rounding(value[c]);
  });
  return y;
}

namespace {

// The activation and its derivative.
struct Activated {
  double value, slope;
};

Activated Activate(Activation activation, double x) {
  constexpr double kRoot2OverPi = 0.79788456080286535588, kInverseRoot2Pi = 0.39894228040143267794;
  switch (activation) {
    case Activation::kSilu: {
      const double s = 1 / (1 + std::exp(-x));
      return {x * s, s * (1 + x * (1 - s))};
    }
    case Activation::kSigmoid: {
      const double s = 1 / (1 + std::exp(-x));
      return {s, s * (1 - s)};
    }
    case Activation::kGelu: {
      const double p = 0.5 * std::erfc(-x / std::sqrt(2.0));
      return {x * p, p + x * kInverseRoot2Pi * std::exp(-x * x / 2)};
    }
    case Activation::kGeluTanh: {
      const double t = std::tanh(kRoot2OverPi * (x + 0.044715 * x * x * x));
      return {0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * kRoot2OverPi * (1 + 3 * 0.044715 * x * x)};
    }
    case Activation::kRelu: return {std::max(x, 0.0), x > 0 ? 1.0 : 0.0};
    case Activation::kIdentity: return {x, 1};
    case Activation::kQuickGelu: {
      const double s = 1 / (1 + std::exp(-1.702 * x));
      return {x * s, s * (1 + 1.702 * x * (1 - s))};
    }
  }
  return {x, 1};
}

// x * sigmoid(1.702 x) where the product in the sigmoid and the sigmoid are rounded, each in a step of its own.
double QuickGeluRounding(double x, const Grid& storage) {
  const double s = 1 / (1 + std::exp(-1.702 * x));
  return Square(x) * (storage.Rounding(s) + Square(s * (1 - s)) * storage.Rounding(1.702 * x));
}

}  // namespace

Block SwiGlu(const Block& gate, const Block& up, const OpCall& call, const Arithmetic& arithmetic) {
  const SwiGluParams& params = call.swiglu;
  const Grid storage(arithmetic.storage);
  const double a = Grid(arithmetic.accumulate).unit_error();
  const Block& active = params.swapped ? up : gate;
  const Block& other = params.swapped ? gate : up;
  Block y = Like(gate.rows, gate.width);
  ParallelFor(y.rows, [&](int64_t r) {
    const double *x = active.Row(r), *u = other.Row(r);
    const double *x_variance = active.Variance(r), *u_variance = other.Variance(r);
    for (int64_t c = 0; c < y.width; ++c) {
      const Activated act = Activate(params.activation, x[c]);
      const double factor = params.multiply ? u[c] : 1;
      const double value = params.multiply ? act.value * u[c] : params.add ? act.value + u[c] : act.value;
      // e^-x of a large argument: its rounding counts by the argument, as long as the result shows it.
      const double exponential = Square(act.value * a) * (4 + Square(std::min(std::abs(x[c]), 90.0)));
      // x * sigmoid(1.702 x) is three ops, each rounded: the product, the sigmoid, and what it is multiplied by.
      const double steps = params.activation == Activation::kQuickGelu ? QuickGeluRounding(x[c], storage) : 0;
      // 1 + erf or 1 + tanh cancels where x is far below 0: an absolute error.
      const bool cancels = params.activation == Activation::kGelu || params.activation == Activation::kGeluTanh;
      const double cancelled = cancels ? Square(2 * x[c] * a) : 0;
      // In F32 e^-x overflows from -88.7 on: x / (1 + e^-x) is 0 there in a correct engine, too.
      const double overflowed = x[c] < -88 ? Square(act.value) : 0;
      double variance = storage.Rounding(value) +
                        Square(factor) * (storage.Rounding(act.value) + exponential + cancelled + steps + overflowed);
      if (x_variance) variance += Square(factor * act.slope) * x_variance[c];
      if (u_variance) variance += (params.multiply ? Square(act.value) : params.add ? 1 : 0) * u_variance[c];
      y.Row(r)[c] = value;
      y.Variance(r)[c] = variance;
    }
  });
  return y;
}

namespace {

// Of a copy: nothing is rounded, so the least difference stands far above it.
double ExactVariance(double y, const Grid& storage) { return storage.Rounding(y) * 0x1p-12; }

}  // namespace

Block Copy(const Block& x, const Arithmetic& arithmetic) {
  const Grid storage(arithmetic.storage);
  Block y = x;
  y.variance.resize(y.value.size(), 0.0);
  ParallelFor(y.rows, [&](int64_t r) {
    for (int64_t c = 0; c < y.width; ++c) {
      y.Row(r)[c] = storage.Round(y.Row(r)[c]);
      y.Variance(r)[c] += ExactVariance(y.Row(r)[c], storage);
    }
  });
  return y;
}

Block Embedding(const std::vector<TokenAt>& tokens, const OpCall& call, const Arithmetic& arithmetic) {
  const Grid storage(arithmetic.storage);
  Block y = Like(static_cast<int64_t>(tokens.size()), call.matrix->columns);
  ParallelFor(y.rows, [&](int64_t r) {
    call.matrix->read(tokens[static_cast<size_t>(r)].input_id, 1, y.Row(r));
    for (int64_t c = 0; c < y.width; ++c) y.Variance(r)[c] = ExactVariance(y.Row(r)[c], storage);
  });
  return y;
}

}  // namespace lockstep
