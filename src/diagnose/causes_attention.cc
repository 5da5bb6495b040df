// Attention: softmax(scale q·k, masked) v, and its scores.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "diagnose/causes.h"
#include "diagnose/key_slots.h"
#include "diagnose/positions.h"
#include "diagnose/search.h"

namespace lockstep {
namespace {

using Heads = std::vector<int>;

void AddScales(const Case& fault, std::vector<Hypothesis>* out) {
  const Config& config = fault.evaluator.model().config();
  const double right = fault.errors.call.attention.scale;
  const auto d = static_cast<double>(config.head_dim);
  const auto add = [&](double scale, const std::string& text, int freedom = 0) {
    if (std::abs(scale / right - 1) < 1e-12) return;
    AddRow(fault, {"attention-scale", text, [scale](OpCall& c) { c.attention.scale = scale; }, freedom}, out);
  };
  const int64_t whole = config.hidden_size / config.num_attention_heads;  // as engines derive a head_dim
  const auto derived = static_cast<double>(whole);
  add(1, "does not scale the scores");
  add(1 / std::sqrt(derived),
      "scales by 1/sqrt(" + Number(derived) + "), hidden_size / heads, instead of 1/sqrt(head_dim)");
  add(1 / d, "scales by 1/head_dim instead of 1/sqrt(head_dim)");
  add(std::sqrt(d), "multiplies by sqrt(head_dim) instead of dividing");
  add(1 / std::sqrt(static_cast<double>(config.hidden_size)), "scales by 1/sqrt(hidden_size)");
  // Fitted on few rows: golden section of what is left, around the best of a grid.
  const int64_t rows = std::min<int64_t>(4, static_cast<int64_t>(fault.sample.tokens.size()));
  const auto left = [&](double log) {
    OpCall call = fault.errors.call;
    call.attention.scale = std::exp(log);
    const double whole = FitOf(fault, call, rows).left;
    return std::isfinite(whole) ? whole : 1e300;
  };
  const double centre = std::log(right);
  double best = centre, least = left(best);
  for (const double step : {0.5, 0.1}) {
    const double from = best;
    for (int i = -8; i <= 8; ++i) {
      const double value = left(from + step * i);
      if (value < least) least = value, best = from + step * i;
    }
  }
  const double fitted = std::exp(Minimum(best - 0.1, best + 0.1, left));
  add(fitted, "scales by " + Number(fitted, 4) + " instead of " + Number(right, 4), 1);
}

void AddSoftCaps(const Case& fault, std::vector<Hypothesis>* out) {
  constexpr double kStep = 1.5;
  const auto rows = std::min<int64_t>(4, static_cast<int64_t>(fault.sample.tokens.size()));
  const auto with = [&](double cap) {
    OpCall call = fault.errors.call;
    call.attention.softcap = cap;
    return call;
  };
  const auto left = [&](double log) {
    const double share = FitOf(fault, with(std::exp(log)), rows).left;
    return std::isfinite(share) ? share : 1e300;
  };
  double best = 0, least = 0.9;                                            // what leaves more explains nothing
  const auto steps = static_cast<int>(std::log(400.0) / std::log(kStep));  // from 0.5 to 200
  for (int i = 0; i <= steps; ++i) {
    const double log = std::log(0.5) + i * std::log(kStep);
    const double share = left(log);
    if (share < least) least = share, best = log;
  }
  if (best == 0) return;
  const double fitted = std::exp(Minimum(best - std::log(kStep), best + std::log(kStep), left));
  const double cap = Simplest(fault, fitted, with);
  AddRow(
      fault,
      {"attention-softcapped", "caps the scores at " + Number(cap, 4), [cap](OpCall& c) { c.attention.softcap = cap; }},
      out);
}

void AddMasks(const Case& fault, std::vector<Hypothesis>* out) {
  const Row rows[] = {
      {"attention-no-mask", "lets every token see all keys of its sequence: no causal mask",
       [](OpCall& c) { c.attention.causal = false; }},
      {"attention-past-ignored", "sees only the keys of its own call",
       [](OpCall& c) { c.attention.this_step_only = true; }},
      {"attention-window", "sees only its own key", [](OpCall& c) { c.attention.window = 1; }},
  };
  AddRows(fault, rows, out);
  for (const int64_t shift : {1, -1, 2, -2, 3, -3, 4, -4, 8, -8}) {
    const std::string count = std::to_string(std::abs(shift)), keys = std::abs(shift) == 1 ? " key" : " keys";
    AddRow(fault,
           {"attention-mask-shifted",
            shift > 0
                ? "sees " + count + keys + " after its own position"
                : "does not see its own" + (shift < -1 ? " and the " + std::to_string(-shift - 1) + " before" : " key"),
            [shift](OpCall& c) { c.attention.mask_shift = shift; }},
           out);
  }
}

// Masks by the row's place in its call, and keys that end early.
void AddLastKeys(const Case& fault, std::vector<Hypothesis>* out) {
  const TraceRuns* runs = &fault.evaluator.captures().runs();
  AddRow(fault,
         {"attention-mask-shifted", "masks a later call as if its queries began at position 0",
          [runs](OpCall& c) {
            c.attention.last_key = [runs](const TokenAt& t) { return int64_t{t.position} - FirstOfCall(*runs, t); };
          }},
         out);
  int64_t first = std::numeric_limits<int64_t>::max();
  const std::vector<char>& affected = fault.affected;
  for (size_t r = 0; r < fault.errors.tokens.size(); ++r) {
    const auto cells = affected.begin() + static_cast<ptrdiff_t>(r) * fault.errors.cells;
    if (std::find(cells, cells + fault.errors.cells, 1) != cells + fault.errors.cells) {
      first = std::min<int64_t>(first, fault.errors.tokens[r].position);
    }
  }
  if (first <= 0) return;
  AddRow(fault,
         {"attention-stale-cache", "never sees keys from position " + std::to_string(first) + " on",
          [first](OpCall& c) {
            c.attention.last_key = [first](const TokenAt& t) { return std::min<int64_t>(t.position, first - 1); };
          },
          1},
         out);
}

// The window by what is left: it falls towards the right one from both sides, so a coarse and a fine search find it.
void AddWindows(const Case& fault, std::vector<Hypothesis>* out) {
  const auto rows = std::min<int64_t>(4, static_cast<int64_t>(fault.sample.tokens.size()));
  int64_t longest = 1;
  for (const TokenAt& token : fault.sample.tokens) longest = std::max<int64_t>(longest, token.position);
  int64_t best = 0;
  double least = 0.9;
  const auto consider = [&](int64_t window) {
    if (window < 1 || window > longest) return;
    OpCall call = fault.errors.call;
    call.attention.window = window;
    const double left = FitOf(fault, call, rows).left;
    if (left < least) least = left, best = window;
  };
  for (int64_t w = 1; w <= longest; w += std::max<int64_t>(1, w / 5)) consider(w);
  for (int64_t power = 2; power <= longest; power *= 2) consider(power), consider(power + 1), consider(power - 1);
  for (int64_t step = std::max<int64_t>(1, best / 8); best > 0; step /= 2) {
    const int64_t from = best;
    for (int i = -4; i <= 4; ++i) consider(from + step * i);
    if (step == 1) break;
  }
  if (best == 0) return;
  AddRow(fault,
         {"attention-window", "sees only the last " + std::to_string(best) + " keys",
          [best](OpCall& c) { c.attention.window = best; }, 1},
         out);
}

std::string DescribeHeads(const Heads& map, int kv_heads) {
  const auto is = [&](auto&& of) {
    for (size_t h = 0; h < map.size(); ++h) {
      if (map[h] != of(static_cast<int>(h))) return false;
    }
    return true;
  };
  const int heads = static_cast<int>(map.size());
  if (is([&](int h) { return h % kv_heads; }))
    return "tiles the key/value heads (h % kv_heads) instead of repeating them";
  if (is([&](int) { return map[0]; }))
    return "reads key/value head " + std::to_string(map[0]) + " for every query head";
  if (is([&](int h) { return kv_heads - 1 - h * kv_heads / heads; }))
    return "reads the key/value heads in reverse order";
  if (is([&](int h) { return std::min(h, kv_heads - 1); })) return "reads key/value head h for query head h";
  std::string list;
  for (size_t h = 0; h < map.size(); ++h) list += (h ? "," : "") + std::to_string(map[h]);
  return "reads key/value heads " + list;
}

// What `call` leaves in each head of the sample's first rows: [heads] sums of squared noise; affected cells only.
std::vector<double> LeftByHead(const Case& fault, const OpCall& call, const std::vector<TokenAt>& tokens,
                               const std::vector<double>& weights) {
  const Evaluated guess = EvaluateRows(fault.evaluator, call, tokens);
  const int64_t width = fault.sample.captured.width, d = width / fault.errors.call.heads;
  std::vector<double> out(static_cast<size_t>(fault.errors.call.heads), 0.0);
  if (guess.block.width != width) return out;
  for (int64_t r = 0; r < guess.block.rows; ++r) {
    for (int64_t c = 0; c < width; ++c) {
      const double off = fault.sample.captured.Row(r)[c] - guess.block.Row(r)[c];
      const double weight = weights[static_cast<size_t>(r * width + c)];
      if (weight > 0) out[static_cast<size_t>(c / d)] += weight * off * off;
    }
  }
  return out;
}

// Each affected query head with the key/value head that reproduces it best.
void AddHeadMap(const Case& fault, std::vector<Hypothesis>* out) {
  const OpCall& call = fault.errors.call;
  const int kv_heads = static_cast<int>(fault.evaluator.model().config().num_key_value_heads);
  const auto heads = static_cast<int>(call.attention.kv_head.size());
  const auto add = [&](const Heads& map) {
    if (map == call.attention.kv_head) return;
    AddRow(fault,
           {"attention-heads-tiled", DescribeHeads(map, kv_heads), [map](OpCall& c) { c.attention.kv_head = map; }},
           out);
  };
  Heads tiled, reversed;
  for (int h = 0; h < heads; ++h)
    tiled.push_back(h % kv_heads), reversed.push_back(kv_heads - 1 - h * kv_heads / heads);
  add(tiled);
  add(Heads(static_cast<size_t>(heads), 0));
  add(reversed);
  if (call.op != Op::kAttention) return;
  const size_t rows = std::min<size_t>(6, fault.sample.tokens.size());
  const std::vector<TokenAt> tokens(fault.sample.tokens.begin(),
                                    fault.sample.tokens.begin() + static_cast<ptrdiff_t>(rows));
  const std::vector<double> weights = FitWeights(fault);
  Heads best = call.attention.kv_head;
  std::vector<double> least = LeftByHead(fault, call, tokens, weights);
  for (int kv = 0; kv < kv_heads; ++kv) {
    OpCall all = call;
    all.attention.kv_head.assign(static_cast<size_t>(heads), kv);
    const std::vector<double> left = LeftByHead(fault, all, tokens, weights);
    for (size_t h = 0; h < left.size(); ++h) {
      if (left[h] < least[h]) least[h] = left[h], best[h] = kv;
    }
  }
  add(best);
}

// Where each head's result stands: heads matched by what is left of each at each place.
void AddOutputOrder(const Case& fault, std::vector<Hypothesis>* out) {
  const OpCall& call = fault.errors.call;
  if (call.op != Op::kAttention) return;
  const auto heads = static_cast<int64_t>(call.heads), d = call.head_dim;
  const Block& right = fault.sample.expected.block;
  const Block& captured = fault.sample.captured;
  std::vector<int> place(static_cast<size_t>(heads), -1);
  for (int64_t to = 0; to < heads; ++to) {
    int64_t best = to;
    double least = INFINITY;
    for (int64_t from = 0; from < heads; ++from) {
      double left = 0;
      for (int64_t r = 0; r < right.rows; ++r) {
        for (int64_t c = 0; c < d; ++c) {
          const double off = captured.Row(r)[to * d + c] - right.Row(r)[from * d + c];
          left += off * off;
        }
      }
      if (left < least) least = left, best = from;
    }
    place[static_cast<size_t>(best)] = static_cast<int>(to);
  }
  Heads sorted = place;
  std::sort(sorted.begin(), sorted.end());
  Heads in_order(static_cast<size_t>(heads));
  std::iota(in_order.begin(), in_order.end(), 0);
  if (place == in_order || sorted != in_order) return;
  std::string list;
  for (const int to : place) list += (list.empty() ? "" : ",") + std::to_string(to);
  AddRow(fault,
         {"attention-head-order", "writes its heads to places " + list,
          [place](OpCall& c) { c.attention.out_head = place; }},
         out);
}

using Keys = std::vector<TokenAt>;

// Rows of the cache that are not what was written last: `from` gives the index of the key whose row is read for key j
// of [0, count); negative: zeros.
Change CacheRows(std::function<int64_t(const Keys& keys, int64_t j)> from, bool keys_too, bool values_too) {
  return [=](OpCall& c) {
    c.attention.by_step = true;
    c.before = [=](const Keys& tokens, size_t input, Block* block) {
      if (input == 0 || (input == 1 && !keys_too) || (input == 2 && !values_too)) return;
      const Block was = *block;
      for (int64_t j = 0; j < block->rows; ++j) {
        const int64_t i = from(tokens, j);
        if (i < 0 || i >= was.rows) {
          std::fill_n(block->Row(j), block->width, 0.0);
        } else {
          std::copy_n(was.Row(i), was.width, block->Row(j));
        }
      }
    };
  };
}

// First key of the call that wrote key j.
int64_t FirstOfCall(const Keys& keys, int64_t j) {
  while (j > 0 && keys[static_cast<size_t>(j - 1)].step == keys[static_cast<size_t>(j)].step) --j;
  return j;
}

void AddCache(const Case& fault, std::vector<Hypothesis>* out) {
  for (const int64_t shift : {1, -1, 2, -2}) {
    const std::string by = std::to_string(std::abs(shift)) + (shift > 0 ? " late" : " early");
    const auto add = [&](int64_t k, int64_t v, const std::string& what) {
      AddRow(fault,
             {"attention-stale-cache", "reads " + what + " off by one row: " + by,
              [=](OpCall& c) { c.attention.key_shift = k, c.attention.value_shift = v; }},
             out);
    };
    add(shift, shift, "keys and values");
    add(shift, 0, "keys");
    add(0, shift, "values");
  }
  struct Stale {
    const char* text;
    std::function<int64_t(const Keys&, int64_t)> from;
  };
  const auto last = [](const Keys& keys) { return static_cast<int64_t>(keys.size()) - 1; };
  const Stale stale[] = {
      {"of earlier calls are zero",
       [=](const Keys& k, int64_t j) { return k[static_cast<size_t>(j)].step < k.back().step ? -1 : j; }},
      {"of the first call are zero",
       [](const Keys& k, int64_t j) { return k[static_cast<size_t>(j)].step == k.front().step ? -1 : j; }},
      {"of the last call are zero",
       [](const Keys& k, int64_t j) { return k[static_cast<size_t>(j)].step == k.back().step ? -1 : j; }},
      {"after the first call are zero",
       [](const Keys& k, int64_t j) { return k[static_cast<size_t>(j)].step != k.front().step ? -1 : j; }},
      {"of the last position are those of the one before",
       [=](const Keys& k, int64_t j) { return j == last(k) ? j - 1 : j; }},
      {"of the last position are zero", [=](const Keys& k, int64_t j) { return j == last(k) ? -1 : j; }},
      {"of the first position are zero", [](const Keys&, int64_t j) { return j == 0 ? -1 : j; }},
      {"of the first position were overwritten by the last",
       [=](const Keys& k, int64_t j) { return j == 0 ? last(k) : j; }},
      {"of the first positions were overwritten by the last call's",
       [=](const Keys& k, int64_t j) {
         const int64_t first = FirstOfCall(k, last(k));
         return first + j <= last(k) ? first + j : j;
       }},
      {"of each call were written from row 0 on, over those of the call before",
       [=](const Keys& k, int64_t j) {
         for (int64_t end = last(k), first = 0; end >= 0; end = first - 1) {
           first = FirstOfCall(k, end);
           if (first + j <= end) return first + j;
         }
         return int64_t{-1};
       }},
      {"are one row late, the first one kept,", [](const Keys&, int64_t j) { return std::max<int64_t>(j - 1, 0); }},
      {"are one row early, the last one kept,",
       [=](const Keys& k, int64_t j) { return std::min<int64_t>(j + 1, last(k)); }},
      {"of all positions are those of position 0", [](const Keys&, int64_t) { return int64_t{0}; }},
      {"of all positions are those of the last", [=](const Keys& k, int64_t) { return last(k); }},
      {"are in reverse order", [=](const Keys& k, int64_t j) { return last(k) - j; }},
  };
  for (const Stale& one : stale) {
    for (const auto& [keys, values, what] : {std::tuple(true, true, "keys and values "),
                                             std::tuple(true, false, "keys "), std::tuple(false, true, "values ")}) {
      AddRow(
          fault,
          {"attention-stale-cache", std::string(what) + one.text + " in the cache", CacheRows(one.from, keys, values)},
          out);
    }
  }
}

// Rows of another sequence where it has some at that position, else the own ones: their slots of the cache were shared.
Change SharedSlots(Evaluator* evaluator, int sequence) {
  return [=](OpCall& c) {
    const std::vector<PointAt> inputs = c.inputs;
    c.before = [=](const Keys& tokens, size_t input, Block* block) {
      if (input == 0) return;
      for (int64_t j = 0; j < block->rows; ++j) {
        const TokenAt& own = tokens[static_cast<size_t>(j)];
        const auto& written = evaluator->captures().Written(own.run, sequence);
        const auto found = written.find(own.position);
        if (found == written.end() || found->second.front().step > own.step) continue;
        const Evaluated theirs = evaluator->Captured(inputs[input], {found->second.front()});
        if (theirs.observable.front()) std::copy_n(theirs.block.Row(0), block->width, block->Row(j));
      }
    };
  };
}

void AddSequences(const Case& fault, std::vector<Hypothesis>* out) {
  std::vector<int> sequences;
  for (const TokenAt& token : fault.evaluator.captures().Of(fault.errors.call.point).tokens()) {
    if (std::find(sequences.begin(), sequences.end(), token.sequence) == sequences.end()) {
      sequences.push_back(token.sequence);
    }
  }
  if (sequences.size() < 2) return;
  std::sort(sequences.begin(), sequences.end());
  const auto count = static_cast<int>(sequences.size());
  const auto neighbour = [sequences, count](int sequence, int distance) {
    const auto at = static_cast<int>(std::find(sequences.begin(), sequences.end(), sequence) - sequences.begin());
    return sequences[static_cast<size_t>((at + distance + count) % count)];
  };
  for (const int distance : {-1, 1}) {
    AddRow(
        fault,
        {"attention-other-sequence",
         distance < 0 ? "reads the keys and values of the sequence before in the batch"
                      : "reads the keys and values of the next sequence in the batch",
         [=](OpCall& c) { c.attention.sequence = [=](const TokenAt& t) { return neighbour(t.sequence, distance); }; }},
        out);
  }
  for (const int sequence : sequences) {
    AddRow(fault,
           {"attention-other-sequence",
            "reads the keys and values of sequence " + std::to_string(sequence) + " for every row",
            [sequence](OpCall& c) { c.attention.sequence = [sequence](const TokenAt&) { return sequence; }; }},
           out);
    AddRow(fault,
           {"attention-other-sequence",
            "reads rows of sequence " + std::to_string(sequence) + " in the cache, where it has any",
            SharedSlots(&fault.evaluator, sequence)},
           out);
  }
}

}  // namespace

void ProposeForAttention(const Case& fault, std::vector<Hypothesis>* out) {
  const int layer = fault.errors.call.point.layer;
  const auto at = [layer](Point id) { return PointAt{id, layer}; };
  AddMasks(fault, out);
  AddLastKeys(fault, out);
  AddHeadMap(fault, out);
  const Row rows[] = {
      {"attention-unrotated-k", "reads k before the rotation",
       [&](OpCall& c) { c.inputs[1] = at(Point::kAttnKNormed); }},
      {"attention-unrotated-q", "reads q before the rotation",
       [&](OpCall& c) { c.inputs[0] = at(Point::kAttnQNormed); }},
      {"attention-unrotated-k", "reads q and k before the rotation",
       [&](OpCall& c) { c.inputs[0] = at(Point::kAttnQNormed), c.inputs[1] = at(Point::kAttnKNormed); }},
      {"attention-unrotated-k", "reads k before norm and rotation",
       [&](OpCall& c) { c.inputs[1] = at(Point::kAttnKProjRaw); }},
      {"attention-unrotated-q", "reads q before norm and rotation",
       [&](OpCall& c) { c.inputs[0] = at(Point::kAttnQProjRaw); }},
  };
  AddRows(fault, rows, out);
  AddScales(fault, out);
  AddSequences(fault, out);
  if (fault.errors.call.op == Op::kAttention) {
    const Row values[] = {
        {"attention-value", "uses k as v", [&](OpCall& c) { c.inputs[2] = at(Point::kAttnKRope); }},
        {"attention-value", "uses k before the rotation as v",
         [&](OpCall& c) { c.inputs[2] = at(Point::kAttnKNormed); }},
        {"attention-value", "uses v as k and k as v", [](OpCall& c) { std::swap(c.inputs[1], c.inputs[2]); }},
    };
    AddRows(fault, values, out);
    for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
      AddRow(fault,
             {"attention-softmax-overflow",
              std::string("takes exp without subtracting the maximum, in ") + (dtype == DType::kF16    ? "f16"
                                                                               : dtype == DType::kBF16 ? "bf16"
                                                                                                       : "f32"),
              [dtype](OpCall& c) { c.attention.plain_softmax = dtype; }},
             out);
    }
  }
  AddSoftCaps(fault, out);
  AddOutputOrder(fault, out);
  AddCache(fault, out);
  AddKeySlots(fault, out);
  AddWindows(fault, out);
  if (layer > 0) {
    AddRow(fault,
           {"attention-stale-cache", "reads the keys and values of the layer before",
            [&](OpCall& c) {
              for (size_t i = 1; i < c.inputs.size(); ++i) c.inputs[i].layer = layer - 1;
            }},
           out);
  }
  AddWrongInputs(fault, 0, "attention-wrong-input",
                 {{Point::kAttnQNormed, "attention-unrotated-q"}, {Point::kAttnQProjRaw, "attention-unrotated-q"}},
                 out);
  AddWrongInputs(fault, 1, "attention-wrong-input",
                 {{Point::kAttnKNormed, "attention-unrotated-k"}, {Point::kAttnKProjRaw, "attention-unrotated-k"}},
                 out);
  if (fault.errors.call.inputs.size() > 2) AddWrongInputs(fault, 2, "attention-value", {}, out);
}

}  // namespace lockstep
