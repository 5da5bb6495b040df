// The rows and elements of one point that a slice chooses, of one side or of two.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "compare/join.h"
#include "compare/shapes.h"
#include "inspect/slice.h"
#include "lockstep/inspect.h"

namespace lockstep {

// What a value of an attention row may be.
enum class Cell : uint8_t { kValue, kMasked, kAbsent };

struct ChosenRow {
  std::vector<double> values;  // absent: as if masked, -inf of scores and 0 of probabilities
  std::vector<Cell> cells;
};

class ChosenPoint {
 public:
  // Both sides may be the same one. Throws Error: nothing readable, shapes that differ, a slice that does not fit.
  ChosenPoint(const std::string& name, const SideRuns& reference, const SideRuns& candidate,
              const std::vector<SequencePair>& pairs, const Slice& slice);

  const std::vector<JoinedRow>& rows() const { return joined_.rows; }
  const std::vector<ChosenAxis>& axes() const { return axes_; }
  const std::vector<std::string>& problems() const { return problems_; }
  size_t only_reference() const { return joined_.only_reference.size(); }
  size_t only_candidate() const { return joined_.only_candidate.size(); }
  DType DTypeOf(Side side) const;
  // Of the chosen values of one row.
  size_t row_values() const { return places_.size(); }
  Place PlaceAt(const JoinedRow& row, size_t value) const;
  void Read(Side side, const JoinedRow& row, ChosenRow* out) const;

 private:
  void Collect(const std::string& name, const SideRuns& reference, const SideRuns& candidate,
               const std::vector<SequencePair>& pairs);
  void NameAxes();
  void ChooseElements(const Slice& slice);
  void ChooseRows(const Slice& slice);
  void WidenKeys();
  ChosenAxis* FindAxis(const std::string& name);
  bool IsAttention() const { return kind_ == RowKind::kScores || kind_ == RowKind::kProbs; }
  const PointRows& Of(Side side) const { return side == Side::kReference ? reference_ : candidate_; }
  // Slot of each absolute key in a row of the piece; -1 where it has none.
  std::vector<int64_t> SlotsOfKeys(const Piece& piece, int64_t row) const;

  std::string name_;
  PointRows reference_, candidate_;
  Joined joined_;
  RowKind kind_ = RowKind::kPlain;
  std::vector<std::string> row_axes_;
  std::vector<int64_t> shape_;  // of a row
  std::vector<ChosenAxis> axes_;
  std::vector<int64_t> elements_;  // flat indices into a row of shape_
  std::vector<Place> places_;      // of each, without the token
  std::vector<std::string> problems_;
};

}  // namespace lockstep
