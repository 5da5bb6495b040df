#include "diagnose/layout.h"

#include <algorithm>

#include "diagnose/linear.h"

namespace lockstep {
namespace {

// Heads of a block with channel c taken from channel map[c].
void Permute(const std::vector<int64_t>& map, Block* block) {
  const auto d = static_cast<int64_t>(map.size());
  std::vector<double> head(map.size());
  const auto permute = [&](std::vector<double>& values) {
    for (size_t begin = 0; begin + map.size() <= values.size(); begin += map.size()) {
      for (int64_t c = 0; c < d; ++c)
        head[static_cast<size_t>(c)] = values[begin + static_cast<size_t>(map[static_cast<size_t>(c)])];
      std::copy(head.begin(), head.end(), values.begin() + static_cast<ptrdiff_t>(begin));
    }
  };
  permute(block->value);
  if (!block->variance.empty()) permute(block->variance);
}

std::vector<int64_t> Inverse(const std::vector<int64_t>& map) {
  std::vector<int64_t> out(map.size());
  for (size_t c = 0; c < map.size(); ++c) out[static_cast<size_t>(map[c])] = static_cast<int64_t>(c);
  return out;
}

bool IsOfQOrK(Point point) {
  return point == Point::kAttnQProjRaw || point == Point::kAttnKProjRaw || point == Point::kAttnQNormed ||
         point == Point::kAttnKNormed || point == Point::kAttnQRope || point == Point::kAttnKRope;
}

}  // namespace

std::optional<std::string> Layouts::Explain(const PointErrors& errors) {
  const PointAt& point = errors.call.point;
  if (!IsOfQOrK(point.id) || errors.tokens.empty()) return std::nullopt;
  const std::optional<Named> basis = BasisOf(point.layer);
  if (!basis || !IsClean(errors.call, basis->basis)) return std::nullopt;
  return "q and k are in a permuted basis (" + basis->text + "): scores are equal";
}

// In the checkpoint's basis, the result brought into the captured one.
OpCall Layouts::InBasis(const OpCall& call, const Basis& basis) const {
  OpCall out = call;
  out.after = [basis](const std::vector<TokenAt>&, Block* block) { Permute(basis, block); };
  if (call.op != Op::kLinear) {
    const Basis back = Inverse(basis);
    out.before = [back](const std::vector<TokenAt>&, size_t, Block* block) { Permute(back, block); };
  }
  return out;
}

bool Layouts::IsClean(const OpCall& call, const Basis& basis) {
  return Judge(evaluator_, InBasis(call, basis)).summary.verdict == OpVerdict::kClean;
}

std::vector<Layouts::Named> Layouts::Candidates() const {
  const int64_t d = evaluator_.model().config().head_dim;
  std::vector<Named> out;
  for (const NamedOrder& order : NamedOrders(d, d)) out.push_back({order.text, order.map});
  return out;
}

std::optional<Layouts::Named> Layouts::BasisOf(int layer) {
  const auto found = by_layer_.find(layer);
  if (found != by_layer_.end()) return found->second;
  std::optional<Named>& out = by_layer_[layer];
  const PointAt q = {Point::kAttnQProjRaw, layer}, k = {Point::kAttnKProjRaw, layer};
  if (evaluator_.captures().Of(q).empty() || evaluator_.captures().Of(k).empty()) return out;
  for (const Named& named : Candidates()) {
    if (!IsClean(evaluator_.CallOf(q), named.basis) || !IsClean(evaluator_.CallOf(k), named.basis)) continue;
    // The rotation must pair what the permutation brought together, or the scores differ after all.
    const PointAt rotated = {Point::kAttnQRope, layer};
    if (!evaluator_.captures().Of(rotated).empty() && !IsClean(evaluator_.CallOf(rotated), named.basis)) continue;
    out = named;
    break;
  }
  return out;
}

}  // namespace lockstep
