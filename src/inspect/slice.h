// The slice syntax: NAME[axis=items, axis=items], where an item is a number, or a range first:end without its end.
// Negative numbers count from the end.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lockstep {

struct SliceItem {
  std::optional<int64_t> first, end;  // none: from the start, to the end
  bool range = false;                 // else `first` alone
};

struct AxisSlice {
  std::string axis;  // as written
  std::vector<SliceItem> items;
  std::string text;  // "head=1,3", for messages
};

struct Slice {
  std::string name;
  std::vector<AxisSlice> axes;
};

// Throws Error that tells the syntax.
Slice ParseSlice(const std::string& text);

// Whether the item covers `index` of `size`.
bool Covers(const SliceItem& item, int64_t index, int64_t size);

// Indices that the slice covers, ascending, each once. Throws Error for a single number out of range, and when there
// are none; `name` is the axis's own name.
std::vector<int64_t> IndicesOf(const AxisSlice& slice, const std::string& name, int64_t size);

}  // namespace lockstep
