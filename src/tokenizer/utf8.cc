#include "tokenizer/utf8.h"

#include <cstdint>
#include <cstring>

namespace lockstep {
namespace {

enum class State { kWhole, kBroken, kCut };

struct Character {
  size_t length = 1;  // of the whole character, or of the maximal part of one
  State state = State::kWhole;
};

// The table of well-formed byte sequences of the Unicode standard (no surrogates, nothing overlong). REQUIRES: text is
// not empty.
Character First(std::string_view text) {
  const auto lead = static_cast<uint8_t>(text[0]);
  if (lead < 0x80) return {1, State::kWhole};
  if (lead < 0xC2 || lead > 0xF4) return {1, State::kBroken};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t k = 1; k < length; ++k) {
    if (k == text.size()) return {k, State::kCut};
    const auto byte = static_cast<uint8_t>(text[k]);
    if (byte < low || byte > high) return {k, State::kBroken};
    low = 0x80;
    high = 0xBF;
  }
  return {length, State::kWhole};
}

bool EightAscii(const char* data) {
  uint64_t word = 0;
  std::memcpy(&word, data, sizeof(word));
  return (word & 0x8080808080808080U) == 0;
}

}  // namespace

size_t ValidPrefix(std::string_view text) {
  size_t valid = 0;
  while (valid < text.size()) {
    if (valid + 8 <= text.size() && EightAscii(text.data() + valid)) {
      valid += 8;
      continue;
    }
    const Character character = First(text.substr(valid));
    if (character.state != State::kWhole) break;
    valid += character.length;
  }
  return valid;
}

size_t AppendRepaired(std::string_view text, std::string& out) {
  while (true) {
    const size_t valid = ValidPrefix(text);
    out.append(text, 0, valid);
    text.remove_prefix(valid);
    if (text.empty()) return 0;
    const Character character = First(text);
    if (character.state == State::kCut) return text.size();
    out += kReplacement;
    text.remove_prefix(character.length);
  }
}

}  // namespace lockstep
