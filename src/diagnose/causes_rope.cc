// RoPE: y = rotation of the pairs (i, i + d/2) by position * frequency. Angles are measured from input and output, so
// that theta, a scaling of frequencies and the positions used are estimated, whatever they are.
#include <algorithm>
#include <array>
#include <cmath>
#include <complex>
#include <cstdlib>
#include <map>
#include <numbers>
#include <numeric>

#include "diagnose/causes.h"
#include "diagnose/positions.h"
#include "diagnose/search.h"

namespace lockstep {
namespace {

using Frequencies = std::vector<double>;

Change FrequenciesOf(Frequencies frequencies, double magnitude = 1) {
  return [frequencies = std::move(frequencies), magnitude](OpCall& c) {
    c.rope.frequencies = frequencies;
    c.rope.magnitude = magnitude;
  };
}

void AddThetas(const Case& fault, std::vector<Hypothesis>* out) {
  const int64_t d = fault.errors.call.head_dim;
  const double right = fault.evaluator.model().config().rope_theta;
  for (const double theta : {1e4, 5e5, 1e6, 5e6, 1e5, 1e7, 1e3}) {
    if (theta == right) continue;
    AddRow(fault,
           {"rope-theta", "theta " + Number(theta) + " instead of " + Number(right),
            FrequenciesOf(RopeFrequencies(theta, d))},
           out);
  }
}

// --- Scaled frequencies, as the published recipes have them ---

Frequencies Yarn(double theta, int64_t d, double factor, double original) {
  const auto pair_of = [&](double rotations) {
    return static_cast<double>(d) * std::log(original / (rotations * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  const double low = std::max(std::floor(pair_of(32)), 0.0);
  const double high = std::min(std::ceil(pair_of(1)), static_cast<double>(d - 1));
  Frequencies out = RopeFrequencies(theta, d);
  for (size_t i = 0; i < out.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / std::max(high - low, 1e-3), 0.0, 1.0);
    out[i] *= ramp / factor + 1 - ramp;
  }
  return out;
}

Frequencies Llama3(double theta, int64_t d, double factor, double original) {
  constexpr double kLow = 1, kHigh = 4;
  Frequencies out = RopeFrequencies(theta, d);
  for (double& f : out) {
    const double smooth = std::clamp((original * f / (2 * std::numbers::pi) - kLow) / (kHigh - kLow), 0.0, 1.0);
    f *= (1 - smooth) / factor + smooth;
  }
  return out;
}

void AddScalings(const Case& fault, std::vector<Hypothesis>* out) {
  const Config& config = fault.evaluator.model().config();
  const int64_t d = fault.errors.call.head_dim;
  const double theta = config.rope_theta, width = static_cast<double>(d);
  const auto add = [&](const std::string& text, Frequencies frequencies, double magnitude = 1) {
    AddRow(fault, {"rope-scaling", text, FrequenciesOf(std::move(frequencies), magnitude)}, out);
  };
  for (const double factor : {2.0, 4.0, 8.0, 16.0, 32.0}) {
    Frequencies linear = RopeFrequencies(theta, d);
    for (double& f : linear) f /= factor;
    add("divides positions by " + Number(factor) + " (linear scaling)", linear);
    add("scales theta for " + Number(factor) + " times the length (NTK)",
        RopeFrequencies(theta * std::pow(factor, width / (width - 2)), d));
    std::vector<double> lengths = {static_cast<double>(config.max_position_embeddings), 32768, 8192, 4096, 2048, 40960};
    lengths.push_back(lengths.front() / factor);
    std::sort(lengths.begin(), lengths.end());
    lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
    for (const double original : lengths) {
      const std::string tail = " by " + Number(factor) + " for an original length of " + Number(original);
      add("applies YaRN scaling" + tail, Yarn(theta, d, factor, original), 0.1 * std::log(factor) + 1);
      add("applies YaRN scaling without its factor on cos and sin" + tail, Yarn(theta, d, factor, original));
      add("applies Llama 3 scaling" + tail, Llama3(theta, d, factor, original));
    }
  }
}

void AddPartial(const Case& fault, std::vector<Hypothesis>* out) {
  const Config& config = fault.evaluator.model().config();
  const int64_t d = fault.errors.call.head_dim;
  std::vector<int64_t> widths = {d / 2, d / 4, 3 * d / 4, config.hidden_size / config.num_attention_heads, 64};
  std::sort(widths.begin(), widths.end());
  widths.erase(std::unique(widths.begin(), widths.end()), widths.end());
  for (const int64_t width : widths) {
    if (width < 2 || width >= d || width % 2 != 0) continue;
    const std::string text = "rotates only the first " + std::to_string(width) + " channels of each head";
    AddRow(fault, {"rope-partial", text, FrequenciesOf(RopeFrequencies(config.rope_theta, width))}, out);
    // The same channels with the frequencies of the whole head.
    Frequencies fast = RopeFrequencies(config.rope_theta, d);
    Frequencies whole = fast;
    fast.resize(static_cast<size_t>(width / 2));
    AddRow(fault, {"rope-partial", text + ", with the whole head's frequencies", FrequenciesOf(fast)}, out);
    std::fill(whole.begin() + width / 2, whole.end(), 0.0);
    AddRow(fault,
           {"rope-partial", "rotates only the fastest " + std::to_string(width / 2) + " pairs", FrequenciesOf(whole)},
           out);
  }
  Frequencies wrong;  // exponents of i instead of 2 i
  for (int64_t i = 0; i < d / 2; ++i) {
    wrong.push_back(std::pow(config.rope_theta, -static_cast<double>(i) / static_cast<double>(d)));
  }
  AddRow(fault, {"rope-theta", "takes theta^(-i/d) instead of theta^(-2i/d)", FrequenciesOf(wrong)}, out);
  Frequencies reversed = RopeFrequencies(config.rope_theta, d);
  std::reverse(reversed.begin(), reversed.end());
  AddRow(fault, {"rope-frequencies", "takes its frequencies in reverse order", FrequenciesOf(reversed)}, out);
}

// --- Measured from the sample ---

// Per pair, rows by position: the mean of conj(input) * output over the affected heads of each row.
struct Angles {
  std::vector<TokenAt> tokens;
  std::vector<std::complex<double>> turn;  // [tokens, pairs], of unit length where it is a rotation
  std::vector<double> weight;              // [tokens, pairs] sum of |input|^2
  int64_t pairs = 0;
};

std::optional<Angles> Measure(const Case& fault) {
  const OpCall& call = fault.errors.call;
  const std::optional<Block> input = InputRows(fault, call.inputs.front());
  if (!input || input->width != fault.sample.captured.width) return std::nullopt;
  const std::vector<double> weights = FitWeights(fault);
  Angles out;
  out.pairs = call.head_dim / 2;
  std::vector<int64_t> order(static_cast<size_t>(input->rows));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return fault.sample.tokens[static_cast<size_t>(a)].position < fault.sample.tokens[static_cast<size_t>(b)].position;
  });
  for (const int64_t r : order) {
    out.tokens.push_back(fault.sample.tokens[static_cast<size_t>(r)]);
    for (int64_t i = 0; i < out.pairs; ++i) {
      std::complex<double> sum = 0;
      double squares = 0;
      const int64_t first = call.rope.interleaved ? 2 * i : i,
                    second = call.rope.interleaved ? 2 * i + 1 : i + out.pairs;
      for (int64_t h = 0; h < input->width; h += call.head_dim) {
        if (weights[static_cast<size_t>(r * input->width + h + first)] == 0) continue;
        const double* y = fault.sample.captured.Row(r) + h;
        const std::complex<double> x = {input->Row(r)[h + first], input->Row(r)[h + second]};
        sum += std::conj(x) * std::complex<double>(y[first], y[second]);
        squares += std::norm(x);
      }
      out.turn.push_back(squares > 0 ? sum / squares : 0);
      out.weight.push_back(squares);
    }
  }
  return out;
}

// The frequency of a pair from its angles: refined from near positions to far ones, where the angle has gone round. NaN
// where the angles do not lie on a line.
double FrequencyOf(const Angles& angles, int64_t pair, double first_guess) {
  std::map<int32_t, std::complex<double>> at;
  for (size_t t = 0; t < angles.tokens.size(); ++t) {
    const auto i = t * static_cast<size_t>(angles.pairs) + static_cast<size_t>(pair);
    if (angles.weight[i] > 0) at[angles.tokens[t].position] += angles.turn[i] * angles.weight[i];
  }
  double best = NAN, best_error = 0.3;
  const auto try_from = [&](double guess) {
    double frequency = guess, product = 0, squares = 0, worst = 0;
    for (const auto& [position, turn] : at) {
      if (position == 0 || std::abs(turn) == 0) continue;
      const double p = position;
      const double off = std::arg(turn * std::polar(1.0, -p * frequency));
      if (squares > 0) worst = std::max(worst, std::abs(off));
      product += p * (p * frequency + off), squares += p * p;
      frequency = product / squares;
    }
    if (squares > 0 && worst < best_error) best = frequency, best_error = worst;
  };
  if (at.empty()) return NAN;
  try_from(first_guess);
  const int32_t least = at.begin()->first == 0 && at.size() > 1 ? std::next(at.begin())->first : at.begin()->first;
  if (least == 1) try_from(0);
  return best;
}

// Measured frequencies in words, and whether they are the right ones slowed down, the slow ones most.
std::pair<std::string, bool> Described(const Frequencies& measured, const Frequencies& right, int64_t d) {
  double last = 1.02, slope = 0;
  bool is_scaling = true;
  for (size_t i = 0; i < measured.size(); ++i) {
    const double ratio = measured[i] / right[i];
    is_scaling = is_scaling && ratio > 0 && ratio <= last * 1.02;
    last = ratio;
  }
  std::string text =
      "rotates with other frequencies: the slowest pair's is " + Number(last, 3) + " times the right one";
  if (measured.front() > 0 && measured.back() > 0 && measured.size() > 1) {
    slope = std::log(measured.front() / measured.back()) / static_cast<double>(measured.size() - 1);
    text += " (as theta " + Number(std::exp(slope * static_cast<double>(d) / 2), 3) + " would give)";
  }
  return {text, is_scaling};
}

// Squared distance between measured turns and those of these frequencies, over the first `tokens` tokens.
double DistanceOf(const Angles& angles, const Frequencies& frequencies, size_t tokens) {
  double sum = 0;
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t i = 0; i < frequencies.size(); ++i) {
      const size_t at = t * frequencies.size() + i;
      if (angles.weight[at] == 0) continue;
      const double angle = angles.tokens[t].position * frequencies[i];
      sum += angles.weight[at] * std::norm(angles.turn[at] - std::complex<double>(std::cos(angle), std::sin(angle)));
    }
  }
  return sum;
}

using FrequenciesAt = std::function<Frequencies(double)>;

// The best of `steps` + 1 points of [low, high].
double BestOfGrid(const Angles& angles, double low, double high, int steps, size_t tokens, const FrequenciesAt& at) {
  double best = low, least = INFINITY;
  for (int i = 0; i <= steps; ++i) {
    const double x = low + (high - low) * i / steps;
    const double distance = DistanceOf(angles, at(x), tokens);
    if (distance < least) least = distance, best = x;
  }
  return best;
}

// On the nearest positions first, whose angles have not gone round often, then on all: each finer than the one before.
double BestLog(const Angles& angles, double low, double high, const FrequenciesAt& at) {
  constexpr int kSteps = 1500, kFine = 60;
  double step = (high - low) / kSteps;
  size_t tokens = std::min<size_t>(4, angles.tokens.size());
  double best = BestOfGrid(angles, low, high, kSteps, tokens, at);
  while (tokens < angles.tokens.size()) {
    tokens = std::min(2 * tokens, angles.tokens.size());
    best = BestOfGrid(angles, best - 4 * step, best + 4 * step, kFine, tokens, at);
    step *= 0.6;
  }
  for (int round = 0; round < 7; ++round) {
    best = BestOfGrid(angles, best - 2 * step, best + 2 * step, kFine, tokens, at);
    step *= 4.0 / kFine;
  }
  return best;
}

// A theta of many digits is one by its measurement: the last ones differ from layer to layer.
std::string ThetaText(double theta) {
  const std::string text = Number(theta, 4);
  return std::strtod(text.c_str(), nullptr) == theta ? Number(theta) : text;
}

// Theta from a guess of its logarithm: measured angles weigh pairs by their size, not by their noise.
double FittedTheta(const Case& fault, double log_guess) {
  constexpr double kReach = 2e-3;
  const auto with = [&](double theta) {
    OpCall call = fault.errors.call;
    call.rope.frequencies = RopeFrequencies(theta, call.head_dim);
    return call;
  };
  const auto rows = static_cast<int64_t>(fault.sample.tokens.size());
  const auto left = [&](double log) { return FitOf(fault, with(std::exp(log)), rows).whole; };
  return Simplest(fault, std::exp(Minimum(log_guess - kReach, log_guess + kReach, left)), with);
}

void AddFitted(const Case& fault, const Angles& angles, std::vector<Hypothesis>* out) {
  const int64_t d = fault.errors.call.head_dim;
  const double theta = fault.evaluator.model().config().rope_theta;
  const auto of_theta = [d](double log) { return RopeFrequencies(std::exp(log), d); };
  const double fitted = FittedTheta(fault, BestLog(angles, std::log(10.0), std::log(1e9), of_theta));
  AddRow(fault,
         {"rope-theta", "theta " + ThetaText(fitted) + " instead of " + Number(theta),
          FrequenciesOf(RopeFrequencies(fitted, d))},
         out);
  const auto of_factor = [&](double log) {
    Frequencies f = RopeFrequencies(theta, d);
    for (double& one : f) one *= std::exp(log);
    return f;
  };
  const double factor = std::exp(BestLog(angles, std::log(1.0 / 64), std::log(64.0), of_factor));
  AddRow(
      fault,
      {"rope-scaling", "multiplies all angles by " + Number(factor, 4), FrequenciesOf(of_factor(std::log(factor))), 1},
      out);
  double dot = 0, squares = 0;
  for (size_t t = 0; t < angles.tokens.size(); ++t) {
    for (int64_t i = 0; i < angles.pairs; ++i) {
      const size_t at = t * static_cast<size_t>(angles.pairs) + static_cast<size_t>(i);
      dot += angles.weight[at] * std::abs(angles.turn[at]);
      squares += angles.weight[at];
    }
  }
  const double magnitude = squares > 0 ? dot / squares : 1;
  AddRow(fault,
         {"rope-magnitude", "scales cos and sin by " + Number(magnitude, 4),
          [magnitude](OpCall& c) { c.rope.magnitude = magnitude; }},
         out);
  // Whatever the frequencies are: their number is far below that of the values they must explain.
  Frequencies measured;
  const Frequencies right = RopeFrequencies(theta, d);
  for (int64_t i = 0; i < angles.pairs; ++i) {
    measured.push_back(FrequencyOf(angles, i, right[static_cast<size_t>(i)]));
    if (std::isnan(measured.back())) return;
  }
  const auto [text, is_scaling] = Described(measured, right, d);
  AddRow(fault, {is_scaling ? "rope-scaling" : "rope-frequencies", text, FrequenciesOf(measured, magnitude), 2}, out);
}

// Norm and rotation in the wrong order, and rotations of what was not normed.
void AddOrder(const Case& fault, std::vector<Hypothesis>* out) {
  const OpCall& call = fault.errors.call;
  const bool q = call.point.id == Point::kAttnQRope;
  const PointAt raw = {q ? Point::kAttnQProjRaw : Point::kAttnKProjRaw, call.point.layer};
  const PointAt normed = {q ? Point::kAttnQNormed : Point::kAttnKNormed, call.point.layer};
  const OpCall norm = fault.evaluator.CallOf(normed);
  OpCall rotate = fault.errors.call;
  rotate.inputs = {raw};
  Evaluator* evaluator = &fault.evaluator;
  const auto before = [evaluator, rotate](const std::vector<TokenAt>& tokens, size_t, Block* block) {
    *block = EvaluateRows(*evaluator, rotate, tokens).block;
  };
  AddRow(fault,
         {"rope-before-norm", "rotates before the norm instead of after it",
          [&](OpCall& c) {
            c = norm;
            c.point = call.point;
            c.inputs = {raw};
            c.before = before;
          }},
         out);
  AddRow(fault,
         {"rope-skipped", "norms twice instead of rotating",
          [&](OpCall& c) {
            c = norm;
            c.point = call.point;
            c.inputs = {normed};
          }},
         out);
}

// The rotation in place with rows of one head_dim: T rows from each head on, so that cells overlap and are rotated once
// for every (head, token) whose sum is theirs.
void AddOverlapping(const Case& fault, std::vector<Hypothesis>* out) {
  const int64_t heads = fault.errors.call.heads, d = fault.errors.call.head_dim;
  const TraceRuns* runs = &fault.evaluator.captures().runs();
  const Frequencies frequencies = fault.errors.call.rope.frequencies;
  const DType storage = fault.errors.arithmetic.storage;
  AddRow(fault,
         {"rows-overlapping",
          "rotates each head as if its rows were contiguous: rows overlap and are rotated several times",
          [=](OpCall& c) {
            c.op = Op::kCopy;
            c.after = [=](const std::vector<TokenAt>& tokens, Block* block) {
              block->variance.resize(block->value.size());
              for (int64_t r = 0; r < block->rows; ++r) {
                const TokenAt& token = tokens[static_cast<size_t>(r)];
                const std::vector<int32_t>& positions =
                    runs->runs[static_cast<size_t>(token.run)].Tokens(static_cast<size_t>(token.step)).positions;
                for (int64_t h = 0; h < heads; ++h) {
                  RotateCell(token.token * heads + h, heads, positions, frequencies, storage, block->Row(r) + h * d,
                             block->Variance(r) + h * d);
                }
              }
            };
          }},
         out);
}

}  // namespace

void ProposeForRope(const Case& fault, std::vector<Hypothesis>* out) {
  const Row rows[] = {
      {"rope-skipped", "is not applied", [](OpCall& c) { c.op = Op::kCopy; }},
      {"rope-interleaved", "rotates interleaved pairs instead of halves", [](OpCall& c) { c.rope.interleaved = true; }},
      {"rope-direction", "rotates the wrong way", [](OpCall& c) { c.rope.direction = -1; }},
      {"rope-twice", "is applied twice", [](OpCall& c) { c.rope.times = 2; }},
      {"rope-tables-rounded", "rounds cos and sin to bf16", [](OpCall& c) { c.rope.values = DType::kBF16; }},
      {"rope-tables-rounded", "rounds cos and sin to f16", [](OpCall& c) { c.rope.values = DType::kF16; }},
      {"rope-tables-rounded", "computes angles in bf16", [](OpCall& c) { c.rope.tables = DType::kBF16; }},
      {"rope-tables-rounded", "computes angles in f16", [](OpCall& c) { c.rope.tables = DType::kF16; }},
      {"rope-tables-rounded", "computes angles, cos and sin in bf16",
       [](OpCall& c) { c.rope.tables = c.rope.values = DType::kBF16; }},
      {"rope-tables-rounded", "computes angles, cos and sin in f16",
       [](OpCall& c) { c.rope.tables = c.rope.values = DType::kF16; }},
  };
  AddRows(fault, rows, out);
  AddThetas(fault, out);
  AddOrder(fault, out);
  AddPositions(fault, out);
  AddPartial(fault, out);
  AddScalings(fault, out);
  if (const std::optional<Angles> angles = Measure(fault)) AddFitted(fault, *angles, out);
  AddOverlapping(fault, out);
  AddWrongInputs(fault, 0, "rope-wrong-input", {}, out);
}

}  // namespace lockstep
