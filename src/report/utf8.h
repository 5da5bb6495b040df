// Characters of untrusted text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lockstep {

struct Decoded {
  uint32_t code = 0;
  size_t bytes = 0;  // 0: no UTF-8
};
// The first character. REQUIRES: text is not empty.
Decoded Decode(std::string_view text);

// Columns that a terminal gives it: 2 for what is wide in East Asia and for emoji, else 1. Combining marks count as 1,
// too: terminals disagree about some of them, and a line that ends early does no harm.
size_t CharacterWidth(uint32_t code);

}  // namespace lockstep
