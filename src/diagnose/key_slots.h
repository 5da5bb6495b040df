// Rows of the cache that hold something else than what was written there: found from what queries made of them.
#pragma once

#include "diagnose/causes.h"

namespace lockstep {

// The key/value heads that affected query heads read, where those are some of them; else empty: all.
std::vector<int> AffectedKvHeads(const Case& fault);

// Which row a key and a value were taken from: negative, zeros. `count`: keys of the step; key j lies at position j.
using KeySource = std::function<int64_t(int64_t count, int64_t j)>;
// The cache of each step as `source` says, of these heads (empty: all).
Change CacheOf(const KeySource& source, bool keys, bool values, std::vector<int> kv_heads);

// The one position whose row is another's, the range of positions whose rows are zero, or the length of a ring in which
// newer rows stand in the place of older ones; searched in the worst rows, and proposed where it explains them.
void AddKeySlots(const Case& fault, std::vector<Hypothesis>* out);

}  // namespace lockstep
