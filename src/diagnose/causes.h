// The catalogue's proposers, one an op, and what they share.
#pragma once

#include <algorithm>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "diagnose/hypothesis.h"

namespace lockstep {

void ProposeForEmbedding(const Case& fault, std::vector<Hypothesis>* out);
void ProposeForNorm(const Case& fault, std::vector<Hypothesis>* out);
void ProposeForLinear(const Case& fault, std::vector<Hypothesis>* out);
void ProposeForRope(const Case& fault, std::vector<Hypothesis>* out);
void ProposeForAttention(const Case& fault, std::vector<Hypothesis>* out);
void ProposeForResidual(const Case& fault, std::vector<Hypothesis>* out);
void ProposeForSwiGlu(const Case& fault, std::vector<Hypothesis>* out);

// How a cause is usually fixed; empty for one that is not in the table.
std::string_view AdviceFor(std::string_view cause);

using Change = std::function<void(OpCall& call)>;

// A row of a proposer's table: the right call with something changed.
struct Row {
  std::string cause;
  std::string text;
  Change change;
  int freedom = 0;  // as in Hypothesis
};

// Adds the right call with each of the rows' changes.
void AddRows(const Case& fault, std::span<const Row> rows, std::vector<Hypothesis>* out);
inline void AddRow(const Case& fault, const Row& row, std::vector<Hypothesis>* out) { AddRows(fault, {&row, 1}, out); }

// Input `input` replaced by each other point of the same width that an implementation could have read instead. A point
// in `causes` gets that cause, the others `cause`.
void AddWrongInputs(const Case& fault, size_t input, const std::string& cause,
                    const std::vector<std::pair<Point, std::string>>& causes, std::vector<Hypothesis>* out);

// Captured points of that width that come before `point` in this layer or in the one before, the nearest first.
std::vector<PointAt> EarlierPoints(Evaluator& evaluator, const PointAt& point, int64_t width);

// "1e-05", "10000", "0.08839".
std::string Number(double value, int digits = 7);
// "attn_q_rope" in the same layer, else "layer 3's attn_q_rope".
std::string NameSeenFrom(const PointAt& point, int layer);
// "the next layer's", "layer 7's".
std::string LayerSeenFrom(int other, int layer);

// What `call` gives for tokens of any runs. REQUIRES: tokens sorted by run.
Evaluated EvaluateRows(Evaluator& evaluator, const OpCall& call, const std::vector<TokenAt>& tokens);
// The values of an input for the rows of the sample; none where some row is not observable.
std::optional<Block> InputRows(const Case& fault, const PointAt& input);
std::optional<Block> InputRows(Evaluator& evaluator, const PointAt& input, const std::vector<TokenAt>& tokens);

// Whether the scale of all values together tells of the fault, which no value does by itself.
bool ShowsInScaleAlone(const PointErrors& errors);

// Cells that the right call does not explain, [rows, cells] of `errors`. Where only the scale or whole rows tell of the
// fault, all cells of them. (PointErrors::Affected takes every cell of a row that is off; one wrong head would then
// hide behind its neighbours.)
std::vector<char> AffectedCells(const PointErrors& errors);
// Row of `errors` of each token; -1 where it was not judged.
std::vector<int64_t> JudgedRowsOf(const PointErrors& errors, const std::vector<TokenAt>& tokens);
// Channels of a cell in rows of `width`.
inline int64_t CellWidthOf(const PointErrors& errors, int64_t width) {
  return errors.call.heads > 0 ? width / errors.call.heads : std::min(width, kCellWidth);
}
// Multiplies the values; what they are rounded to afterwards is `storage`.
void ScaleRounded(double factor, DType storage, Block* block);
// Weight of every element of the sample in a fit, [rows, width]: 1 / variance in affected cells, else 0.
std::vector<double> FitWeights(const Case& fault);
// The factors of `terms` (each [n]) that fit `value` best under these weights; empty where they are not determined.
std::vector<double> LeastSquares(const std::vector<const double*>& terms, const double* value, const double* weight,
                                 int64_t n);

// Where f is least in [low, high], if it falls towards it from both sides: by golden section.
double Minimum(double low, double high, const std::function<double(double)>& f);
// What was fitted as a reader would write it: the shortest number that fits the sample as well as `value` itself.
// `of`: the call with a number.
double Simplest(const Case& fault, double value, const std::function<OpCall(double)>& of);

}  // namespace lockstep
