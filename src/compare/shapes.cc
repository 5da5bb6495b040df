#include "compare/shapes.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "base/safetensors.h"
#include "compare/config.h"
#include "lockstep/points.h"

namespace lockstep {
namespace {

using Shape = std::vector<int64_t>;

int64_t Product(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

bool IsAttention(RowKind kind) { return kind == RowKind::kScores || kind == RowKind::kProbs; }

// Whether a row of shape `piece` holds what `shape` says, perhaps flattened. The keys of attention may be more or
// fewer.
bool Fits(const Shape& piece, const Shape& shape, RowKind kind) {
  if (IsAttention(kind)) return piece.size() == 2 && shape.size() == 2 && piece[0] == shape[0];
  return piece == shape || ((piece.size() == 1 || shape.size() == 1) && Product(piece) == Product(shape));
}

// The most structured shape that the pieces have, or that config gives to a flattened row.
Shape BestShape(const std::vector<std::string>& axes, const HeadCounts& heads, const PointRows& a, const PointRows& b) {
  Shape best = a.pieces.front().row_shape();
  for (const PointRows* side : {&a, &b}) {
    const Shape& shape = side->pieces.front().row_shape();
    if (shape.size() > best.size()) best = shape;
  }
  if (best.size() == 1 && axes.size() == 2 && axes[1] == "head_dim") {
    const Shape expected = {axes[0] == "q_head" ? heads.query : heads.key_value, heads.head_dim};
    if (Product(expected) == best[0] && best[0] > 0) return expected;
  }
  return best;
}

// Drops the rows of pieces that do not fit; reshapes the others.
void FitPieces(const std::string& name, Side side, const Shape& shape, RowKind kind, PointRows* point,
               std::vector<Failure>* failures) {
  std::vector<bool> fits(point->pieces.size(), true);
  bool told = false;
  for (size_t i = 0; i < point->pieces.size(); ++i) {
    Piece& piece = point->pieces[i];
    fits[i] = FitPiece(shape, kind, &piece);
    if (fits[i] || told) continue;
    told = true;
    failures->push_back({FailureKind::kShape, side, name,
                         "rows of shape " + ShapeText(piece.row_shape()) + " in step " +
                             std::to_string(point->where[i].step) + ", expected " + ShapeText(shape) +
                             " as in the other steps"});
  }
  std::erase_if(point->rows, [&](const RowRef& row) { return !fits[static_cast<size_t>(row.at.piece)]; });
}

Shape LongestRow(const PointRows& a, const PointRows& b, Shape shape) {
  for (const PointRows* side : {&a, &b}) {
    for (const Piece& piece : side->pieces) {
      if (piece.row_shape().size() == 2) shape[1] = std::max(shape[1], piece.row_shape()[1]);
    }
  }
  return shape;
}

}  // namespace

bool FitPiece(const Shape& shape, RowKind kind, Piece* piece) {
  if (!Fits(piece->row_shape(), shape, kind)) return false;
  if (!IsAttention(kind)) piece->Reshape(shape);
  return true;
}

HeadCounts HeadsOf(const SideRuns& reference, const SideRuns& candidate) {
  const auto either = [&](const char* key) {
    return std::max(ConfigNumber(reference, key), ConfigNumber(candidate, key));
  };
  return {either("num_attention_heads"), either("num_key_value_heads"), either("head_dim")};
}

RowKind KindOf(const std::string& name, const std::vector<std::string>& axes) {
  if (const auto ref = ParsePointName(name)) {
    if (ref->spec->id == Point::kAttnScores) return RowKind::kScores;
    if (ref->spec->id == Point::kAttnProbs) return RowKind::kProbs;
  }
  const bool heads = axes.size() >= 2 && axes[0].ends_with("head");
  return heads ? RowKind::kHeads : RowKind::kPlain;
}

std::vector<int64_t> UniteShapes(const std::string& name, const std::vector<std::string>& axes, const HeadCounts& heads,
                                 PointRows* reference, PointRows* candidate, std::vector<Failure>* failures) {
  const RowKind kind = KindOf(name, axes);
  const Shape &ref = reference->pieces.front().row_shape(), &cand = candidate->pieces.front().row_shape();
  if (!Fits(cand, ref, kind)) {
    failures->push_back({FailureKind::kShape, Side::kCandidate, name,
                         "rows of shape " + ShapeText(cand) + ", in the reference " + ShapeText(ref)});
    return {};
  }
  const Shape shape = BestShape(axes, heads, *reference, *candidate);
  FitPieces(name, Side::kReference, shape, kind, reference, failures);
  FitPieces(name, Side::kCandidate, shape, kind, candidate, failures);
  return IsAttention(kind) ? LongestRow(*reference, *candidate, shape) : shape;
}

}  // namespace lockstep
