// UTF-8 that may be broken, repaired as Python's errors="replace" does: every maximal part of a character that is cut
// short or cannot go on becomes one U+FFFD.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace lockstep {

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// Length of the longest prefix that is UTF-8.
size_t ValidPrefix(std::string_view text);

// Appends the repaired text to `out`, but for a tail that further bytes could still complete; returns the length of
// that tail (0 to 3). At the end of the text the tail is one U+FFFD.
size_t AppendRepaired(std::string_view text, std::string& out);

}  // namespace lockstep
