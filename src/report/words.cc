#include "report/words.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "lockstep/points.h"

namespace lockstep {
namespace {

struct Decoded {
  uint32_t code = 0;
  size_t bytes = 0;  // 0: no UTF-8
};

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

bool IsControl(uint32_t code) {
  const bool direction = code == 0x061C || (code >= 0x200B && code <= 0x200F) || (code >= 0x2028 && code <= 0x202E) ||
                         (code >= 0x2060 && code <= 0x206F) || code == 0xFEFF;
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || direction;
}

bool StartsCharacter(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) != 0x80; }

// Byte offset of character `index`.
size_t OffsetOf(std::string_view text, size_t index) {
  size_t offset = 0;
  while (offset < text.size()) {
    if (StartsCharacter(text[offset]) && index-- == 0) return offset;
    ++offset;
  }
  return text.size();
}

}  // namespace

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

size_t TextWidth(std::string_view text) {
  size_t width = 0;
  for (char byte : text) width += StartsCharacter(byte);
  return width;
}

std::string Shortened(const std::string& text, size_t width) {
  const size_t length = TextWidth(text);
  if (length <= width) return text;
  const size_t tail = (width - 1) / 2, head = width - 1 - tail;
  return text.substr(0, OffsetOf(text, head)) + "…" + text.substr(OffsetOf(text, length - tail));
}

std::string Padded(const std::string& text, size_t width) {
  const size_t length = TextWidth(text);
  return length < width ? text + std::string(width - length, ' ') : text;
}

std::string Wrapped(const std::string& label, const std::string& text, size_t width) {
  const size_t indent = TextWidth(label);
  std::string out, line = label;
  size_t used = indent;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (used > indent && used + 1 + TextWidth(word) > width) {
      out += line + "\n";
      line.assign(indent, ' ');
      used = indent;
    }
    if (used > indent) line += ' ', ++used;
    line += word;
    used += TextWidth(word);
    begin = end + 1;
  }
  return out + line + "\n";
}

std::string PlaceText(const Place& place) {
  std::string text = fmt::format("sequence {}, position {}", place.sequence, place.position);
  if (place.head >= 0) text += fmt::format(", head {}", place.head);
  if (place.channel >= 0) text += fmt::format(", channel {}", place.channel);
  return text;
}

std::string PointShape(const PointResult& point) {
  return fmt::format("({}, {})", point.rows, fmt::join(point.row_shape, ", "));
}

std::string LayerLabel(int layer, const std::string& name) {
  if (layer >= 0) return fmt::format("L{}", layer);
  return name == PointName(Point::kInputEmbeddings) ? "Input" : "Final";
}

std::string NoiseText(double error) {
  if (std::isnan(error)) return "NaN";
  if (std::isinf(error)) return "inf";
  if (error < 99.5) return fmt::format("{:.2g}", error);
  return error < 9999.5 ? fmt::format("{:.0f}", error) : fmt::format("{:.1e}", error);
}

std::string NoiseCell(double error) {
  if (error == 0 || !(error < 99.95)) return NoiseText(error);
  return error < 9.995 ? fmt::format("{:.2f}", error) : fmt::format("{:.1f}", error);
}

std::string VerdictWord(OpVerdict verdict) {
  switch (verdict) {
    case OpVerdict::kClean: return "clean";
    case OpVerdict::kSuspect: return "SUSPECT";
    case OpVerdict::kFaulty: return "FAULTY";
    case OpVerdict::kNotObservable: return "n.o.";
  }
  return "";
}

std::string LayerRange(int first, int last) {
  return first == last ? fmt::format("L{}", first) : fmt::format("L{}-L{}", first, last);
}

std::string Count(size_t count, const std::string& noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

}  // namespace lockstep
