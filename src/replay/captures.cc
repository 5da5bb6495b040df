#include "replay/captures.h"

#include <algorithm>

#include "replay/noise.h"

namespace lockstep {
int64_t CapturedPoint::IndexOf(const TokenAt& token) const {
  const auto found = index_.find({token.run, token.step});
  return found == index_.end() ? -1 : found->second[static_cast<size_t>(token.token)];
}

void CapturedPoint::Read(int64_t index, float* out) const {
  const Row& row = rows_[static_cast<size_t>(index)];
  pieces_[static_cast<size_t>(row.piece)].Read(row.row, out);
}

int64_t CapturedPoint::RowSize(int64_t index) const {
  return pieces_[static_cast<size_t>(rows_[static_cast<size_t>(index)].piece)].row_size();
}

const std::vector<int64_t>& CapturedPoint::RowShape(int64_t index) const {
  return pieces_[static_cast<size_t>(rows_[static_cast<size_t>(index)].piece)].row_shape();
}

std::vector<int32_t> CapturedPoint::Keys(int64_t index) const {
  const Row& row = rows_[static_cast<size_t>(index)];
  const Piece& piece = pieces_[static_cast<size_t>(row.piece)];
  if (piece.keys().empty()) return {};
  const auto keys = piece.row_shape().back();
  const auto begin = piece.keys().begin() + row.row * keys;
  return {begin, begin + keys};
}

const CapturedPoint& Captures::Of(const PointAt& point) {
  const auto key = std::pair(point.layer, point.id);
  const auto found = points_.find(key);
  return found != points_.end() ? found->second : points_.emplace(key, Build(point)).first->second;
}

void Captures::Forget(const PointAt& point) { points_.erase({point.layer, point.id}); }

CapturedPoint Captures::Build(const PointAt& point) const {
  CapturedPoint out;
  const std::string name = point.Name();
  const auto steps = runs_.points.find(name);
  if (steps == runs_.points.end()) return out;
  bool first = true;
  for (const StepTensors& where : steps->second) {
    const Run& run = runs_.runs[where.run];
    const TraceStep& step = run.Tokens(where.step);
    for (const auto& tensors : ByRows(where.tensors)) {
      std::vector<Piece::Problem> problems;
      Piece piece = Piece::Build(tensors, RowAxes(name, *tensors.front()), &problems);
      bool fatal = false;
      for (const Piece::Problem& problem : problems) fatal = fatal || problem.fatal;
      if (fatal) {
        out.problems_.push_back("step " + std::to_string(where.step) + ": " + problems.front().text);
        continue;
      }
      if (first) out.dtype_ = piece.dtype(), out.layout_ = piece.tensor().layout, first = false;
      out.dtype_ = Coarser(out.dtype_, piece.dtype());
      out.width_ = std::max(out.width_, piece.row_size());
      const auto key = std::pair(static_cast<int>(where.run), static_cast<int>(where.step));
      std::vector<int32_t>& index = out.index_.try_emplace(key, step.positions.size(), -1).first->second;
      for (size_t i = 0; i < piece.rows().size(); ++i) {
        const int32_t token = piece.rows()[i];
        const auto t = static_cast<size_t>(token);
        if (step.sequences[t] < 0 || index[t] >= 0) continue;  // padding; of rows recorded twice the first counts
        index[t] = static_cast<int32_t>(out.tokens_.size());
        out.tokens_.push_back({key.first, key.second, token, run.numbers.at(step.sequences[t]), step.positions[t],
                               step.input_ids.empty() ? kUnknownId : step.input_ids[t]});
        out.rows_.push_back({static_cast<int32_t>(out.pieces_.size()), static_cast<int32_t>(i)});
      }
      out.pieces_.push_back(std::move(piece));
    }
  }
  return out;
}

const std::map<int32_t, std::vector<TokenAt>>& Captures::Written(int run_index, int sequence) {
  const auto key = std::pair(run_index, sequence);
  const auto found = written_.find(key);
  if (found != written_.end()) return found->second;
  std::map<int32_t, std::vector<TokenAt>>& written = written_[key];
  const Run& run = runs_.runs[static_cast<size_t>(run_index)];
  for (size_t s = 0; s < run.num_steps(); ++s) {
    const TraceStep& step = run.Tokens(s);
    for (size_t t = 0; t < step.sequences.size(); ++t) {
      if (step.sequences[t] < 0 || run.numbers.at(step.sequences[t]) != sequence) continue;
      written[step.positions[t]].push_back({run_index, static_cast<int32_t>(s), static_cast<int32_t>(t), sequence,
                                            step.positions[t],
                                            step.input_ids.empty() ? kUnknownId : step.input_ids[t]});
    }
  }
  return written;
}

}  // namespace lockstep
