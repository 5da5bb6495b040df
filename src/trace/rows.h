// Rows of one point in one step as f32 in canonical axes, whatever lies on disk: other axis orders, dtypes, addresses;
// shards are put together, partial sums are added.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "lockstep/trace.h"

namespace lockstep {

// One tensor seen as rows: axis 0 of `shape` is the first axis after the token axis.
struct RowView {
  const TraceTensor* tensor = nullptr;
  int64_t token_stride = 0;      // in elements
  std::vector<int64_t> shape;    // of a row, canonical order
  std::vector<int64_t> strides;  // in elements
  bool contiguous = false;       // a row is one run of memory in canonical order
};

// `axes`: the canonical ones without the token; empty for a user's own point without declared axes. A tensor of fewer
// axes is taken as flattened ([tokens, heads * head_dim]). strides: of the stored axes, in elements; empty: packed.
RowView ViewRows(const TraceTensor& tensor, const std::vector<std::string>& axes, std::vector<int64_t> strides = {});

// All ranks' tensors of a point in one step.
class Piece {
 public:
  // What went wrong while putting it together; the piece is unusable when `fatal`.
  struct Problem {
    bool replicas = false;  // ranks differ that should agree; else shards do not fit
    bool fatal = false;
    std::string text;
  };

  // REQUIRES: tensors not empty, all of one name and step, with equal `rows`.
  static Piece Build(const std::vector<const TraceTensor*>& tensors, const std::vector<std::string>& axes,
                     std::vector<Problem>* problems);

  // One tensor in memory, perhaps strided; a tensor without data has a shape and rows that cannot be read.
  static Piece View(const TraceTensor& tensor, const std::vector<std::string>& axes, std::vector<int64_t> strides);

  const std::vector<int64_t>& row_shape() const { return row_shape_; }
  int64_t row_size() const { return row_size_; }
  // REQUIRES: the same number of elements (heads of a flattened row become an axis).
  void Reshape(const std::vector<int64_t>& shape);

  DType dtype() const { return views_.front().tensor->dtype; }
  const std::vector<int32_t>& rows() const { return views_.front().tensor->rows; }
  const std::vector<int32_t>& keys() const { return views_.front().tensor->keys; }
  const TraceTensor& tensor() const { return *views_.front().tensor; }

  // A row in canonical order: the stored bytes where they are one run, else gathered into `buffer`. Sums are F32.
  struct Row {
    DType dtype = DType::kF32;
    const std::byte* data = nullptr;  // [row_size]
  };
  Row At(int64_t row, std::vector<std::byte>& buffer) const;
  // The same as f32; out: [row_size]
  void Read(int64_t row, float* out) const;

 private:
  // How the ranks' tensors make one row; each is told of its problems.
  std::vector<RowView> ShardsInOrder(std::vector<Problem>* problems) const;
  void JoinShards(const std::vector<std::string>& axes, std::vector<Problem>* problems);
  void JoinParts(std::vector<Problem>* problems);
  void JoinReplicas(std::vector<Problem>* problems);

  void GatherShards(int64_t row, std::byte* out) const;
  void ReadSum(int64_t row, float* out) const;

  enum class Kind : uint8_t { kSingle, kShards, kSum };
  Kind kind_ = Kind::kSingle;
  std::vector<RowView> views_;        // shards in order; the parts of a sum; one of the replicas
  size_t shard_axis_ = 0;             // of the row
  std::vector<int64_t> shard_shape_;  // row shape as put together, before Reshape
  std::vector<int64_t> row_shape_;
  int64_t row_size_ = 0;
};

}  // namespace lockstep
