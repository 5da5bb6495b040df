// What holds in every correct implementation, whatever its weights (docs/points.md): free checks of each side by
// itself.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "compare/join.h"
#include "lockstep/compare.h"

namespace lockstep {

// The input of a layer is the output of the one before it (of the first layer the embedding) in every row, to the bit,
// or where the two are stored in different dtypes to one step of the coarser. RoPE keeps the norm of each pair of
// channels, (i, i + d/2) or (2i, 2i + 1), and what stands at position 0: on some rows of every step, up to rounding; a
// model whose config scales RoPE is left out. Rows are compared that both points hold in one step. `wanted` filters by
// name; head_dim: of flattened rows, 0 where it is not known. REQUIRES: the tensors have data.
void CheckIdentities(const SideRuns& side, const std::map<int, int>& numbers, int64_t head_dim,
                     const std::function<bool(const std::string&)>& wanted, std::vector<Failure>* failures);

}  // namespace lockstep
