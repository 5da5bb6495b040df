#include "report/words.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "lockstep/points.h"
#include "report/utf8.h"

namespace lockstep {
namespace {

// Bytes of the longest beginning that is at most `width` wide.
size_t Fitting(std::string_view text, size_t width) {
  size_t bytes = 0;
  while (bytes < text.size()) {
    const Decoded character = Decode(text.substr(bytes));
    if (CharacterWidth(character.code) > width) break;
    width -= CharacterWidth(character.code);
    bytes += std::max<size_t>(1, character.bytes);
  }
  return bytes;
}

}  // namespace

size_t TextWidth(std::string_view text) {
  size_t width = 0;
  for (; !text.empty(); text.remove_prefix(std::max<size_t>(1, Decode(text).bytes)))
    width += CharacterWidth(Decode(text).code);
  return width;
}

std::string Shortened(const std::string& text, size_t width) {
  const size_t length = TextWidth(text);
  if (length <= width) return text;
  const size_t tail = (width - 1) / 2;
  size_t begin = Fitting(text, width - 1 - tail);
  std::string out = text.substr(0, begin) + "…";
  for (size_t left = length - TextWidth(text.substr(0, begin)); left > tail;) {
    const Decoded character = Decode(std::string_view(text).substr(begin));
    begin += std::max<size_t>(1, character.bytes);
    left -= std::min(left, CharacterWidth(character.code));
  }
  return out + text.substr(begin);
}

std::string Padded(const std::string& text, size_t width) {
  const size_t length = TextWidth(text);
  return length < width ? text + std::string(width - length, ' ') : text;
}

std::string Wrapped(const std::string& label, const std::string& text, size_t width) {
  const size_t indent = TextWidth(label);
  std::string out, line = label;
  size_t used = indent;
  const auto new_line = [&] {
    out += WithoutBlanksAtTheEnd(line) + "\n";
    line.assign(indent, ' ');
    used = indent;
  };
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    std::string word = text.substr(begin, end - begin);
    if (used > indent && used + 1 + TextWidth(word) > width) new_line();
    if (used > indent) line += ' ', ++used;
    while (used + TextWidth(word) > width) {
      const size_t fits = std::max<size_t>({1, Fitting(word, width - used), Decode(word).bytes});
      line += word.substr(0, fits);
      word.erase(0, fits);
      new_line();
    }
    line += word;
    used += TextWidth(word);
    begin = end + 1;
  }
  return out + WithoutBlanksAtTheEnd(line) + "\n";
}

std::string WithoutBlanksAtTheEnd(std::string line) {
  line.resize(line.find_last_not_of(' ') + 1);
  return line;
}

std::string NameText(const std::string& name) { return Shortened(Escaped(name), 64); }

std::string MessageText(const std::string& text) { return Shortened(Escaped(text), 600); }

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

std::string LayerRange(int first, int last) { return fmt::format("L{}-L{}", first, last); }

std::string MoreText(size_t count) { return fmt::format("and {} more; --all shows them", count); }

std::string Count(size_t count, const std::string& noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

}  // namespace lockstep
