// GPT-2's spelling of bytes: each byte is one printable character, so that a vocabulary of bytes is JSON text.
// Printable Latin-1 stands for itself, the others follow from U+0100 on (a blank is "Ġ").
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lockstep {

// "Ġ" for 0x20.
std::string_view SpellByte(uint8_t byte);
std::string SpellBytes(std::string_view bytes);

// nullopt if a character stands for no byte. REQUIRES: `spelled` is UTF-8.
std::optional<std::string> UnspellBytes(std::string_view spelled);

}  // namespace lockstep
