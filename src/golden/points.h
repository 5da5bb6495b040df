// What record and check share: the rows of a point of a trace, in the golden's order.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "compare/join.h"
#include "golden/sketch.h"
#include "lockstep/golden.h"

namespace lockstep {

// Where each token's row is: of recomputed ones the last whose id is the token's; none where there is none.
std::vector<std::optional<RowAt>> FindRows(std::span<const GoldenToken> tokens, const PointRows& point);

// Sums of every block, in parallel; none where a row of it is missing. The result does not depend on the threads.
std::vector<std::optional<BlockSums>> SumBlocks(const PointRows& point, const std::vector<std::optional<RowAt>>& rows,
                                                const std::vector<BlockRange>& blocks);

// Gives the pages of the point's files back.
void Release(const SideRuns& side, const std::string& name);

}  // namespace lockstep
