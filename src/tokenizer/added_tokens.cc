#include "tokenizer/added_tokens.h"

#include <algorithm>

namespace lockstep {

AddedTokenFinder::AddedTokenFinder(std::vector<std::pair<std::string, int32_t>> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end());
  for (const auto& [text, id] : tokens_) first_[static_cast<uint8_t>(text[0])] = true;
}

AddedTokenFinder::Match AddedTokenFinder::Find(std::string_view text, size_t from) const {
  for (size_t at = from; at < text.size(); ++at) {
    if (!first_[static_cast<uint8_t>(text[at])]) continue;
    const Match match = LongestAt(text, at);
    if (match.size > 0) return match;
  }
  return {text.size(), 0, 0};
}

// Narrows the range of tokens that begin with text[at, at + depth), byte by byte; a token that ends there stands first.
AddedTokenFinder::Match AddedTokenFinder::LongestAt(std::string_view text, size_t at) const {
  Match match{at, 0, 0};
  auto begin = tokens_.begin();
  auto end = tokens_.end();
  for (size_t depth = 0; at + depth < text.size(); ++depth) {
    const auto byte = static_cast<uint8_t>(text[at + depth]);
    const auto byte_of = [&](const auto& token) { return static_cast<uint8_t>(token.first[depth]); };
    begin = std::partition_point(begin, end, [&](const auto& token) { return byte_of(token) < byte; });
    end = std::partition_point(begin, end, [&](const auto& token) { return byte_of(token) == byte; });
    if (begin != end && begin->first.size() == depth + 1) {
      match = {at, depth + 1, begin->second};
      ++begin;
    }
    if (begin == end) break;
  }
  return match;
}

}  // namespace lockstep
