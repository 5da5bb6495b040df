// Finds added tokens ("<|im_start|>") inside a text: the leftmost first, of several at one place the longest.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lockstep {

class AddedTokenFinder {
 public:
  struct Match {
    size_t begin = 0;
    size_t size = 0;  // 0: there is none, and begin is the end of the text
    int32_t id = 0;
  };

  AddedTokenFinder() = default;
  // REQUIRES: texts are unlike one another, and none is empty.
  explicit AddedTokenFinder(std::vector<std::pair<std::string, int32_t>> tokens);

  // The first match at or after `from`. Takes time for each byte that looks like the beginning of a token, up to the
  // length of the longest token.
  Match Find(std::string_view text, size_t from) const;

 private:
  Match LongestAt(std::string_view text, size_t at) const;

  std::vector<std::pair<std::string, int32_t>> tokens_;  // sorted by text
  std::array<bool, 256> first_{};                        // bytes that tokens begin with
};

}  // namespace lockstep
