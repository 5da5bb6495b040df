// Numbers in words: "0-2, 5".
#pragma once

#include <cstddef>
#include <limits>
#include <string>
#include <string_view>

namespace lockstep {

// Runs of neighbours as first and last; of more than `most` of them the rest is counted: "0-2, 5 and 3 more".
// `ascending` holds integers without repetition.
template <typename List>
std::string RangesText(const List& ascending, std::string_view separator = ", ", std::string_view dash = "-",
                       size_t most = std::numeric_limits<size_t>::max()) {
  std::string text;
  size_t shown = 0, left = ascending.size();
  for (auto at = ascending.begin(); at != ascending.end() && shown < most; ++shown) {
    const auto first = *at;
    auto last = first;
    for (++at, --left; at != ascending.end() && *at == last + 1; ++at, --left) last = *at;
    if (shown > 0) text += separator;
    text += std::to_string(first);
    if (last != first) text.append(dash).append(std::to_string(last));
  }
  if (left > 0) text += " and " + std::to_string(left) + " more";
  return text;
}

}  // namespace lockstep
