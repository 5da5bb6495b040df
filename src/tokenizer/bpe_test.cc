#include "tokenizer/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>

namespace lockstep {
namespace {

std::array<int32_t, 256> ByteIds() {
  std::array<int32_t, 256> ids{};
  for (int byte = 0; byte < 256; ++byte) ids[byte] = byte;
  return ids;
}

std::vector<int32_t> Encode(const Bpe& bpe, std::string_view word) {
  std::vector<int32_t> ids = {-7};  // what stands there already stays
  bpe.Encode(word, ids);
  EXPECT_EQ(ids[0], -7);
  ids.erase(ids.begin());
  return ids;
}

// The definition: look at all neighbours, merge the leftmost of the lowest rank, start again.
std::vector<int32_t> SlowEncode(const std::vector<Merge>& merges, std::string_view word) {
  std::map<std::pair<int32_t, int32_t>, size_t> ranks;
  for (size_t rank = 0; rank < merges.size(); ++rank) ranks[{merges[rank].left, merges[rank].right}] = rank;
  std::vector<int32_t> ids;
  for (const char c : word) ids.push_back(static_cast<uint8_t>(c));
  while (true) {
    size_t best = merges.size();
    size_t where = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = ranks.find({ids[i], ids[i + 1]});
      if (found != ranks.end() && found->second < best) {
        best = found->second;
        where = i;
      }
    }
    if (best == merges.size()) return ids;
    ids[where] = merges[best].merged;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(where) + 1);
  }
}

// Merges of what there is already, in an order no training would give; some stand twice.
std::vector<Merge> RandomMerges(std::mt19937& random, uint32_t letters, int count) {
  std::vector<std::string> tokens;
  std::vector<int32_t> ids;
  for (uint32_t k = 0; k < letters; ++k) {
    tokens.emplace_back(1, static_cast<char>('a' + k));
    ids.push_back(static_cast<int32_t>('a' + k));
  }
  std::map<std::string, int32_t> known;
  std::vector<Merge> merges;
  for (int k = 0; k < count; ++k) {
    const size_t left = random() % tokens.size();
    const size_t right = random() % tokens.size();
    const std::string merged = tokens[left] + tokens[right];
    const auto [at, is_new] = known.emplace(merged, 256 + k);
    merges.push_back({ids[left], ids[right], at->second});
    if (is_new) {
      tokens.push_back(merged);
      ids.push_back(at->second);
    }
  }
  std::shuffle(merges.begin(), merges.end(), random);
  return merges;
}

TEST(Bpe, MergesByRankThenFromTheLeft) {
  const Bpe bpe(ByteIds(), {{'b', 'c', 256}, {'a', 'b', 257}, {'a', 'a', 258}, {258, 'a', 259}});
  EXPECT_EQ(Encode(bpe, "abc"), (std::vector<int32_t>{'a', 256}));
  EXPECT_EQ(Encode(bpe, "aab"), (std::vector<int32_t>{'a', 257}));
  EXPECT_EQ(Encode(bpe, "aaaaa"), (std::vector<int32_t>{258, 259}));
  EXPECT_EQ(Encode(bpe, ""), std::vector<int32_t>());
  EXPECT_EQ(Encode(bpe, "\xFF"), std::vector<int32_t>{255});
}

TEST(Bpe, WithoutMergesGivesBytes) {
  const Bpe bpe(ByteIds(), {});
  EXPECT_EQ(Encode(bpe, std::string(1000, 'x')), std::vector<int32_t>(1000, 'x'));
}

TEST(Bpe, FastIsSlow) {
  std::mt19937 random(1);
  for (int round = 0; round < 3000; ++round) {
    const uint32_t letters = 1 + random() % 4;
    const std::vector<Merge> merges = RandomMerges(random, letters, static_cast<int>(random() % 60));
    const Bpe bpe(ByteIds(), merges);
    for (const size_t size : {size_t{random() % 12}, Bpe::kShort - 1, Bpe::kShort, Bpe::kShort + 1, size_t{200}}) {
      std::string word;
      for (size_t k = 0; k < size; ++k) word += static_cast<char>('a' + random() % letters);
      ASSERT_EQ(Encode(bpe, word), SlowEncode(merges, word)) << word;
    }
  }
}

TEST(MergeTable, FindsWhatItHolds) {
  std::vector<Merge> merges;
  for (int32_t k = 0; k < 5000; ++k) merges.push_back({k, k * 7 % 1000, k + 10000});
  const MergeTable table(merges);
  for (int32_t k = 0; k < 5000; ++k) {
    EXPECT_EQ(table.Find(k, k * 7 % 1000).rank, static_cast<uint32_t>(k));
    EXPECT_EQ(table.Find(k, k * 7 % 1000).merged, k + 10000);
    EXPECT_EQ(table.Find(k, 1000 + k).rank, MergeTable::kNone);
  }
}

}  // namespace
}  // namespace lockstep
