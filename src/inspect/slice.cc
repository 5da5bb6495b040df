#include "inspect/slice.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "lockstep/error.h"

namespace lockstep {
namespace {

constexpr const char* kSyntax =
    "expected a slice such as layer_3_attn_q_rope[pos=5, head=0:4, channel=1,3,-1]: numbers, ranges first:end, lists; "
    "-1 is the last";

[[noreturn]] void Fail(const std::string& text, const std::string& found) {
  throw Error("\"" + text + "\": " + kSyntax + "; found " + found);
}

std::string_view Trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(' ');
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(' ') - first + 1);
}

std::optional<int64_t> ParseNumber(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

SliceItem ParseItem(const std::string& whole, std::string_view text) {
  const auto number = [&](std::string_view part) {
    const std::optional<int64_t> value = ParseNumber(part);
    if (!value) Fail(whole, "\"" + std::string(text) + "\"");
    return value;
  };
  const size_t colon = text.find(':');
  if (colon == text.npos) return {number(text), std::nullopt, false};
  const std::string_view first = Trimmed(text.substr(0, colon)), end = Trimmed(text.substr(colon + 1));
  SliceItem item{std::nullopt, std::nullopt, true};
  if (!first.empty()) item.first = number(first);
  if (!end.empty()) item.end = number(end);
  return item;
}

// Of the part between the brackets. A part without `=` goes on with the list of the axis before it.
std::vector<AxisSlice> ParseAxes(const std::string& whole, std::string_view text) {
  std::vector<AxisSlice> axes;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    std::string_view part = Trimmed(text.substr(begin, comma - begin));
    begin = comma + 1;
    const size_t equals = part.find('=');
    if (equals != part.npos) {
      const std::string axis(Trimmed(part.substr(0, equals)));
      const bool again = std::any_of(axes.begin(), axes.end(), [&](const auto& other) { return other.axis == axis; });
      if (axis.empty() || again) Fail(whole, again ? "axis \"" + axis + "\" twice" : "an axis without a name");
      axes.push_back({axis, {}, std::string(part)});
      part = Trimmed(part.substr(equals + 1));
    } else if (axes.empty()) {
      Fail(whole, "\"" + std::string(part) + "\" without an axis");
    } else {
      axes.back().text.append(",").append(part);
    }
    axes.back().items.push_back(ParseItem(whole, part));
  }
  return axes;
}

int64_t FromEnd(int64_t index, int64_t size) { return index < 0 ? index + size : index; }

}  // namespace

Slice ParseSlice(const std::string& text) {
  const size_t open = text.find('[');
  if (open == text.npos) {
    if (text.empty()) Fail(text, "nothing");
    return {text, {}};
  }
  if (open == 0 || text.back() != ']') Fail(text, open == 0 ? "no name" : "no \"]\" at the end");
  return {text.substr(0, open), ParseAxes(text, std::string_view(text).substr(open + 1, text.size() - open - 2))};
}

bool Covers(const SliceItem& item, int64_t index, int64_t size) {
  if (!item.range) return index == FromEnd(*item.first, size);
  return index >= FromEnd(item.first.value_or(0), size) && index < FromEnd(item.end.value_or(size), size);
}

std::vector<int64_t> IndicesOf(const AxisSlice& slice, const std::string& name, int64_t size) {
  for (const SliceItem& item : slice.items) {
    const int64_t index = item.range ? 0 : FromEnd(*item.first, size);
    if (item.range || (index >= 0 && index < size)) continue;
    throw Error("[" + slice.text + "]: axis " + name + " has " + std::to_string(size) + " entries: expected 0 to " +
                std::to_string(size - 1) + " (or -1 to -" + std::to_string(size) + " from the end), found " +
                std::to_string(*item.first));
  }
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < size; ++i) {
    const auto covers = [&](const SliceItem& item) { return Covers(item, i, size); };
    if (std::any_of(slice.items.begin(), slice.items.end(), covers)) indices.push_back(i);
  }
  if (!indices.empty()) return indices;
  throw Error("[" + slice.text + "]: chooses nothing: axis " + name + " has " + std::to_string(size) +
              " entries, and a range first:end stops before its end");
}

}  // namespace lockstep
