#include "golden/points.h"

#include <map>
#include <utility>

#include "base/mapped_file.h"
#include "base/parallel.h"

namespace lockstep {

std::vector<std::optional<RowAt>> FindRows(std::span<const GoldenToken> tokens, const PointRows& point) {
  std::map<Key, size_t> index;
  for (size_t i = 0; i < tokens.size(); ++i) index[{tokens[i].sequence, tokens[i].position}] = i;
  std::vector<std::optional<RowAt>> rows(tokens.size());
  for (const RowRef& row : point.rows) {
    const auto found = index.find({row.sequence, row.position});
    if (found == index.end()) continue;
    const int32_t id = tokens[found->second].id;
    if (id < 0 || row.input_id < 0 || id == row.input_id) rows[found->second] = row.at;
  }
  return rows;
}

std::vector<std::optional<BlockSums>> SumBlocks(const PointRows& point, const std::vector<std::optional<RowAt>>& rows,
                                                const std::vector<BlockRange>& blocks) {
  std::vector<std::optional<BlockSums>> sums(blocks.size());
  ParallelForDynamic(static_cast<int64_t>(blocks.size()), [&](int64_t b) {
    const BlockRange range = blocks[static_cast<size_t>(b)];
    std::vector<RowAt> at;
    for (size_t i = range.begin; i < range.end; ++i) {
      if (!rows[i]) return;
      at.push_back(*rows[i]);
    }
    sums[static_cast<size_t>(b)] = SumBlock(point.pieces, at, range.begin);
  });
  return sums;
}

void Release(const SideRuns& side, const std::string& name) {
  for (const StepTensors& where : side.points.at(name)) {
    if (!side.runs[where.run].traces.front().mapped) continue;
    for (const TraceTensor* tensor : where.tensors) MappedFile::Release(tensor->data, tensor->bytes);
  }
}

}  // namespace lockstep
