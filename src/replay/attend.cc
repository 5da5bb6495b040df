// The evaluator's attention: which keys a query sees, gathered over the steps of its sequence.
#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "replay/evaluator.h"
#include "replay/noise.h"

namespace lockstep {

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
  Evaluated out = EmptyRows(tokens.size(), heads * columns);
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

// Queries of one sequence that share a list of keys.
struct Evaluator::Group {
  int run = 0;
  int keys_of = 0;              // the sequence whose keys they read
  int32_t last_step = 0;        // keys written later are not there
  std::vector<size_t> queries;  // indices in the tokens
};

namespace {

// The keys by position, each as written last up to a step.
struct KeyList {
  std::vector<TokenAt> tokens;
  std::string gap;  // what is missing where the list ends early
};

KeyList KeysUpTo(int32_t last_step, int sequence, const std::map<int32_t, std::vector<TokenAt>>& written) {
  KeyList out;
  for (const auto& [position, writes] : written) {
    const TokenAt* latest = nullptr;
    for (const TokenAt& write : writes) {
      if (write.step <= last_step) latest = &write;
    }
    if (!latest) continue;
    if (position != static_cast<int32_t>(out.tokens.size())) {
      out.gap = "position " + std::to_string(out.tokens.size()) + " of sequence " + std::to_string(sequence);
      break;
    }
    out.tokens.push_back(*latest);
  }
  return out;
}

// Key j read where key j - shift lies; where there is none, a token of run -1, whose row is zero.
std::vector<TokenAt> Shifted(const std::vector<TokenAt>& keys, int64_t shift) {
  std::vector<TokenAt> out = keys;
  const auto count = static_cast<int64_t>(keys.size());
  for (int64_t j = 0; shift != 0 && j < count; ++j) {
    const int64_t from = j - shift;
    out[static_cast<size_t>(j)] = from >= 0 && from < count ? keys[static_cast<size_t>(from)] : TokenAt{-1};
  }
  return out;
}

KeyRange SeenBy(const TokenAt& token, const std::vector<TokenAt>& keys, const AttentionParams& attention) {
  const auto count = static_cast<int64_t>(keys.size());
  const auto step_of = [&](int64_t key) { return keys[static_cast<size_t>(key)].step; };
  const int64_t last = attention.last_key ? attention.last_key(token) : token.position + attention.mask_shift;
  int64_t end = attention.causal ? std::clamp<int64_t>(last + 1, 0, count) : count;
  int64_t written = count;
  while (written > 0 && step_of(written - 1) > token.step) --written;
  end = std::min(end, written);
  int64_t begin = attention.window > 0 ? std::max<int64_t>(0, token.position + 1 - attention.window) : 0;
  begin = std::min(begin, end);
  while (attention.this_step_only && begin < end && step_of(begin) < token.step) ++begin;
  return {static_cast<int32_t>(begin), static_cast<int32_t>(end), static_cast<int32_t>(written)};
}

// Of the first j keys, how many are not observable: [keys + 1].
std::vector<int32_t> CountHidden(const Evaluated& k, const Evaluated* v) {
  std::vector<int32_t> hidden = {0};
  for (size_t j = 0; j < k.observable.size(); ++j) {
    hidden.push_back(hidden.back() + !(k.observable[j] && (!v || v->observable[j])));
  }
  return hidden;
}

}  // namespace

Evaluated Evaluator::Attend(const OpCall& call, const std::vector<TokenAt>& tokens) {
  Evaluated queries = Input(call.inputs.at(0), tokens);
  if (call.before) call.before(tokens, 0, &queries.block);
  const auto heads = static_cast<int64_t>(call.attention.kv_head.size());
  const bool scores = call.op == Op::kScores;
  Evaluated out = EmptyRows(tokens.size(), heads * (scores ? KeyColumns(call.point, tokens) : call.head_dim));
  out.block.variance.assign(out.block.value.size(), 0.0);
  if (scores) std::fill(out.block.value.begin(), out.block.value.end(), -INFINITY);
  NoteInput(queries, &out);

  // One list of keys serves all queries of a sequence, unless a position was written again: then each step has its own.
  std::map<std::pair<int, int32_t>, Group> groups;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const TokenAt& token = tokens[i];
    const int keys_of = call.attention.sequence ? call.attention.sequence(token) : token.sequence;
    if (keys_of < 0) continue;
    const auto& written = captures_.Written(token.run, keys_of);
    const bool once =
        std::all_of(written.begin(), written.end(), [](const auto& entry) { return entry.second.size() == 1; });
    Group& group = groups[{keys_of, once && !call.attention.by_step ? -1 : token.step}];
    group.run = token.run, group.keys_of = keys_of;
    group.last_step = std::max(group.last_step, token.step);
    group.queries.push_back(i);
  }
  for (const auto& [key, group] : groups) AttendGroup(call, tokens, group, queries, &out);
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
  const Evaluated rows = Input(point, real);
  Evaluated out = EmptyRows(tokens.size(), rows.block.width);
  std::fill(out.observable.begin(), out.observable.end(), 1);
  for (size_t i = 0; i < real.size(); ++i) {
    CopyRow(rows.block, static_cast<int64_t>(i), &out.block, at[i]);
    out.observable[static_cast<size_t>(at[i])] = rows.observable[i];
  }
  NoteInput(rows, &out);
  return keys_.emplace(key, std::move(out)).first->second;
}

void Evaluator::AttendGroup(const OpCall& call, const std::vector<TokenAt>& tokens, const Group& group,
                            const Evaluated& queries, Evaluated* out) {
  const AttentionParams& attention = call.attention;
  const KeyList keys = KeysUpTo(group.last_step, group.keys_of, captures_.Written(group.run, group.keys_of));
  const auto read = [&](size_t input, int64_t shift) {
    Evaluated rows = KeyRows(call.inputs.at(input), Shifted(keys.tokens, shift));
    if (call.before) call.before(keys.tokens, input, &rows.block);
    NoteInput(rows, out);
    return rows;
  };
  const bool weighs = call.op == Op::kAttention;
  const Evaluated k = read(1, attention.key_shift);
  const Evaluated v = weighs ? read(2, attention.value_shift) : Evaluated{};
  const std::vector<int32_t> hidden = CountHidden(k, weighs ? &v : nullptr);

  Block q;
  q.Resize(static_cast<int64_t>(group.queries.size()), queries.block.width);
  std::vector<KeyRange> seen;
  for (size_t i = 0; i < group.queries.size(); ++i) {
    const TokenAt& token = tokens[group.queries[i]];
    CopyRow(queries.block, static_cast<int64_t>(group.queries[i]), &q, static_cast<int64_t>(i));
    const KeyRange range = seen.emplace_back(SeenBy(token, keys.tokens, attention));
    const bool cut_off = !keys.gap.empty() && token.position >= static_cast<int32_t>(keys.tokens.size());
    if (cut_off) out->missing = keys.gap;
    out->observable[group.queries[i]] = queries.observable[group.queries[i]] && !cut_off && range.begin < range.end &&
                                        hidden[range.end] == hidden[range.begin];
  }
  const Arithmetic arithmetic = ArithmeticOf(call.point);
  const auto heads = static_cast<int64_t>(attention.kv_head.size()), columns = out->block.width / heads;
  const Block result = weighs ? Attention(q, k.block, v.block, seen, call, arithmetic)
                              : Scores(q, k.block, seen, columns, call, arithmetic);
  for (size_t i = 0; i < group.queries.size(); ++i) {
    CopyRow(result, static_cast<int64_t>(i), &out->block, static_cast<int64_t>(group.queries[i]));
  }
}

}  // namespace lockstep
