// Byte pair encoding of one word: of all neighbours that can be merged, those of the lowest rank are, the leftmost
// first, until none is left.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace lockstep {

struct Merge {
  int32_t left = 0;
  int32_t right = 0;
  int32_t merged = 0;
};

// From pairs of ids to rank and merged id: open addressing, a power of two of slots at most half full.
class MergeTable {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  struct Entry {
    uint32_t rank = kNone;
    int32_t merged = 0;
  };

  // By rank. Of a pair that stands twice, the later rank counts, as in the `tokenizers` package. REQUIRES: ids are not
  // negative.
  explicit MergeTable(const std::vector<Merge>& merges);
  // rank == kNone: the two do not merge.
  Entry Find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t key = UINT64_MAX;
    Entry entry;
  };
  size_t SlotOf(uint64_t key) const;

  std::vector<Slot> slots_;
  int shift_ = 0;
};

class Bpe {
 public:
  // byte_ids: [256] the id of each byte. merges: by rank.
  Bpe(const std::array<int32_t, 256>& byte_ids, const std::vector<Merge>& merges);

  // Appends the ids of `word`. Short words take quadratic time, all others n log n. REQUIRES: fewer than 2^31 bytes.
  void Encode(std::string_view word, std::vector<int32_t>& ids) const;

  static constexpr size_t kShort = 64;

 private:
  void EncodeShort(std::string_view word, std::vector<int32_t>& ids) const;
  void EncodeLong(std::string_view word, std::vector<int32_t>& ids) const;

  std::array<int32_t, 256> byte_ids_;
  MergeTable merges_;
};

}  // namespace lockstep
