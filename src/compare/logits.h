// Logits of both sides, row by row: which token each would choose next and how clearly, and whether the noise of the
// row explains that they choose differently.
#pragma once

#include <span>
#include <vector>

#include "compare/metrics.h"
#include "compare/tokens.h"
#include "lockstep/compare.h"
#include "trace/rows.h"

namespace lockstep {

// What noise of rms n can turn round: differences of two logits up to kNoiseReach * n, which is four standard
// deviations of such a difference, or up to two steps of the coarser dtype at the largest logit, if that is more (where
// hardly any logit differs, n tells nothing of the one that does).
inline constexpr double kNoiseReach = 6;

// Everything of a row but `next` and `near_tie`, in the order of `rows`. Two passes over the values as they are stored,
// rows in parallel; of a row, a thread keeps one chunk. REQUIRES: all pieces have the same row size.
std::vector<TokenRow> MeasureLogits(const std::vector<Piece>& reference, const std::vector<Piece>& candidate,
                                    std::span<const JoinedRow> rows);

// Sorts the rows by key, fills `next`, `within_noise` and `near_tie`, and sums up. Noise of a relative L2 above `bound`
// is no rounding: it makes no near ties.
TokenComparison JudgeTokens(std::vector<TokenRow> rows, const Choices& reference, const Choices& candidate,
                            double bound);

}  // namespace lockstep
