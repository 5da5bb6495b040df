// Words come again: the ids of those of one text that were seen last, as places in the ids that were written already.
// One slot a hash; a newer word replaces an older.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace lockstep {

class WordCache {
 public:
  static constexpr size_t kMaxWord = 22;  // in bytes; so a slot has 32

  // For a text of so many bytes: a short one is not worth clearing much memory.
  explicit WordCache(size_t text_bytes) : slots_(std::bit_ceil(std::clamp<size_t>(text_bytes / 8, 2, 1 << 16))) {}

  // Appends the ids of `word` to `ids`: a copy of what stands there already, else what `encode()` appends. REQUIRES:
  // the same `ids` each time, of which nothing is removed.
  template <typename Encode>
  void Append(std::string_view word, std::vector<int32_t>& ids, Encode&& encode) {
    if (word.size() > kMaxWord || word.empty()) return encode();
    Slot& slot = SlotOf(word);
    const size_t end = ids.size();
    if (slot.size == word.size() && std::memcmp(slot.text.data(), word.data(), word.size()) == 0) {
      ids.resize(end + slot.count);
      std::copy_n(ids.begin() + static_cast<std::ptrdiff_t>(slot.begin), slot.count,
                  ids.begin() + static_cast<std::ptrdiff_t>(end));
      return;
    }
    encode();
    std::memcpy(slot.text.data(), word.data(), word.size());
    slot.size = static_cast<uint8_t>(word.size());
    slot.count = static_cast<uint8_t>(ids.size() - end);
    slot.begin = end;
  }

 private:
  struct Slot {
    std::array<char, kMaxWord> text;
    uint8_t size = 0;   // of the text; 0: free
    uint8_t count = 0;  // of the ids, at most one a byte
    uint64_t begin = 0;
  };

  Slot& SlotOf(std::string_view word) {
    std::array<uint64_t, 3> parts{};
    std::memcpy(parts.data(), word.data(), word.size());
    uint64_t hash = word.size();
    for (const uint64_t part : parts) hash = std::rotl((hash ^ part) * 0x9E3779B97F4A7C15U, 29);
    return slots_[hash & (slots_.size() - 1)];
  }

  std::vector<Slot> slots_;
};

}  // namespace lockstep
