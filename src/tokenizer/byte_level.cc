#include "tokenizer/byte_level.h"

#include <array>

namespace lockstep {
namespace {

constexpr int kCodePoints = 0x144;  // one past the last that stands for a byte

constexpr bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

struct Tables {
  std::array<std::array<char, 2>, 256> spelling{};  // UTF-8; one byte long below 0x80
  std::array<int16_t, kCodePoints> byte{};          // by code point; -1: none
};

constexpr Tables MakeTables() {
  Tables tables;
  tables.byte.fill(-1);
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const int point = StandsForItself(byte) ? byte : next++;
    tables.byte[point] = static_cast<int16_t>(byte);
    if (point < 0x80) {
      tables.spelling[byte] = {static_cast<char>(point), 0};
    } else {
      tables.spelling[byte] = {static_cast<char>(0xC0 | (point >> 6)), static_cast<char>(0x80 | (point & 0x3F))};
    }
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

}  // namespace

std::string_view SpellByte(uint8_t byte) {
  const auto& spelling = kTables.spelling[byte];
  return {spelling.data(), spelling[1] == 0 ? size_t{1} : size_t{2}};
}

std::string SpellBytes(std::string_view bytes) {
  std::string spelled;
  spelled.reserve(2 * bytes.size());
  for (const char byte : bytes) spelled += SpellByte(static_cast<uint8_t>(byte));
  return spelled;
}

std::optional<std::string> UnspellBytes(std::string_view spelled) {
  std::string bytes;
  bytes.reserve(spelled.size());
  for (size_t at = 0; at < spelled.size(); ++at) {
    int point = static_cast<uint8_t>(spelled[at]);
    if (point >= 0xE0) return std::nullopt;  // above U+07FF
    if (point >= 0x80) point = ((point & 0x1F) << 6) | (spelled[++at] & 0x3F);
    if (point >= kCodePoints || kTables.byte[point] < 0) return std::nullopt;
    bytes += static_cast<char>(kTables.byte[point]);
  }
  return bytes;
}

}  // namespace lockstep
