// The first cut of a text, before BPE: words, numbers, runs of symbols and of blanks. Two patterns are known, by their
// exact text, and scanned by hand: a regex engine that backtracks overflows its stack or its time on millions of
// blanks.
#pragma once

#include <cstddef>
#include <string_view>

namespace lockstep {

enum class WordPattern { kGpt2, kQwen2 };

// The patterns as tokenizer.json spells them.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Length in bytes of the first word of `text`. Words cover a text without gaps. REQUIRES: `text` is UTF-8 and not
// empty.
size_t FirstWord(WordPattern pattern, std::string_view text);

}  // namespace lockstep
