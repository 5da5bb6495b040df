#include "report/utf8.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string>

#include "lockstep/report.h"

namespace lockstep {
namespace {

struct Range {
  uint32_t first, last;
};
bool IsIn(const auto& ranges, uint32_t code) {
  return std::any_of(std::begin(ranges), std::end(ranges),
                     [code](const Range& range) { return code >= range.first && code <= range.last; });
}

// C0, DEL and C1; marks of direction and what else is invisible; noncharacters.
constexpr Range kHidden[] = {{0, 0x1F},        {0x7F, 0x9F},     {0xAD, 0xAD},     {0x061C, 0x061C},
                             {0x180E, 0x180E}, {0x200B, 0x200F}, {0x2028, 0x202E}, {0x2060, 0x206F},
                             {0xFDD0, 0xFDEF}, {0xFEFF, 0xFEFF}, {0xFFF9, 0xFFFB}, {0xE0000, 0xE0FFF}};
bool IsControl(uint32_t code) { return IsIn(kHidden, code) || (code & 0xFFFE) == 0xFFFE; }

// East_Asian_Width W and F in generous blocks, and every emoji, whatever its presentation.
constexpr Range kWide[] = {{0x1100, 0x115F},   {0x231A, 0x231B},   {0x2329, 0x232A},   {0x23E9, 0x23FA},
                           {0x25FD, 0x27BF},   {0x2B00, 0x2BFF},   {0x2E80, 0x303F},   {0x3041, 0xA4CF},
                           {0xA960, 0xA97F},   {0xAC00, 0xD7A3},   {0xF900, 0xFAFF},   {0xFE10, 0xFE19},
                           {0xFE30, 0xFE6F},   {0xFF01, 0xFF60},   {0xFFE0, 0xFFE6},   {0x16FE0, 0x18DFF},
                           {0x1AFF0, 0x1B2FF}, {0x1D300, 0x1D37F}, {0x1F000, 0x1FBFF}, {0x20000, 0x3FFFD}};

}  // namespace

Decoded Decode(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const size_t bytes = lead >= 0xF0 && lead < 0xF5   ? 4
                       : lead >= 0xE0 && lead < 0xF0 ? 3
                       : lead >= 0xC2 && lead < 0xE0 ? 2
                                                     : 0;
  if (bytes == 0 || bytes > text.size()) return {};
  uint32_t code = lead & (0x7Fu >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    code = code << 6 | (byte(i) & 0x3Fu);
  }
  constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xD800 && code < 0xE000;
  if (code < kLeast[bytes] || code > 0x10FFFF || surrogate) return {};
  return {code, bytes};
}

size_t CharacterWidth(uint32_t code) { return IsIn(kWide, code) ? 2 : 1; }

std::string Escaped(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Decoded character = Decode(text);
    if (character.bytes == 0) {
      out += fmt::format("\\x{:02x}", static_cast<uint8_t>(text[0]));
    } else if (IsControl(character.code)) {
      out += character.code < 0x80 ? fmt::format("\\x{:02x}", character.code)
                                   : fmt::format("\\u{{{:04x}}}", character.code);
    } else {
      out += text.substr(0, character.bytes);
    }
    text.remove_prefix(character.bytes == 0 ? 1 : character.bytes);
  }
  return out;
}

}  // namespace lockstep
