// What an error looks like. Each pattern is a statement about the affected rows and cells (Evidence) that is true to
// the letter; its criterion stands at its function.
#pragma once

#include <cstdint>
#include <vector>

#include "diagnose/matching.h"
#include "trace/runs.h"

namespace lockstep {

// Of the run that a row belongs to.
enum class Stage : uint8_t { kFirstChunk, kLaterChunk, kDecode };
// [tokens]
std::vector<Stage> StagesOf(const TraceRuns& runs, const std::vector<TokenAt>& tokens);

// Values: non-finite, zeros, saturated, permuted, constant-ratio, ratio-per-row, constant-offset, coarse-grid.
void DescribeValues(const Evidence& evidence, std::vector<Pattern>* out);
// Rows: exact-at-position-0, from-position-on, last-token-only, first-token-only, one-row, every-nth-row,
// first-rows-right, decode-only, prefill-only, later-chunk-only, one-sequence. `stages`: of errors().tokens.
void DescribeRows(const Evidence& evidence, const std::vector<Stage>& stages, std::vector<Pattern>* out);
// grows-with-position
void DescribeGrowth(const Evidence& evidence, std::vector<Pattern>* out);
// Channels: one-element, some-heads, channel-block, some-channels.
void DescribeCells(const Evidence& evidence, std::vector<Pattern>* out);
// noise, or else how much of the point is affected: always something.
void DescribeRest(const Evidence& evidence, std::vector<Pattern>* out);

// Layers in which one fault shows: all-layers or some-layers. faulty: ascending, of num_layers.
std::vector<Pattern> LayerPatterns(const std::vector<int>& faulty, int num_layers);

}  // namespace lockstep
