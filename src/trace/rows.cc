#include "trace/rows.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <numeric>
#include <set>

#include "base/convert.h"
#include "base/safetensors.h"

namespace lockstep {
namespace {

int64_t Product(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

// Order in which the stored axes other than the token's make the canonical row.
std::vector<size_t> CanonicalOrder(const TraceTensor& tensor, const std::vector<std::string>& axes) {
  std::vector<size_t> stored;
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    if (static_cast<int>(i) != tensor.token_axis) stored.push_back(i);
  }
  if (tensor.axes.size() != tensor.shape.size() || axes.size() != stored.size()) return stored;
  std::vector<size_t> order;
  for (const std::string& axis : axes) {
    const auto at = std::find(tensor.axes.begin(), tensor.axes.end(), axis);
    if (at == tensor.axes.end()) return stored;  // names of the writer's own: the stored order is all there is
    order.push_back(static_cast<size_t>(at - tensor.axes.begin()));
  }
  return order;
}

bool IsContiguous(const RowView& view) {
  int64_t expected = 1;
  for (size_t i = view.shape.size(); i-- > 0;) {
    if (view.shape[i] != 1 && view.strides[i] != expected) return false;
    expected *= view.shape[i];
  }
  return true;
}

// Walks the row in canonical order; runs of unit stride are copied at once.
void GatherAxis(const RowView& view, size_t axis, const std::byte* data, std::byte*& out) {
  const size_t size = DTypeSize(view.tensor->dtype);
  const int64_t count = view.shape[axis], stride = view.strides[axis];
  const bool last = axis + 1 == view.shape.size();
  const size_t run = last && stride == 1 ? static_cast<size_t>(count) : 1;
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(run)) {
    const std::byte* element = data + i * stride * static_cast<int64_t>(size);
    if (last) {
      std::memcpy(out, element, run * size);
      out += run * size;
    } else {
      GatherAxis(view, axis + 1, element, out);
    }
  }
}

const std::byte* RowBegin(const RowView& view, int64_t row) {
  return view.tensor->data + row * view.token_stride * static_cast<int64_t>(DTypeSize(view.tensor->dtype));
}

bool SameBytes(const TraceTensor& a, const TraceTensor& b) {
  return a.dtype == b.dtype && a.shape == b.shape && a.token_axis == b.token_axis && a.bytes == b.bytes &&
         std::memcmp(a.data, b.data, a.bytes) == 0;
}

std::string RankText(const TraceTensor& tensor) { return "rank " + std::to_string(tensor.rank); }

}  // namespace

RowView ViewRows(const TraceTensor& tensor, const std::vector<std::string>& axes, std::vector<int64_t> strides) {
  if (strides.empty()) {
    strides.assign(tensor.shape.size(), 1);
    for (size_t i = tensor.shape.size(); i-- > 1;) strides[i - 1] = strides[i] * tensor.shape[i];
  }

  RowView view;
  view.tensor = &tensor;
  view.token_stride = strides[static_cast<size_t>(tensor.token_axis)];
  for (size_t axis : CanonicalOrder(tensor, axes)) {
    view.shape.push_back(tensor.shape[axis]);
    view.strides.push_back(strides[axis]);
  }
  if (view.shape.empty()) view.shape = {1}, view.strides = {1};  // one number a token
  view.contiguous = IsContiguous(view);
  return view;
}

Piece Piece::Build(const std::vector<const TraceTensor*>& tensors, const std::vector<std::string>& axes,
                   std::vector<Problem>* problems) {
  Piece piece;
  for (const TraceTensor* tensor : tensors) piece.views_.push_back(ViewRows(*tensor, axes));
  piece.row_shape_ = piece.views_.front().shape;
  const TraceTensor& first = *tensors.front();
  if (first.shard && first.shard->axis != "token" && first.shard->count > 1) {
    piece.JoinShards(axes, problems);
  } else if (first.partial && tensors.size() > 1) {
    piece.JoinParts(problems);
  } else {
    piece.JoinReplicas(problems);
  }
  piece.shard_shape_ = piece.row_shape_;
  piece.row_size_ = Product(piece.row_shape_);
  return piece;
}

Piece Piece::View(const TraceTensor& tensor, const std::vector<std::string>& axes, std::vector<int64_t> strides) {
  Piece piece;
  piece.views_.push_back(ViewRows(tensor, axes, std::move(strides)));
  piece.row_shape_ = piece.shard_shape_ = piece.views_.front().shape;
  piece.row_size_ = Product(piece.row_shape_);
  return piece;
}

// The views by shard index, without gaps; what is missing or does not fit is a problem.
std::vector<RowView> Piece::ShardsInOrder(std::vector<Problem>* problems) const {
  const TraceTensor& first = *views_.front().tensor;
  const auto count = static_cast<size_t>(first.shard->count);
  std::vector<const RowView*> slots(count, nullptr);
  for (const RowView& view : views_) {
    const TraceTensor& tensor = *view.tensor;
    if (!tensor.shard || tensor.shard->axis != first.shard->axis || tensor.shard->count != first.shard->count ||
        tensor.shard->index < 0 || static_cast<size_t>(tensor.shard->index) >= count) {
      problems->push_back({false, true, RankText(tensor) + " declares another sharding than " + RankText(first)});
      continue;
    }
    const RowView*& slot = slots[static_cast<size_t>(tensor.shard->index)];
    // Grouped heads are often replicated: two ranks may hold the same slice, and then must agree.
    if (slot && !SameBytes(*slot->tensor, tensor)) {
      problems->push_back({true, false,
                           RankText(tensor) + " and " + RankText(*slot->tensor) + " hold shard " +
                               std::to_string(tensor.shard->index) + " with different values"});
    }
    if (!slot) slot = &view;
  }
  std::vector<RowView> ordered;
  for (size_t i = 0; i < count; ++i) {
    if (slots[i]) {
      ordered.push_back(*slots[i]);
    } else {
      problems->push_back({false, true, "shard " + std::to_string(i) + " of " + std::to_string(count) + " is missing"});
    }
  }
  return ordered;
}

void Piece::JoinShards(const std::vector<std::string>& axes, std::vector<Problem>* problems) {
  kind_ = Kind::kShards;
  const Shard shard = *views_.front().tensor->shard;
  std::vector<RowView> ordered = ShardsInOrder(problems);
  if (!ordered.empty()) views_ = std::move(ordered);
  row_shape_ = views_.front().shape;
  for (const RowView& view : views_) {
    if (view.shape == row_shape_) continue;
    const std::string shapes = ShapeText(view.shape) + " and " + ShapeText(row_shape_);
    problems->push_back({false, true, "shards of different shapes: " + shapes});
    break;
  }
  for (const RowView& view : views_) {
    if (view.tensor->dtype == dtype()) continue;
    problems->push_back({false, true,
                         "shards of different dtypes: " + std::string(DTypeName(view.tensor->dtype)) + " and " +
                             std::string(DTypeName(dtype()))});
    break;
  }
  // A flattened [heads * head_dim] row sharded by head is cut in the same places.
  const auto axis = std::find(axes.begin(), axes.end(), shard.axis);
  shard_axis_ = row_shape_.size() == 1 ? 0 : static_cast<size_t>(axis - axes.begin());
  if (shard_axis_ >= row_shape_.size()) {
    problems->push_back({false, true, "sharded along \"" + shard.axis + "\", which is none of its axes"});
  } else {
    row_shape_[shard_axis_] *= shard.count;
  }
}

void Piece::JoinParts(std::vector<Problem>* problems) {
  kind_ = Kind::kSum;
  for (const RowView& view : views_) {
    if (view.shape == row_shape_ && view.tensor->partial) continue;
    problems->push_back(
        {false, true, RankText(*view.tensor) + " holds no partial sum of shape " + ShapeText(row_shape_)});
  }
}

void Piece::JoinReplicas(std::vector<Problem>* problems) {
  const TraceTensor& first = *views_.front().tensor;
  for (const RowView& view : views_) {
    if (view.tensor == &first || SameBytes(first, *view.tensor)) continue;
    problems->push_back({true, false,
                         RankText(*view.tensor) + " and " + RankText(first) +
                             " hold different values, and neither shard nor partial is declared"});
  }
  views_.resize(1);
}

void Piece::Reshape(const std::vector<int64_t>& shape) {
  assert(Product(shape) == row_size_);
  row_shape_ = shape;
}

Piece::Row Piece::At(int64_t row, std::vector<std::byte>& buffer) const {
  const RowView& first = views_.front();
  if (kind_ == Kind::kSingle && first.contiguous) return {dtype(), RowBegin(first, row)};
  const DType stored = kind_ == Kind::kSum ? DType::kF32 : dtype();
  buffer.resize(static_cast<size_t>(row_size_) * DTypeSize(stored));
  std::byte* out = buffer.data();
  switch (kind_) {
    case Kind::kSingle: GatherAxis(first, 0, RowBegin(first, row), out); break;
    case Kind::kShards: GatherShards(row, out); break;
    case Kind::kSum: ReadSum(row, reinterpret_cast<float*>(out)); break;
  }
  return {stored, buffer.data()};
}

void Piece::Read(int64_t row, float* out) const {
  std::vector<std::byte> buffer;
  const Row stored = At(row, buffer);
  WidenToFloat(stored.dtype, stored.data, static_cast<size_t>(row_size_), out);
}

void Piece::GatherShards(int64_t row, std::byte* out) const {
  size_t outer = 1, inner = DTypeSize(dtype());
  for (size_t i = 0; i < shard_axis_; ++i) outer *= static_cast<size_t>(shard_shape_[i]);
  for (size_t i = shard_axis_ + 1; i < shard_shape_.size(); ++i) inner *= static_cast<size_t>(shard_shape_[i]);
  const size_t slice = static_cast<size_t>(views_.front().shape[shard_axis_]) * inner;
  std::vector<std::byte> part(outer * slice);
  for (size_t k = 0; k < views_.size(); ++k) {
    std::byte* end = part.data();
    GatherAxis(views_[k], 0, RowBegin(views_[k], row), end);
    for (size_t i = 0; i < outer; ++i) {
      std::memcpy(out + (i * views_.size() + k) * slice, part.data() + i * slice, slice);
    }
  }
}

void Piece::ReadSum(int64_t row, float* out) const {
  const auto size = static_cast<size_t>(row_size_);
  std::vector<std::byte> stored;
  std::vector<float> part(size);
  std::vector<double> sum(size, 0.0);
  for (const RowView& view : views_) {
    stored.resize(size * DTypeSize(view.tensor->dtype));
    std::byte* end = stored.data();
    GatherAxis(view, 0, RowBegin(view, row), end);
    WidenToFloat(view.tensor->dtype, stored.data(), size, part.data());
    for (size_t i = 0; i < size; ++i) sum[i] += part[i];
  }
  std::transform(sum.begin(), sum.end(), out, [](double value) { return static_cast<float>(value); });
}

}  // namespace lockstep
