// What a side captured, by point and token.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "replay/block.h"
#include "replay/op_call.h"
#include "trace/rows.h"
#include "trace/runs.h"

namespace lockstep {

// All rows of one point, padding left out, in the order written.
class CapturedPoint {
 public:
  struct Row {
    int32_t piece = 0;
    int32_t row = 0;
  };

  const std::vector<TokenAt>& tokens() const { return tokens_; }
  bool empty() const { return tokens_.empty(); }
  int64_t width() const { return width_; }  // of a row; attn_scores and attn_probs: of the longest
  DType dtype() const { return dtype_; }    // the coarsest stored
  // Index in tokens() of that token of that step; -1 where it was not captured.
  int64_t IndexOf(const TokenAt& token) const;
  // The row as f32. out: [RowSize(index)]
  void Read(int64_t index, float* out) const;
  int64_t RowSize(int64_t index) const;
  const std::vector<int64_t>& RowShape(int64_t index) const;
  // Attention tensors: absolute key position of every column, [keys of the row]; empty: 0, 1, 2, …
  std::vector<int32_t> Keys(int64_t index) const;
  // The basis that the trace declares ("interleaved"); usually empty.
  const std::string& layout() const { return layout_; }
  // What cannot be used, and why: shards that do not fit.
  const std::vector<std::string>& problems() const { return problems_; }

 private:
  friend class Captures;
  std::vector<Piece> pieces_;
  std::vector<TokenAt> tokens_;
  std::vector<Row> rows_;                                      // of tokens_
  std::map<std::pair<int, int>, std::vector<int32_t>> index_;  // by (run, step): of each token, -1: not captured
  int64_t width_ = 0;
  DType dtype_ = DType::kF32;
  std::string layout_;
  std::vector<std::string> problems_;
};

class Captures {
 public:
  // REQUIRES: `runs` outlives this.
  explicit Captures(const TraceRuns& runs) : runs_(runs) {}

  const TraceRuns& runs() const { return runs_; }
  // Empty where nothing was captured. Built when first asked for, by the calling thread; kept until Forget.
  const CapturedPoint& Of(const PointAt& point);
  void Forget(const PointAt& point);
  // Every token of a sequence of a run that was run, by position: where it was written, in order of steps.
  const std::map<int32_t, std::vector<TokenAt>>& Written(int run, int sequence);

 private:
  CapturedPoint Build(const PointAt& point) const;

  const TraceRuns& runs_;
  std::map<std::pair<int, Point>, CapturedPoint> points_;
  std::map<std::pair<int, int>, std::map<int32_t, std::vector<TokenAt>>> written_;
};

}  // namespace lockstep
