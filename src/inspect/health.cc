#include "inspect/health.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "base/convert.h"
#include "compare/metrics.h"
#include "compare/shapes.h"
#include "trace/rows.h"
#include "trace/runs.h"

namespace lockstep {
namespace {

constexpr float kLargestF16 = 65504;

bool OneByte(const Piece::Row& row, size_t bytes) {
  return std::all_of(row.data, row.data + bytes, [&](std::byte byte) { return byte == row.data[0]; });
}

class Examination {
 public:
  Examination(const TraceTensor& tensor, const TraceStep& step, size_t step_number)
      : tensor_(tensor),
        step_(step),
        step_number_(step_number),
        axes_(RowAxes(tensor.name, tensor)),
        kind_(KindOf(tensor.name, axes_)),
        piece_(Piece::View(tensor, axes_, {})) {}

  std::vector<Ailment> Run() {
    const auto rows = static_cast<int64_t>(tensor_.rows.size());
    if (rows == 0 || piece_.row_size() == 0) return {};
    values_.resize(static_cast<size_t>(piece_.row_size()));
    std::vector<std::byte> buffer;
    for (int64_t row = 0; row < rows; ++row) ExamineRow(row, piece_.At(row, buffer));
    if (largest_ == 0 && !not_finite_) {
      Drop(AilmentKind::kZeroRows);
      Found(AilmentKind::kAllZero, {}, 0);
    } else if (largest_ < kTinyMagnitude && !not_finite_) {
      Found(AilmentKind::kTiny, {}, largest_);
    }
    for (Ailment& ailment : found_) {
      if (ailment.kind == AilmentKind::kHuge) ailment.value = largest_;
    }
    return std::move(found_);
  }

 private:
  void ExamineRow(int64_t row, const Piece::Row& stored) {
    WidenToFloat(stored.dtype, stored.data, values_.size(), values_.data());
    // One cheap look; what is found is counted by a second one.
    float largest = 0, lowest = values_[0], highest = values_[0];
    bool finite = true;
    for (const float value : values_) {
      const float magnitude = std::fabs(value);
      finite &= magnitude <= std::numeric_limits<float>::max();
      largest = magnitude > largest ? magnitude : largest;
      lowest = value < lowest ? value : lowest;
      highest = value > highest ? value : highest;
    }
    const bool saturated = tensor_.dtype == DType::kF16 && largest >= kLargestF16;
    if (!finite || saturated || largest > kHugeMagnitude) CountElements(row);
    if (finite) largest_ = std::max(largest_, static_cast<double>(largest));
    if (values_.size() < 2 || !finite || lowest != highest || IsAttention()) return;
    const size_t bytes = values_.size() * DTypeSize(stored.dtype);
    if (largest == 0) {
      Found(AilmentKind::kZeroRows, RowPlace(row, -1), 0);
    } else if (OneByte(stored, bytes)) {
      Found(AilmentKind::kFilledRows, RowPlace(row, -1), static_cast<double>(stored.data[0]));
    } else {
      Found(AilmentKind::kConstantRows, RowPlace(row, -1), lowest);
    }
  }

  void CountElements(int64_t row) {
    for (size_t i = 0; i < values_.size(); ++i) {
      const float value = values_[i];
      const auto at = [&] { return RowPlace(row, static_cast<int64_t>(i)); };
      if (kind_ == RowKind::kScores && IsMasked(value, tensor_.dtype)) continue;
      if (!std::isfinite(value)) {
        not_finite_ = true;
        Found(std::isnan(value) ? AilmentKind::kNan : AilmentKind::kInfinite, at(), 0);
        continue;
      }
      const double magnitude = std::fabs(value);
      largest_ = std::max(largest_, magnitude);
      if (tensor_.dtype == DType::kF16 && magnitude == kLargestF16) Found(AilmentKind::kSaturated, at(), value);
      if (magnitude > kHugeMagnitude) Found(AilmentKind::kHuge, at(), magnitude);
    }
  }

  bool IsAttention() const { return kind_ == RowKind::kScores || kind_ == RowKind::kProbs; }

  Place RowPlace(int64_t row, int64_t index) const {
    const auto token = static_cast<size_t>(tensor_.rows[static_cast<size_t>(row)]);
    Place place = PlaceOf(step_.sequences[token], step_.positions[token], axes_, piece_.row_shape(), index);
    const bool keys = IsAttention() && place.channel >= 0 && !tensor_.keys.empty();
    if (keys) {
      const auto width = static_cast<size_t>(piece_.row_shape().back());
      place.channel = tensor_.keys[static_cast<size_t>(row) * width + static_cast<size_t>(place.channel)];
    }
    return place;
  }

  void Found(AilmentKind kind, const Place& place, double value) {
    const auto same = std::find_if(found_.begin(), found_.end(), [&](const Ailment& a) { return a.kind == kind; });
    if (same != found_.end()) {
      ++same->count;
    } else {
      found_.push_back({kind, 1, step_number_, tensor_.rank, place, value});
    }
  }

  void Drop(AilmentKind kind) {
    std::erase_if(found_, [&](const Ailment& ailment) { return ailment.kind == kind; });
  }

  const TraceTensor& tensor_;
  const TraceStep& step_;
  size_t step_number_;
  std::vector<std::string> axes_;
  RowKind kind_;
  Piece piece_;
  std::vector<float> values_;  // of a row
  double largest_ = 0;         // finite magnitude
  bool not_finite_ = false;
  std::vector<Ailment> found_;
};

}  // namespace

std::vector<Ailment> Examine(const TraceTensor& tensor, const TraceStep& step, size_t step_number) {
  const bool readable = IsFloat(tensor.dtype);
  return readable ? Examination(tensor, step, step_number).Run() : std::vector<Ailment>();
}

Place PlaceOf(int sequence, int position, const std::vector<std::string>& axes, const std::vector<int64_t>& row_shape,
              int64_t index) {
  Place place{sequence, position, -1, -1};
  if (index < 0) return place;
  const bool heads = row_shape.size() > 1 && !axes.empty() && axes.front().ends_with("head");
  const int64_t inner = std::accumulate(row_shape.begin() + heads, row_shape.end(), int64_t{1}, std::multiplies<>());
  if (heads) place.head = static_cast<int>(index / inner);
  place.channel = static_cast<int>(heads ? index % inner : index);
  return place;
}

}  // namespace lockstep
