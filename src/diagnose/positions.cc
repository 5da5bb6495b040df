#include "diagnose/positions.h"

#include <cmath>
#include <map>

#include "base/parallel.h"
#include "replay/noise.h"

namespace lockstep {
namespace {

// What a row knows of its place.
struct RowPlace {
  int32_t first_of_step = 0;  // position of the sequence's first token in the step
  int32_t last_of_step = 0;
  int32_t sequence_index = 0;  // of the sequence among those of the step
};

RowPlace PlaceOf(const TraceRuns& runs, const TokenAt& token) {
  const TraceStep& step = runs.runs[static_cast<size_t>(token.run)].Tokens(static_cast<size_t>(token.step));
  const int32_t own = step.sequences[static_cast<size_t>(token.token)];
  RowPlace out = {token.position, token.position, 0};
  std::vector<int32_t> seen;
  for (size_t t = 0; t < step.sequences.size(); ++t) {
    const int32_t sequence = step.sequences[t];
    if (sequence == own) {
      out.first_of_step = std::min(out.first_of_step, step.positions[t]);
      out.last_of_step = std::max(out.last_of_step, step.positions[t]);
    }
    if (std::find(seen.begin(), seen.end(), sequence) == seen.end()) seen.push_back(sequence);
  }
  out.sequence_index = static_cast<int32_t>(std::find(seen.begin(), seen.end(), own) - seen.begin());
  return out;
}

using PositionOf = std::function<double(const TokenAt&)>;

struct Map {
  const char* cause;
  std::string text;
  PositionOf position;
};

std::vector<Map> NamedMaps(const TraceRuns* runs) {
  const auto place = [runs](const TokenAt& t) { return PlaceOf(*runs, t); };
  return {
      {"rope-position-zero", "uses position 0 for every token", [](const TokenAt&) { return 0.0; }},
      {"rope-position-offset", "uses position + 1", [](const TokenAt& t) { return t.position + 1.0; }},
      {"rope-position-offset", "uses position - 1", [](const TokenAt& t) { return t.position - 1.0; }},
      {"rope-position-restarted", "restarts positions at 0 in every call",
       [=](const TokenAt& t) { return static_cast<double>(t.position - place(t).first_of_step); }},
      {"rope-position-other", "uses the row's index in the call as its position",
       [](const TokenAt& t) { return static_cast<double>(t.token); }},
      {"rope-position-other", "uses the sequence's index in the batch as the position",
       [=](const TokenAt& t) { return static_cast<double>(place(t).sequence_index); }},
      {"rope-position-other", "uses the first position of the call for all of its tokens",
       [=](const TokenAt& t) { return static_cast<double>(place(t).first_of_step); }},
      {"rope-position-other", "uses the last position of the call for all of its tokens",
       [=](const TokenAt& t) { return static_cast<double>(place(t).last_of_step); }},
      {"rope-position-other", "counts positions down within a call",
       [=](const TokenAt& t) { return static_cast<double>(place(t).last_of_step - t.position); }},
      {"rope-position-other", "uses the number of the call as the position",
       [](const TokenAt& t) { return static_cast<double>(t.step); }},
  };
}

// cos and sin of every pair at every candidate position.
class Table {
 public:
  Table(const std::vector<double>& frequencies, int32_t first, int32_t count)
      : first_(first), pairs_(frequencies.size()) {
    for (int32_t p = first; p < first + count; ++p) {
      for (const double f : frequencies) values_.push_back({std::cos(p * f), std::sin(p * f)});
    }
  }
  // The position whose rotation of x is nearest to y. x, y: [heads, d]; heads with weight 0 do not count.
  int32_t Nearest(const double* x, const double* y, const double* weights, int64_t width, int64_t d) const {
    std::vector<double> along(pairs_), across(pairs_);
    for (int64_t h = 0; h < width; h += d) {
      if (weights[h] == 0) continue;
      for (size_t i = 0; i < pairs_; ++i) {
        const auto a = h + static_cast<int64_t>(i), b = a + static_cast<int64_t>(pairs_);
        along[i] += x[a] * y[a] + x[b] * y[b];
        across[i] += x[a] * y[b] - x[b] * y[a];
      }
    }
    double best = -INFINITY;
    int32_t at = 0;
    for (size_t p = 0; p * pairs_ < values_.size(); ++p) {
      double sum = 0;
      for (size_t i = 0; i < pairs_; ++i) {
        sum += along[i] * values_[p * pairs_ + i].first + across[i] * values_[p * pairs_ + i].second;
      }
      if (sum > best) best = sum, at = first_ + static_cast<int32_t>(p);
    }
    return at;
  }

 private:
  int32_t first_;
  size_t pairs_;
  std::vector<std::pair<double, double>> values_;
};

int32_t Furthest(const std::vector<TokenAt>& tokens) {
  int32_t out = 0;
  for (const TokenAt& token : tokens) out = std::max({out, token.position, token.token});
  return out;
}

// The position of each affected row that reproduces it.
std::map<TokenAt, int32_t> Search(const Case& fault) {
  const OpCall& call = fault.errors.call;
  const std::vector<TokenAt>& tokens = fault.errors.tokens;
  const int32_t furthest = std::min(2 * Furthest(tokens) + 64, 16384);
  const Table table(call.rope.frequencies, -64, furthest + 64);
  const std::vector<char>& affected = fault.affected;
  std::map<TokenAt, int32_t> out;
  std::vector<TokenAt> part;
  std::vector<size_t> rows;
  const auto flush = [&] {
    const std::optional<Block> input = InputRows(fault.evaluator, call.inputs.front(), part);
    const Block captured = fault.evaluator.Captured(call.point, part).block;
    std::vector<int32_t> found(part.size());
    if (input && input->width == captured.width) {
      ParallelFor(static_cast<int64_t>(part.size()), [&](int64_t r) {
        const auto at = static_cast<size_t>(r);
        std::vector<double> weights(static_cast<size_t>(captured.width));
        for (int64_t c = 0; c < captured.width; ++c) {
          weights[static_cast<size_t>(c)] =
              affected[rows[at] * static_cast<size_t>(fault.errors.cells) + static_cast<size_t>(c / call.head_dim)];
        }
        found[at] = table.Nearest(input->Row(r), captured.Row(r), weights.data(), captured.width, call.head_dim);
      });
      for (size_t i = 0; i < part.size(); ++i) out[part[i]] = found[i];
    }
    part.clear(), rows.clear();
  };
  for (size_t r = 0; r < tokens.size(); ++r) {
    const auto begin = affected.begin() + static_cast<ptrdiff_t>(r) * fault.errors.cells;
    if (std::find(begin, begin + fault.errors.cells, 1) == begin + fault.errors.cells) continue;
    if (!part.empty() && (part.size() >= 256 || part.front().run != tokens[r].run)) flush();
    part.push_back(tokens[r]), rows.push_back(r);
  }
  if (!part.empty()) flush();
  return out;
}

// The sample's rows alone, to see whether any position explains them: the search of all rows is dearer.
bool SampleIsRotated(const Case& fault) {
  const OpCall& call = fault.errors.call;
  const std::optional<Block> input = InputRows(fault, call.inputs.front());
  if (!input || input->width != fault.sample.captured.width) return false;
  const std::vector<double> weights = FitWeights(fault);
  double x = 0, y = 0, before = 0;  // a rotation keeps the length
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] == 0) continue;
    x += input->value[i] * input->value[i], y += fault.sample.captured.value[i] * fault.sample.captured.value[i];
    before += 1;
  }
  return before > 0 && std::abs(y / x - 1) < 0.05;
}

// What a measured map is, in words: for a reader, and to see an offset.
Map Described(const std::map<TokenAt, int32_t>& found) {
  const auto same = [&](auto&& of) {
    for (const auto& [token, position] : found) {
      if (of(token, position) != of(found.begin()->first, found.begin()->second)) return false;
    }
    return true;
  };
  const auto& [token, position] = *found.begin();
  if (found.size() >= 2 && same([](const TokenAt& t, int32_t p) { return p - t.position; })) {
    const int32_t off = position - token.position;
    const std::string text = std::string("uses position ") + (off > 0 ? "+ " : "- ") + std::to_string(std::abs(off));
    return {"rope-position-offset", text, [off](const TokenAt& t) { return static_cast<double>(t.position + off); }};
  }
  if (found.size() >= 2 && same([](const TokenAt&, int32_t p) { return p; })) {
    const int32_t constant = position;
    return {"rope-position-other", "uses position " + std::to_string(constant) + " for all of these tokens",
            [constant](const TokenAt&) { return static_cast<double>(constant); }};
  }
  std::string list;
  size_t shown = 0;
  for (const auto& [t, p] : found) {
    if (p == t.position || shown == 4) continue;
    list += (shown++ ? ", " : "") + std::to_string(p) + " for " + std::to_string(t.position);
  }
  return {"rope-position-other", "uses other positions: " + list, [found](const TokenAt& t) {
            const auto at = found.find(t);
            return static_cast<double>(at == found.end() ? t.position : at->second);
          }};
}

}  // namespace

int32_t FirstOfCall(const TraceRuns& runs, const TokenAt& token) { return PlaceOf(runs, token).first_of_step; }

void AddPositions(const Case& fault, std::vector<Hypothesis>* out) {
  const auto add = [&](const Map& map) {
    AddRow(fault, {map.cause, map.text, [&](OpCall& c) { c.rope.position = map.position; }}, out);
  };
  for (const Map& map : NamedMaps(&fault.evaluator.captures().runs())) add(map);
  if (fault.errors.call.rope.interleaved || fault.errors.call.rope.position || !SampleIsRotated(fault)) return;
  const std::map<TokenAt, int32_t> found = Search(fault);
  if (found.empty()) return;
  const Map map = Described(found);
  AddRow(fault, {map.cause, map.text, [&](OpCall& c) { c.rope.position = map.position; }, found.size() > 2 ? 2 : 1},
         out);
}

void RotateCell(int64_t cell, int64_t heads, const std::vector<int32_t>& positions,
                const std::vector<double>& frequencies, DType storage, double* head, double* variance) {
  const Grid grid(storage);
  const auto pairs = static_cast<int64_t>(frequencies.size());
  double times = 0, sum = 0, squares = 0;
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t token = cell - h;
    if (token < 0 || token >= static_cast<int64_t>(positions.size())) continue;
    const double position = positions[static_cast<size_t>(token)];
    sum += position, squares += position * position, times += 1;
  }
  for (int64_t i = 0; i < pairs; ++i) {
    const double c = std::cos(sum * frequencies[static_cast<size_t>(i)]);
    const double s = std::sin(sum * frequencies[static_cast<size_t>(i)]);
    const double a = head[i], b = head[i + pairs];
    head[i] = a * c - b * s, head[i + pairs] = b * c + a * s;
    // Each rotation rounds products and sums of values as large as the pair, and its angle.
    const double f = frequencies[static_cast<size_t>(i)], log = std::log(f), angle = f * 0x1p-24;
    const double turned = squares * angle * angle * (4 + log * log / 3);
    variance[i] = variance[i + pairs] = 5 * times * grid.Rounding(std::hypot(a, b)) + (a * a + b * b) * turned;
  }
}

}  // namespace lockstep
