#include "diagnose/matching_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <unordered_map>

#include "base/fingerprint.h"
#include "base/parallel.h"

namespace lockstep {
namespace {

constexpr size_t kMinAffectedBehind = 4;
constexpr size_t kMaxCandidates = 64;

// Of the bits; 0 where all values are equal, which says nothing.
uint64_t HashOf(const float* values, int64_t count) {
  uint64_t hash = 1;
  bool varied = false;
  for (int64_t i = 0; i < count; ++i) {
    hash = SplitMix64(hash ^ std::bit_cast<uint32_t>(values[i]));
    varied = varied || values[i] != values[0];
  }
  return varied ? hash | 1 : 0;
}

// Hashes of every cell of every captured row of a point.
class RowHashes {
 public:
  RowHashes(const CapturedPoint& point, int64_t cells, int64_t cell_width) : point_(point), cells_(cells) {
    const auto count = static_cast<int64_t>(point.tokens().size());
    hashes_.resize(static_cast<size_t>(count * cells));
    ParallelFor(count, [&](int64_t r) {
      const std::vector<uint64_t> row = Of(point, r, cells, cell_width);
      std::copy(row.begin(), row.end(), hashes_.begin() + r * cells);
    });
  }

  static std::vector<uint64_t> Of(const CapturedPoint& point, int64_t index, int64_t cells, int64_t cell_width) {
    const int64_t width = point.RowSize(index);
    std::vector<float> values(static_cast<size_t>(width));
    point.Read(index, values.data());
    std::vector<uint64_t> out(static_cast<size_t>(cells));
    for (int64_t c = 0; c < cells && c * cell_width < width; ++c) {
      out[static_cast<size_t>(c)] =
          HashOf(values.data() + c * cell_width, std::min(cell_width, width - c * cell_width));
    }
    return out;
  }

  const uint64_t* Row(int64_t index) const { return hashes_.data() + index * cells_; }
  const CapturedPoint& point() const { return point_; }

 private:
  const CapturedPoint& point_;
  const int64_t cells_;
  std::vector<uint64_t> hashes_;
};

// Whether all affected cells of the row are those of another.
bool Equal(const Evidence& evidence, int64_t r, const uint64_t* row, const uint64_t* other) {
  for (int64_t c = 0; c < evidence.cells(); ++c) {
    if (evidence.CellAffected(r, c) && (row[c] == 0 || row[c] != other[c])) return false;
  }
  return true;
}

std::vector<float> RowOf(const CapturedPoint& point, const TokenAt& token) {
  const int64_t index = point.IndexOf(token);
  if (index < 0) return {};
  std::vector<float> row(static_cast<size_t>(point.RowSize(index)));
  point.Read(index, row.data());
  return row;
}

// Equal inputs give equal rows, which is no mistake. Inputs that were not captured are taken to differ.
bool InputsDiffer(const OpCall& call, const TokenAt& token, const OpCall& other_call, const TokenAt& other,
                  Captures& captures) {
  if (call.op == Op::kEmbedding) return token.input_id != other.input_id;
  for (size_t i = 0; i < call.inputs.size(); ++i) {
    if (call.inputs[i].layer >= 0 && other_call.inputs[i].layer < 0) return true;  // before the first layer
    const std::vector<float> a = RowOf(captures.Of(call.inputs[i]), token);
    if (a.empty() || a != RowOf(captures.Of(other_call.inputs[i]), other)) return true;
  }
  return call.inputs.empty();
}

OpCall InLayer(OpCall call, int layer) {
  for (PointAt& input : call.inputs) {
    if (input.layer >= 0) input.layer += layer - call.point.layer;
  }
  call.point.layer = layer;
  return call;
}

std::string Ordinal(int64_t tokens) {
  return std::to_string(std::abs(tokens)) + (std::abs(tokens) == 1 ? " token" : " tokens");
}

using Rule = std::function<std::optional<TokenAt>(const TokenAt&)>;

// Rows by what identifies them: sources are asked for by step and token, or by sequence and position.
class TokenIndex {
 public:
  explicit TokenIndex(const std::vector<TokenAt>& tokens) {
    for (const TokenAt& token : tokens) {
      by_step_[{token.run, token.step, token.token}] = token;
      last_[{token.run, token.step}] = token;
    }
  }
  std::optional<TokenAt> At(int32_t run, int32_t step, int32_t token) const {
    const auto found = by_step_.find({run, step, token});
    return found == by_step_.end() ? std::nullopt : std::optional(found->second);
  }
  std::optional<TokenAt> LastOf(int32_t run, int32_t step) const {
    const auto found = last_.find({run, step});
    return found == last_.end() ? std::nullopt : std::optional(found->second);
  }

 private:
  std::map<std::tuple<int32_t, int32_t, int32_t>, TokenAt> by_step_;
  std::map<std::pair<int32_t, int32_t>, TokenAt> last_;
};

// The rules of which `from` as the source of `to` is an example, the simplest first.
std::vector<RowSource> RulesOf(const TokenAt& to, const TokenAt& from, const PointAt& point,
                               const std::shared_ptr<const TokenIndex>& index) {
  using Kind = RowSource::Kind;
  if (to.run != from.run) return {};
  if (to.step == from.step) {
    const int32_t by = from.token - to.token, fixed = from.token;
    const std::string place = by < 0 ? " before" : " after";
    return {{Kind::kSameStep, point, [=](const TokenAt& t) { return index->At(t.run, t.step, t.token + by); },
             "the row " + Ordinal(by) + place},
            {Kind::kSameStep, point, [=](const TokenAt& t) { return index->At(t.run, t.step, fixed); },
             "the row of token " + std::to_string(fixed) + " of its step"}};
  }
  const int32_t back = to.step - from.step, step = from.step, token = from.token;
  const std::string step_text = back == 1    ? "the step before"
                                : back == -1 ? "the next step"
                                             : "step " + std::to_string(step);
  const auto step_of = [=](const TokenAt& t) { return std::abs(back) == 1 ? t.step - back : step; };
  std::vector<RowSource> out;
  if (to.token == from.token) {
    out.push_back({Kind::kOtherStep, point, [=](const TokenAt& t) { return index->At(t.run, step_of(t), t.token); },
                   "the row of the same token of " + step_text});
    out.push_back({Kind::kOtherStep, point, [=](const TokenAt& t) { return index->At(t.run, step, t.token); },
                   "the row of the same token of step " + std::to_string(step)});
  }
  if (index->LastOf(from.run, from.step) == from) {
    out.push_back({Kind::kOtherStep, point, [=](const TokenAt& t) { return index->LastOf(t.run, step_of(t)); },
                   "the last row of " + step_text});
  }
  out.push_back({Kind::kOtherStep, point, [=](const TokenAt& t) { return index->At(t.run, step, token); },
                 "the row of token " + std::to_string(token) + " of step " + std::to_string(step)});
  return out;
}

// Whether the rule holds in all affected rows, and somewhere copies a row of other inputs.
bool RuleHolds(const Evidence& evidence, const RowHashes& hashes, const RowSource& rule, Captures& captures) {
  const CapturedPoint& point = hashes.point();
  for (int64_t r = 0; r < evidence.num_rows(); ++r) {
    if (!evidence.RowAffected(r)) continue;
    const TokenAt& to = evidence.errors().tokens[static_cast<size_t>(r)];
    const std::optional<TokenAt> from = rule.source(to);
    if (!from || *from == to) return false;
    const int64_t row = point.IndexOf(to), other = point.IndexOf(*from);
    if (row < 0 || other < 0 || !Equal(evidence, r, hashes.Row(row), hashes.Row(other))) return false;
    if (!InputsDiffer(evidence.call(), to, evidence.call(), *from, captures)) return false;
  }
  return true;
}

std::optional<RowSource> InOwnPoint(const Evidence& evidence, Captures& captures) {
  const CapturedPoint& point = captures.Of(evidence.call().point);
  const RowHashes hashes(point, evidence.cells(), evidence.cell_width());
  const auto index = std::make_shared<const TokenIndex>(point.tokens());
  const int64_t i = evidence.affected().back();  // the worst may be one of a kind
  const TokenAt to = evidence.Token(i);
  const int64_t row = point.IndexOf(to);
  if (row < 0) return std::nullopt;
  size_t candidates = 0;
  for (size_t other = 0; other < point.tokens().size() && candidates < kMaxCandidates; ++other) {
    const auto at = static_cast<int64_t>(other);
    if (at == row || !Equal(evidence, evidence.RowOf(i), hashes.Row(row), hashes.Row(at))) continue;
    ++candidates;
    for (RowSource& rule : RulesOf(to, point.tokens()[other], evidence.call().point, index)) {
      if (RuleHolds(evidence, hashes, rule, captures)) return std::move(rule);
    }
  }
  return std::nullopt;
}

// Only the sample's rows are read there.
bool EqualsLayer(const Evidence& evidence, int layer, Captures& captures) {
  const OpCall other_call = InLayer(evidence.call(), layer);
  const CapturedPoint &own = captures.Of(evidence.call().point), &other = captures.Of(other_call.point);
  for (const int64_t i : evidence.affected()) {
    const TokenAt& token = evidence.Token(i);
    const int64_t row = own.IndexOf(token), there = other.IndexOf(token);
    if (row < 0 || there < 0 || own.RowSize(row) != other.RowSize(there)) return false;
    const auto hashes = [&](const CapturedPoint& point, int64_t at) {
      return RowHashes::Of(point, at, evidence.cells(), evidence.cell_width());
    };
    if (!Equal(evidence, evidence.RowOf(i), hashes(own, row).data(), hashes(other, there).data())) return false;
    if (!InputsDiffer(evidence.call(), token, other_call, token, captures)) return false;
  }
  return true;
}

std::optional<RowSource> InOtherLayer(const Evidence& evidence, Captures& captures, int num_layers) {
  const int own = evidence.call().point.layer;
  if (own < 0) return std::nullopt;
  std::vector<int> layers;
  for (int distance = 1; distance < num_layers; ++distance) {
    if (own - distance >= 0) layers.push_back(own - distance);
    if (own + distance < num_layers) layers.push_back(own + distance);
  }
  for (const int layer : layers) {
    if (!EqualsLayer(evidence, layer, captures)) continue;
    return RowSource{RowSource::Kind::kOtherLayer,
                     {evidence.call().point.id, layer},
                     [](const TokenAt& token) { return std::optional(token); },
                     "its row of layer " + std::to_string(layer)};
  }
  return std::nullopt;
}

}  // namespace

std::optional<RowSource> FindRowSource(const Evidence& evidence, Captures& captures, int num_layers) {
  if (evidence.everything() || evidence.affected().empty()) return std::nullopt;
  if (std::optional<RowSource> source = InOwnPoint(evidence, captures)) return source;
  return InOtherLayer(evidence, captures, num_layers);
}

std::map<std::pair<int32_t, int32_t>, int64_t> TokensOfSteps(const PointErrors& errors) {
  std::map<std::pair<int32_t, int32_t>, int64_t> out;
  for (const TokenAt& token : errors.tokens) {
    int64_t& count = out[{token.run, token.step}];
    count = std::max<int64_t>(count, token.token + 1);
  }
  return out;
}

bool OnlyFirstRowsRight(const Evidence& evidence) {
  const int64_t heads = evidence.call().heads;
  if (heads < 2 || evidence.everything()) return false;
  const auto steps = TokensOfSteps(evidence.errors());
  size_t behind = 0;
  for (int64_t r = 0; r < evidence.num_rows(); ++r) {
    const TokenAt& token = evidence.errors().tokens[static_cast<size_t>(r)];
    const int64_t count = steps.at({token.run, token.step});
    for (int64_t h = 0; h < heads; ++h) {
      const bool written = token.token * heads + h < heads + count - 1;
      if (evidence.CellAffected(r, h) == written) return false;
      behind += !written;
    }
  }
  return behind >= kMinAffectedBehind;
}

CellSet::CellSet(const Evidence& evidence) {
  for (int64_t r = 0; r < evidence.num_rows(); ++r) {
    if (!evidence.RowAffected(r)) continue;
    std::vector<char>& cells = rows_[evidence.errors().tokens[static_cast<size_t>(r)]];
    for (int64_t c = 0; c < evidence.cells(); ++c) cells.push_back(evidence.CellAffected(r, c));
  }
}

const std::vector<char>* CellSet::Of(const TokenAt& token) const {
  const auto row = rows_.find(token);
  return row == rows_.end() ? nullptr : &row->second;
}

}  // namespace lockstep
