#include "inspect/selection.h"

#include <algorithm>
#include <limits>
#include <map>

#include "base/convert.h"
#include "inspect/health.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

bool IsSequence(const std::string& axis) { return axis == "seq" || axis == "sequence"; }
bool IsPosition(const std::string& axis) { return axis == "pos" || axis == "position"; }

template <typename T>
void WidenAs(const std::byte* data, std::vector<double>* out) {
  for (size_t i = 0; i < out->size(); ++i) (*out)[i] = static_cast<double>(LoadElement<T>(data, i));
}

// Exact where f32 is not.
void Widen(const Piece::Row& row, std::vector<double>* out) {
  switch (row.dtype) {
    case DType::kF64: return WidenAs<double>(row.data, out);
    case DType::kI64: return WidenAs<int64_t>(row.data, out);
    case DType::kU64: return WidenAs<uint64_t>(row.data, out);
    case DType::kI32: return WidenAs<int32_t>(row.data, out);
    case DType::kU32: return WidenAs<uint32_t>(row.data, out);
    default: break;
  }
  std::vector<float> floats(out->size());
  WidenToFloat(row.dtype, row.data, floats.size(), floats.data());
  std::copy(floats.begin(), floats.end(), out->begin());
}

// A slice of tokens: of a sequence, or of the positions of one.
class TokenFilter {
 public:
  TokenFilter(const AxisSlice* slice, const char* name) : slice_(slice), name_(name) {
    if (slice != nullptr) met_.resize(slice->items.size());
  }

  bool Wants(int64_t index, int64_t size) {
    if (slice_ == nullptr) return true;
    last_ = std::max(last_, size - 1);
    bool wanted = false;
    for (size_t i = 0; i < met_.size(); ++i) {
      if (!Covers(slice_->items[i], index, size)) continue;
      wanted = true;
      met_[i] = 1;
    }
    return wanted;
  }

  // Throws Error where a single number, or everything, chose nothing.
  void CheckMet(const std::string& point) const {
    for (size_t i = 0; i < met_.size(); ++i) {
      if (met_[i] || (slice_->items[i].range && std::count(met_.begin(), met_.end(), 1) > 0)) continue;
      throw Error(point + "[" + slice_->text + "]: chooses nothing: axis " + name_ + " goes to " +
                  std::to_string(last_) + ", and not every number need be recorded; ranges first:end stop before " +
                  "their end, -1 is the last");
    }
  }

 private:
  const AxisSlice* slice_;
  const char* name_;
  std::vector<char> met_;
  int64_t last_ = -1;
};

}  // namespace

ChosenPoint::ChosenPoint(const std::string& name, const SideRuns& reference, const SideRuns& candidate,
                         const std::vector<SequencePair>& pairs, const Slice& slice)
    : name_(name) {
  Collect(name, reference, candidate, pairs);
  WidenKeys();
  NameAxes();
  ChooseElements(slice);
  ChooseRows(slice);
}

void ChosenPoint::Collect(const std::string& name, const SideRuns& reference, const SideRuns& candidate,
                          const std::vector<SequencePair>& pairs) {
  std::map<int, int> reference_numbers, candidate_numbers;
  for (const SequencePair& pair : pairs) {
    reference_numbers[pair.reference] = pair.reference;
    candidate_numbers[pair.candidate] = pair.reference;
  }
  const std::vector<StepTensors>& steps = reference.points.at(name);
  row_axes_ = RowAxes(name, *steps.front().tensors.front());
  kind_ = KindOf(name, row_axes_);
  std::vector<Failure> failures;
  reference_ = CollectRows(reference, name, steps, row_axes_, reference_numbers, &failures);
  const bool alone = &reference == &candidate;
  candidate_ = alone ? reference_
                     : CollectRows(candidate, name, candidate.points.at(name), row_axes_, candidate_numbers, &failures);
  if (!reference_.pieces.empty() && !candidate_.pieces.empty()) {
    shape_ = UniteShapes(name, row_axes_, HeadsOf(reference, candidate), &reference_, &candidate_, &failures);
  }
  for (const Failure& failure : failures) {
    const std::string text = (alone ? "" : std::string(SideName(failure.side)) + ": ") + failure.text;
    if (std::find(problems_.begin(), problems_.end(), text) == problems_.end()) problems_.push_back(text);
  }
  if (shape_.empty()) {
    throw Error(name + ": cannot be put together: " + (problems_.empty() ? "it has no rows" : problems_.front()));
  }
  joined_ = JoinRows(reference_.rows, candidate_.rows);
}

// Keys that are not 0, 1, 2, … may lie beyond the longest row.
void ChosenPoint::WidenKeys() {
  if (!IsAttention() || shape_.size() != 2) return;
  for (const PointRows* side : {&reference_, &candidate_}) {
    for (const Piece& piece : side->pieces) {
      for (const int32_t key : piece.keys()) shape_[1] = std::max<int64_t>(shape_[1], int64_t{key} + 1);
    }
  }
}

void ChosenPoint::NameAxes() {
  for (size_t i = 0; i < shape_.size(); ++i) {
    const bool named = row_axes_.size() == shape_.size();
    const bool flat = shape_.size() == 1;
    axes_.push_back({named ? row_axes_[i] : flat ? "channel" : "axis" + std::to_string(i + 1), shape_[i], {}});
  }
}

ChosenAxis* ChosenPoint::FindAxis(const std::string& name) {
  for (ChosenAxis& axis : axes_) {
    if (axis.name == name || (name == "head" && axis.name.ends_with("_head"))) return &axis;
  }
  const bool channel = name == "channel" && axes_.back().name != "key" && !axes_.back().name.ends_with("_head");
  return channel ? &axes_.back() : nullptr;
}

void ChosenPoint::ChooseElements(const Slice& slice) {
  for (const AxisSlice& chosen : slice.axes) {
    if (IsSequence(chosen.axis) || IsPosition(chosen.axis)) continue;
    ChosenAxis* axis = FindAxis(chosen.axis);
    if (axis == nullptr || !axis->index.empty()) {
      std::string names = "seq, pos";
      for (const ChosenAxis& own : axes_) names += ", " + own.name + " (" + std::to_string(own.size) + ")";
      throw Error(name_ + "[" + chosen.text + "]: expected axes out of " + names + ", each once" +
                  "; head and channel are short for the heads and the last axis; found \"" + chosen.axis + "\"");
    }
    axis->index = IndicesOf(chosen, axis->name, axis->size);
  }
  elements_ = {0};
  for (ChosenAxis& axis : axes_) {
    if (axis.index.empty()) axis.index = IndicesOf({"", {{{}, {}, true}}, axis.name + "=:"}, axis.name, axis.size);
    std::vector<int64_t> deeper;
    for (const int64_t outer : elements_) {
      for (const int64_t i : axis.index) deeper.push_back(outer * axis.size + i);
    }
    elements_ = std::move(deeper);
  }
  for (const int64_t element : elements_) places_.push_back(PlaceOf(-1, -1, row_axes_, shape_, element));
}

void ChosenPoint::ChooseRows(const Slice& slice) {
  const AxisSlice *sequences = nullptr, *positions = nullptr;
  for (const AxisSlice& chosen : slice.axes) {
    if (IsSequence(chosen.axis)) sequences = &chosen;
    if (IsPosition(chosen.axis)) positions = &chosen;
  }
  std::map<int32_t, int64_t> lengths;  // rows are sorted
  for (const JoinedRow& row : joined_.rows) lengths[row.sequence] = int64_t{row.position} + 1;
  const int64_t num_sequences = lengths.empty() ? 0 : int64_t{lengths.rbegin()->first} + 1;
  TokenFilter sequence(sequences, "seq"), position(positions, "pos");
  std::erase_if(joined_.rows, [&](const JoinedRow& row) {
    return !sequence.Wants(row.sequence, num_sequences) || !position.Wants(row.position, lengths.at(row.sequence));
  });
  sequence.CheckMet(name_);
  position.CheckMet(name_);
  if (joined_.rows.empty()) throw Error(name_ + ": no row is chosen: it holds none of a sequence that is compared");
}

DType ChosenPoint::DTypeOf(Side side) const {
  const std::vector<Piece>& pieces = Of(side).pieces;
  for (const Piece& piece : pieces) {
    if (piece.dtype() != pieces.front().dtype()) return DType::kF64;  // holds either
  }
  return pieces.front().dtype();
}

Place ChosenPoint::PlaceAt(const JoinedRow& row, size_t value) const {
  Place place = places_[value];
  place.sequence = row.sequence;
  place.position = row.position;
  return place;
}

std::vector<int64_t> ChosenPoint::SlotsOfKeys(const Piece& piece, int64_t row) const {
  std::vector<int64_t> slots(static_cast<size_t>(shape_[1]), -1);
  const int64_t width = piece.row_shape()[1];
  for (int64_t k = 0; k < width; ++k) {
    const int64_t key = piece.keys().empty() ? k : piece.keys()[static_cast<size_t>(row * width + k)];
    if (key >= 0) slots[static_cast<size_t>(key)] = k;
  }
  return slots;
}

void ChosenPoint::Read(Side side, const JoinedRow& row, ChosenRow* out) const {
  const RowAt at = side == Side::kReference ? row.reference : row.candidate;
  const Piece& piece = Of(side).pieces[static_cast<size_t>(at.piece)];
  std::vector<std::byte> buffer;
  std::vector<double> whole(static_cast<size_t>(piece.row_size()));
  Widen(piece.At(at.row, buffer), &whole);
  out->values.resize(elements_.size());
  out->cells.assign(elements_.size(), Cell::kValue);
  if (!IsAttention()) {
    for (size_t i = 0; i < elements_.size(); ++i) out->values[i] = whole[static_cast<size_t>(elements_[i])];
    return;
  }
  const std::vector<int64_t> slots = SlotsOfKeys(piece, at.row);
  const double absent = kind_ == RowKind::kScores ? -std::numeric_limits<double>::infinity() : 0;
  for (size_t i = 0; i < elements_.size(); ++i) {
    const int64_t head = elements_[i] / shape_[1], slot = slots[static_cast<size_t>(elements_[i] % shape_[1])];
    double& value = out->values[i] = slot < 0 ? absent : whole[static_cast<size_t>(head * piece.row_shape()[1] + slot)];
    const bool masked = kind_ == RowKind::kScores && slot >= 0 && IsMasked(static_cast<float>(value), piece.dtype());
    if (slot < 0) out->cells[i] = Cell::kAbsent;
    if (masked) out->cells[i] = Cell::kMasked;
  }
}

}  // namespace lockstep
