#include "tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <queue>

namespace lockstep {
namespace {

constexpr uint32_t kNoNode = UINT32_MAX;

uint64_t Key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

MergeTable::MergeTable(const std::vector<Merge>& merges) {
  const size_t size = std::bit_ceil(std::max<size_t>(2 * merges.size(), 2));
  slots_.resize(size);
  shift_ = 64 - std::countr_zero(size);
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const uint64_t key = Key(merges[rank].left, merges[rank].right);
    slots_[SlotOf(key)] = {key, {static_cast<uint32_t>(rank), merges[rank].merged}};
  }
}

// The slot that holds the key, or the free one where it belongs.
size_t MergeTable::SlotOf(uint64_t key) const {
  size_t slot = (key * 0x9E3779B97F4A7C15U) >> shift_;
  while (slots_[slot].key != key && slots_[slot].key != UINT64_MAX) slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

MergeTable::Entry MergeTable::Find(int32_t left, int32_t right) const { return slots_[SlotOf(Key(left, right))].entry; }

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, const std::vector<Merge>& merges)
    : byte_ids_(byte_ids), merges_(merges) {}

void Bpe::Encode(std::string_view word, std::vector<int32_t>& ids) const {
  if (word.size() <= kShort) {
    EncodeShort(word, ids);
  } else {
    EncodeLong(word, ids);
  }
}

void Bpe::EncodeShort(std::string_view word, std::vector<int32_t>& ids) const {
  std::array<int32_t, kShort> parts;                // the first `size` count
  std::array<MergeTable::Entry, kShort> next = {};  // what parts[i] and parts[i + 1] merge to
  size_t size = word.size();
  for (size_t i = 0; i < size; ++i) parts[i] = byte_ids_[static_cast<uint8_t>(word[i])];
  for (size_t i = 0; i + 1 < size; ++i) next[i] = merges_.Find(parts[i], parts[i + 1]);

  while (size > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < size; ++i) {
      if (next[i].rank < next[best].rank) best = i;
    }
    if (next[best].rank == MergeTable::kNone) break;
    parts[best] = next[best].merged;
    --size;
    std::copy(parts.begin() + best + 2, parts.begin() + size + 1, parts.begin() + best + 1);
    std::copy(next.begin() + best + 1, next.begin() + size, next.begin() + best);
    if (best + 1 < size) next[best] = merges_.Find(parts[best], parts[best + 1]);
    if (best > 0) next[best - 1] = merges_.Find(parts[best - 1], parts[best]);
  }
  ids.insert(ids.end(), parts.begin(), parts.begin() + size);
}

// The parts as a linked list, over the bytes where they begin; a heap of (rank, place) of what can be merged. An entry
// that is out of date is recognised by its rank when its turn comes.
void Bpe::EncodeLong(std::string_view word, std::vector<int32_t>& ids) const {
  struct Node {
    int32_t id = 0;
    int32_t merged = 0;                 // of this part and the next
    uint32_t rank = MergeTable::kNone;  // likewise
    uint32_t previous = kNoNode;
    uint32_t next = kNoNode;
  };
  const auto size = static_cast<uint32_t>(word.size());
  std::vector<Node> nodes(size);
  const auto find = [&](uint32_t at) {
    Node& node = nodes[at];
    const auto entry = node.next == kNoNode ? MergeTable::Entry{} : merges_.Find(node.id, nodes[node.next].id);
    node.rank = entry.rank;
    node.merged = entry.merged;
    return entry.rank != MergeTable::kNone;
  };
  const auto entry_of = [&](uint32_t at) { return uint64_t{nodes[at].rank} << 32 | at; };

  for (uint32_t i = 0; i < size; ++i) {
    nodes[i] = {.id = byte_ids_[static_cast<uint8_t>(word[i])], .previous = i - 1, .next = i + 1};
  }
  nodes[0].previous = kNoNode;
  nodes[size - 1].next = kNoNode;

  std::vector<uint64_t> initial;
  for (uint32_t i = 0; i < size; ++i) {
    if (find(i)) initial.push_back(entry_of(i));
  }
  std::priority_queue heap(std::greater<uint64_t>(), std::move(initial));
  while (!heap.empty()) {
    const uint64_t entry = heap.top();
    heap.pop();
    const auto at = static_cast<uint32_t>(entry);
    Node& node = nodes[at];
    if (node.rank != entry >> 32) continue;
    Node& gone = nodes[node.next];
    node.id = node.merged;
    node.next = gone.next;
    gone.rank = MergeTable::kNone;
    if (node.next != kNoNode) nodes[node.next].previous = at;
    if (find(at)) heap.push(entry_of(at));
    if (node.previous != kNoNode && find(node.previous)) heap.push(entry_of(node.previous));
  }
  for (uint32_t at = 0; at != kNoNode; at = nodes[at].next) ids.push_back(nodes[at].id);
}

}  // namespace lockstep
