#include "tokenizer/words.h"

#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <array>
#include <cstdint>

namespace lockstep {
namespace {

// \p{L}, \p{N}, \s, and all the others. No character is in two of them.
enum class Kind : uint8_t { kLetter, kNumber, kBlank, kOther };

Kind KindOf(UChar32 point) {
  const uint32_t category = U_GET_GC_MASK(point);
  if ((category & U_GC_L_MASK) != 0) return Kind::kLetter;
  if ((category & U_GC_N_MASK) != 0) return Kind::kNumber;
  return u_isUWhiteSpace(point) != 0 ? Kind::kBlank : Kind::kOther;
}

const std::array<Kind, 128>& AsciiKinds() {
  static const std::array<Kind, 128> kinds = [] {
    std::array<Kind, 128> out{};
    for (int point = 0; point < 128; ++point) out[point] = KindOf(point);
    return out;
  }();
  return kinds;
}

bool IsNewline(char c) { return c == '\r' || c == '\n'; }

class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  size_t Gpt2() const {
    if (const size_t length = Contraction(/*any_case=*/false)) return length;
    const size_t from = text_[0] == ' ' ? 1 : 0;
    if (from < text_.size()) {
      const Kind kind = At(from).kind;
      if (kind != Kind::kBlank) return RunEnd(from, kind);
    }
    return Blanks(/*split_after_newline=*/false);
  }

  size_t Qwen2() const {
    if (const size_t length = Contraction(/*any_case=*/true)) return length;
    const Character first = At(0);
    if (first.kind == Kind::kLetter) return RunEnd(first.end, Kind::kLetter);
    if (first.kind == Kind::kNumber) return first.end;
    if (!IsNewline(text_[0]) && first.end < text_.size() && At(first.end).kind == Kind::kLetter) {
      return RunEnd(first.end, Kind::kLetter);
    }
    const size_t from = text_[0] == ' ' ? 1 : 0;
    if (from < text_.size() && At(from).kind == Kind::kOther) {
      size_t end = RunEnd(from, Kind::kOther);
      while (end < text_.size() && IsNewline(text_[end])) ++end;
      return end;
    }
    return Blanks(/*split_after_newline=*/true);
  }

 private:
  struct Character {
    Kind kind = Kind::kOther;
    size_t end = 0;
  };

  Character At(size_t at) const {
    const auto byte = static_cast<uint8_t>(text_[at]);
    if (byte < 0x80) return {ascii_[byte], at + 1};
    UChar32 point = 0;
    U8_NEXT_UNSAFE(text_.data(), at, point);
    return {KindOf(point), at};
  }

  size_t RunEnd(size_t at, Kind kind) const {
    while (at < text_.size()) {
      const Character character = At(at);
      if (character.kind != kind) break;
      at = character.end;
    }
    return at;
  }

  // 's, 't, 're, 've, 'm, 'll, 'd; 0 if there is none. In any case also with U+017F, the long s, which folds to s.
  size_t Contraction(bool any_case) const {
    if (text_[0] != '\'' || text_.size() < 2) return 0;
    const auto lower = [&](size_t at) {
      const char c = at < text_.size() ? text_[at] : '\0';
      return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    };
    const char a = lower(1);
    const char b = lower(2);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return any_case && text_.substr(1).starts_with("\u017F") ? 3 : 0;
  }

  // REQUIRES: the text begins with a blank. Up to the last newline of the run where newlines split; else a run that
  // something follows leaves its last blank to it.
  size_t Blanks(bool split_after_newline) const {
    size_t end = 0;
    size_t last = 0;
    size_t after_newline = 0;
    while (end < text_.size()) {
      const Character character = At(end);
      if (character.kind != Kind::kBlank) break;
      if (IsNewline(text_[end])) after_newline = character.end;
      last = end;
      end = character.end;
    }
    if (split_after_newline && after_newline > 0) return after_newline;
    return end == text_.size() || last == 0 ? end : last;
  }

  std::string_view text_;
  const std::array<Kind, 128>& ascii_ = AsciiKinds();
};

}  // namespace

size_t FirstWord(WordPattern pattern, std::string_view text) {
  const Scanner scanner(text);
  return pattern == WordPattern::kGpt2 ? scanner.Gpt2() : scanner.Qwen2();
}

}  // namespace lockstep
