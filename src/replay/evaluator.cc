#include "replay/evaluator.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "replay/noise.h"

namespace lockstep {
namespace {

constexpr int64_t kBlockElements = 8 << 20;  // of a block: 64 MiB of values, as much of variances
constexpr int64_t kMaxRows = 512;

DType Coarser(DType a, DType b) { return Grid(a).unit_error() >= Grid(b).unit_error() ? a : b; }

Evaluated Empty(size_t tokens, int64_t width) {
  Evaluated out;
  out.block.Resize(static_cast<int64_t>(tokens), width);
  out.observable.assign(tokens, 0);
  return out;
}

void Note(const Evaluated& input, Evaluated* out) {
  out->from.insert(input.from.begin(), input.from.end());
  out->bridged = out->bridged || input.bridged;
  if (out->missing.empty()) out->missing = input.missing;
}

void CopyRow(const Block& from, int64_t i, Block* to, int64_t j) {
  std::copy_n(from.Row(i), from.width, to->Row(j));
  if (from.variance.empty()) return;
  if (to->variance.empty()) to->variance.assign(to->value.size(), 0.0);
  std::copy_n(from.Variance(i), from.width, to->Variance(j));
}

}  // namespace

Arithmetic Evaluator::ArithmeticOf(const PointAt& point) {
  const TraceMeta& meta = captures_.runs().runs.front().meta();
  Arithmetic arithmetic = meta.ArithmeticOf(point.Name());
  const CapturedPoint& captured = captures_.Of(point);
  if (!captured.empty()) {
    if (!meta.has_arithmetic) arithmetic = {captured.dtype(), captured.dtype(), DType::kF32, captured.dtype()};
    arithmetic.storage = Coarser(arithmetic.storage, captured.dtype());
  }
  return arithmetic;
}

int64_t Evaluator::RowsPerBlock(const PointAt& point) {
  const CapturedPoint& captured = captures_.Of(point);
  const int64_t width = std::max<int64_t>({1, model_.WidthOf(point.id), captured.width()});
  return std::clamp<int64_t>(kBlockElements / width, 1, kMaxRows);
}

int64_t Evaluator::KeyColumns(const PointAt& point, const std::vector<TokenAt>& tokens) {
  const CapturedPoint& captured = captures_.Of(point);
  int64_t columns = 0;
  for (const TokenAt& token : tokens) {
    columns = std::max<int64_t>(columns, token.position + 1);
    const int64_t index = captured.IndexOf(token);
    if (index < 0) continue;
    const std::vector<int32_t> keys = captured.Keys(index);
    columns = std::max<int64_t>(columns, captured.RowShape(index).back());
    for (const int32_t key : keys) columns = std::max<int64_t>(columns, key + 1);
  }
  return columns;
}

Evaluated Evaluator::CapturedKeys(const PointAt& point, const std::vector<TokenAt>& tokens) {
  const CapturedPoint& captured = captures_.Of(point);
  const int64_t columns = KeyColumns(point, tokens), heads = model_.config().num_attention_heads;
  const bool scores = point.id == Point::kAttnScores;
  Evaluated out = Empty(tokens.size(), heads * columns);
  std::fill(out.block.value.begin(), out.block.value.end(), scores ? -INFINITY : 0.0);
  out.from.insert(point.Name());
  const double masked = -Grid(captured.dtype()).largest() / 2;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const int64_t index = captured.IndexOf(tokens[i]);
    if (index < 0) continue;
    const int64_t count = captured.RowShape(index).back();
    if (captured.RowSize(index) != heads * count) continue;
    std::vector<float> row(static_cast<size_t>(heads * count));
    captured.Read(index, row.data());
    const std::vector<int32_t> keys = captured.Keys(index);
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t j = 0; j < count; ++j) {
        const int64_t key = keys.empty() ? j : keys[static_cast<size_t>(j)];
        const float value = row[static_cast<size_t>(h * count + j)];
        if (key < 0 || (scores && value <= masked)) continue;
        out.block.Row(static_cast<int64_t>(i))[h * columns + key] = value;
      }
    }
    out.observable[i] = 1;
  }
  return out;
}

Evaluated Evaluator::Captured(const PointAt& point, const std::vector<TokenAt>& tokens) {
  if (model_.WidthOf(point.id) == 0) return CapturedKeys(point, tokens);
  const CapturedPoint& captured = captures_.Of(point);
  const int64_t width = model_.WidthOf(point.id);
  Evaluated out = Empty(tokens.size(), width);
  if (captured.empty()) return out;
  out.from.insert(point.Name());
  // A capture that is coarser than what the engine went on with has a rounding of its own.
  const TraceMeta& meta = captures_.runs().runs.front().meta();
  const Grid grid(captured.dtype());
  const bool coarse =
      meta.has_arithmetic && grid.unit_error() > Grid(meta.ArithmeticOf(point.Name()).storage).unit_error();
  if (coarse) out.block.variance.assign(out.block.value.size(), 0.0);
  ParallelFor(static_cast<int64_t>(tokens.size()), [&](int64_t i) {
    const int64_t index = captured.IndexOf(tokens[static_cast<size_t>(i)]);
    if (index < 0 || captured.RowSize(index) != width) return;
    std::vector<float> row(static_cast<size_t>(width));
    captured.Read(index, row.data());
    std::copy(row.begin(), row.end(), out.block.Row(i));
    for (int64_t c = 0; coarse && c < width; ++c) out.block.Variance(i)[c] = grid.Rounding(row[static_cast<size_t>(c)]);
    out.observable[static_cast<size_t>(i)] = 1;
  });
  return out;
}

Evaluated Evaluator::Input(const PointAt& point, const std::vector<TokenAt>& tokens) {
  Evaluated out = Captured(point, tokens);
  std::vector<TokenAt> missing;
  std::vector<int64_t> at;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (out.observable[i]) continue;
    missing.push_back(tokens[i]);
    at.push_back(static_cast<int64_t>(i));
  }
  if (missing.empty()) return out;
  const Rows key = {point.Name(), missing};
  auto found = bridged_.find(key);
  if (found == bridged_.end()) found = bridged_.emplace(key, Inner(CallOf(point), missing)).first;
  const Evaluated& bridge = found->second;
  for (size_t i = 0; i < missing.size(); ++i) {
    if (!bridge.observable[i]) continue;
    CopyRow(bridge.block, static_cast<int64_t>(i), &out.block, at[i]);
    out.observable[static_cast<size_t>(at[i])] = 1;
  }
  Note(bridge, &out);
  out.bridged = true;
  if (missing.size() == tokens.size()) out.from.erase(point.Name());
  return out;
}

Evaluated Evaluator::Evaluate(const OpCall& call, const std::vector<TokenAt>& tokens) {
  bridged_.clear();
  return Inner(call, tokens);
}

Evaluated Evaluator::Inner(const OpCall& call, const std::vector<TokenAt>& tokens) {
  Evaluated out = call.op == Op::kAttention || call.op == Op::kScores ? Attend(call, tokens)
                  : call.op == Op::kSoftmax                           ? Softmax(call, tokens)
                                                                      : RowWise(call, tokens);
  if (call.after) call.after(tokens, &out.block);
  return out;
}

Evaluated Evaluator::RowWise(const OpCall& call, const std::vector<TokenAt>& tokens) {
  Evaluated out;
  out.observable.assign(tokens.size(), 1);
  std::vector<Block> inputs;
  for (size_t i = 0; i < call.inputs.size(); ++i) {
    Evaluated input = Input(call.inputs[i], tokens);
    for (size_t t = 0; t < tokens.size(); ++t) out.observable[t] = out.observable[t] && input.observable[t];
    Note(input, &out);
    if (call.before) call.before(tokens, i, &input.block);
    inputs.push_back(std::move(input.block));
  }
  const Arithmetic arithmetic = ArithmeticOf(call.point);
  switch (call.op) {
    case Op::kEmbedding: {
      std::vector<TokenAt> known = tokens;
      for (size_t t = 0; t < tokens.size(); ++t) {
        if (tokens[t].input_id >= 0 && tokens[t].input_id < call.matrix->rows) continue;
        out.observable[t] = 0;
        out.missing = "input_ids";
        known[t].input_id = 0;
      }
      out.block = Embedding(known, call, arithmetic);
      out.from.insert("input_ids");
      break;
    }
    case Op::kCopy: out.block = Copy(inputs.at(0), arithmetic); break;
    case Op::kRmsNorm: out.block = RmsNorm(inputs.at(0), call, arithmetic); break;
    case Op::kLinear: out.block = Linear(inputs.at(0), call, arithmetic); break;
    case Op::kRope: out.block = Rope(inputs.at(0), tokens, call, arithmetic); break;
    case Op::kAdd: out.block = Add(inputs, call, arithmetic); break;
    case Op::kSwiGlu: out.block = SwiGlu(inputs.at(0), inputs.at(1), call, arithmetic); break;
    default: break;
  }
  return out;
}

Evaluated Evaluator::Softmax(const OpCall& call, const std::vector<TokenAt>& tokens) {
  Evaluated out = Input(call.inputs.at(0), tokens);
  const Arithmetic arithmetic = ArithmeticOf(call.point);
  const int64_t heads = model_.config().num_attention_heads, from = out.block.width / heads;
  const int64_t columns = KeyColumns(call.point, tokens);
  Block probs;
  probs.Resize(out.block.rows, heads * columns);
  probs.variance.assign(probs.value.size(), 0.0);
  ParallelFor(probs.rows, [&](int64_t r) {
    std::vector<double> p(static_cast<size_t>(from)), variance(p.size());
    for (int64_t h = 0; h < heads; ++h) {
      SoftmaxRow(out.block.Row(r) + h * from, from, arithmetic, p.data(), variance.data());
      for (int64_t j = 0; j < std::min(from, columns); ++j) {
        if (out.block.Row(r)[h * from + j] == -INFINITY) continue;
        probs.Row(r)[h * columns + j] = p[static_cast<size_t>(j)];
        probs.Variance(r)[h * columns + j] = variance[static_cast<size_t>(j)];
      }
    }
  });
  out.block = std::move(probs);
  return out;
}

// Queries of one sequence that can share a list of keys.
struct Evaluator::Group {
  int run = 0;
  int keys_of = 0;              // the sequence whose keys they read
  int32_t last_step = 0;        // keys written later are not seen
  std::vector<size_t> queries;  // indices in tokens
  const std::vector<TokenAt>* tokens = nullptr;
};

Evaluated Evaluator::Attend(const OpCall& call, const std::vector<TokenAt>& tokens) {
  Evaluated queries = Input(call.inputs.at(0), tokens);
  if (call.before) call.before(tokens, 0, &queries.block);
  const int64_t heads = static_cast<int64_t>(call.attention.kv_head.size());
  const bool scores = call.op == Op::kScores;
  Evaluated out = Empty(tokens.size(), heads * (scores ? KeyColumns(call.point, tokens) : call.head_dim));
  out.block.variance.assign(out.block.value.size(), 0.0);
  if (scores) std::fill(out.block.value.begin(), out.block.value.end(), -INFINITY);
  Note(queries, &out);

  // One list of keys serves all queries of a sequence, unless a position was written again: then each step has its own.
  std::map<std::pair<int, int32_t>, Group> groups;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const TokenAt& token = tokens[i];
    const int keys_of = call.attention.sequence ? call.attention.sequence(token) : token.sequence;
    if (keys_of < 0) continue;
    const auto& written = captures_.Written(token.run, keys_of);
    const bool once =
        std::all_of(written.begin(), written.end(), [](const auto& entry) { return entry.second.size() == 1; });
    Group& group = groups[{keys_of, once ? -1 : token.step}];
    group.run = token.run, group.keys_of = keys_of, group.tokens = &tokens;
    group.last_step = std::max(group.last_step, token.step);
    group.queries.push_back(i);
  }
  for (const auto& [key, group] : groups) AttendGroup(call, group, queries, &out);
  return out;
}

const Evaluated& Evaluator::KeyRows(const PointAt& point, const std::vector<TokenAt>& tokens) {
  const Rows key = {point.Name(), tokens};
  const auto found = keys_.find(key);
  if (found != keys_.end()) return found->second;
  std::vector<TokenAt> real;
  std::vector<int64_t> at;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].run >= 0) real.push_back(tokens[i]), at.push_back(static_cast<int64_t>(i));
  }
  Evaluated rows = Input(point, real);
  Evaluated out = Empty(tokens.size(), rows.block.width);
  std::fill(out.observable.begin(), out.observable.end(), 1);
  for (size_t i = 0; i < real.size(); ++i) {
    CopyRow(rows.block, static_cast<int64_t>(i), &out.block, at[i]);
    out.observable[static_cast<size_t>(at[i])] = rows.observable[i];
  }
  Note(rows, &out);
  return keys_.emplace(key, std::move(out)).first->second;
}

void Evaluator::AttendGroup(const OpCall& call, const Group& group, const Evaluated& queries, Evaluated* out) {
  const AttentionParams& attention = call.attention;
  const std::vector<TokenAt>& tokens = *group.tokens;

  // The keys by position, as written last before the queries' step; and until which step each is not there.
  std::vector<TokenAt> keys;
  std::string gap;
  for (const auto& [position, writes] : captures_.Written(group.run, group.keys_of)) {
    const TokenAt* latest = nullptr;
    for (const TokenAt& write : writes) {
      if (write.step <= group.last_step) latest = &write;
    }
    if (!latest) continue;
    if (position != static_cast<int32_t>(keys.size())) {
      gap = "the tokens before position " + std::to_string(position) + " of sequence " + std::to_string(group.keys_of);
      break;
    }
    keys.push_back(*latest);
  }
  const auto shifted = [&](int64_t shift) {
    std::vector<TokenAt> list = keys;
    for (size_t j = 0; shift != 0 && j < keys.size(); ++j) {
      const int64_t from = static_cast<int64_t>(j) - shift;
      list[j] = from >= 0 && from < static_cast<int64_t>(keys.size()) ? keys[static_cast<size_t>(from)] : TokenAt{-1};
    }
    return list;
  };
  Evaluated k = KeyRows(call.inputs.at(1), shifted(attention.key_shift));
  if (call.before) call.before(keys, 1, &k.block);
  Note(k, out);
  const bool has_values = call.op == Op::kAttention;
  Evaluated v = has_values ? KeyRows(call.inputs.at(2), shifted(attention.value_shift)) : Evaluated{};
  if (has_values && call.before) call.before(keys, 2, &v.block);
  if (has_values) Note(v, out);

  std::vector<int32_t> hidden(keys.size() + 1, 0);  // of the first j keys, those that are not observable
  for (size_t j = 0; j < keys.size(); ++j) {
    hidden[j + 1] = hidden[j] + !(k.observable[j] && (!has_values || v.observable[j]));
  }

  Block q;
  q.Resize(static_cast<int64_t>(group.queries.size()), queries.block.width);
  std::vector<KeyRange> seen(group.queries.size());
  for (size_t i = 0; i < group.queries.size(); ++i) {
    const TokenAt& token = tokens[group.queries[i]];
    CopyRow(queries.block, static_cast<int64_t>(group.queries[i]), &q, static_cast<int64_t>(i));
    int64_t end = attention.causal ? token.position + 1 + attention.mask_shift : static_cast<int64_t>(keys.size());
    end = std::clamp<int64_t>(end, 0, static_cast<int64_t>(keys.size()));
    while (end > 0 && keys[static_cast<size_t>(end - 1)].step > token.step) --end;  // not yet written
    int64_t begin = attention.window > 0 ? std::max<int64_t>(0, token.position + 1 - attention.window) : 0;
    begin = std::min(begin, end);
    while (attention.this_step_only && begin < end && keys[static_cast<size_t>(begin)].step < token.step) ++begin;
    seen[i] = {static_cast<int32_t>(begin), static_cast<int32_t>(end)};
    const bool all_there = hidden[static_cast<size_t>(end)] == hidden[static_cast<size_t>(begin)];
    const bool complete = gap.empty() || end > token.position || attention.mask_shift < 0;
    if (!complete && out->missing.empty()) out->missing = gap;
    out->observable[group.queries[i]] = queries.observable[group.queries[i]] && all_there && complete && begin < end;
  }

  const Arithmetic arithmetic = ArithmeticOf(call.point);
  if (has_values) {
    const Block result = Attention(q, k.block, v.block, seen, call, arithmetic);
    for (size_t i = 0; i < group.queries.size(); ++i) {
      CopyRow(result, static_cast<int64_t>(i), &out->block, static_cast<int64_t>(group.queries[i]));
    }
    return;
  }
  const int64_t columns = out->block.width / static_cast<int64_t>(attention.kv_head.size());
  ParallelFor(q.rows, [&](int64_t i) {
    const KeyRange range = seen[static_cast<size_t>(i)];
    const int64_t count = range.end - range.begin, row = static_cast<int64_t>(group.queries[static_cast<size_t>(i)]);
    std::vector<double> s(attention.kv_head.size() * static_cast<size_t>(count)), variance(s.size());
    ScoresRow(q.Row(i), k.block, range, call, arithmetic, s.data(), variance.data());
    for (size_t h = 0; h < attention.kv_head.size(); ++h) {
      const auto at = static_cast<int64_t>(h) * columns + range.begin;
      std::copy_n(s.data() + static_cast<int64_t>(h) * count, std::min(count, columns), out->block.Row(row) + at);
      std::copy_n(variance.data() + static_cast<int64_t>(h) * count, std::min(count, columns),
                  out->block.Variance(row) + at);
    }
  });
}

}  // namespace lockstep
