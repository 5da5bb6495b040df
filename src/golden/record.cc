// A golden from traces: which rows, then every point once.
#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "base/safetensors.h"
#include "compare/completeness.h"
#include "golden/points.h"
#include "lockstep/points.h"

namespace lockstep {
namespace {

constexpr const char* kMend = "; capture it again, and record what is whole";

Selection SelectionOf(const RecordOptions& options) {
  try {
    return Selection(options.points, options.layers, "", options.rows);
  } catch (const std::invalid_argument& e) {
    throw Error(e.what());
  }
}

void Require(const std::vector<Failure>& failures) {
  if (failures.empty()) return;
  const Failure& first = failures.front();
  const std::string point = first.point.empty() ? "" : first.point + ": ";
  throw Error("expected a whole trace, found: " + point + first.text + kMend);
}

class Recorder {
 public:
  Recorder(const std::vector<TraceView>& traces, const RecordOptions& options)
      : options_(options), selection_(SelectionOf(options)), side_(GroupRuns(Side::kReference, traces)) {}

  Golden Run() {
    std::vector<Failure> failures;
    CheckTraces(side_, &failures);
    Require(failures);
    DescribeRun();
    ListTokens();
    const std::vector<std::string> names = SelectedNames();
    for (size_t i = 0; i < names.size(); ++i) {
      RecordPoint(names[i]);
      Release(side_, names[i]);
      if (options_.progress) options_.progress(i + 1, names.size());
    }
    if (golden_.points.empty()) {
      throw Error("rows \"" + options_.rows + "\": none of the " + std::to_string(names.size()) +
                  " selected points has such a row");
    }
    return std::move(golden_);
  }

 private:
  void DescribeRun() {
    const TraceMeta& meta = side_.runs.front().meta();
    TraceMeta& out = golden_.meta;
    out.producer = meta.producer;
    out.producer_version = meta.producer_version;
    out.model_type = meta.model_type;
    out.config = meta.config;
    out.arithmetic = meta.arithmetic;
    out.has_arithmetic = meta.has_arithmetic;
    for (const lockstep::Run& run : side_.runs) {
      for (const TraceView& trace : run.traces)
        out.weights.insert(trace.meta->weights.begin(), trace.meta->weights.end());
    }
  }

  void ListTokens() {
    for (const auto& [sequence, tokens] : side_.sequences) {
      numbers_[sequence] = sequence;
      auto later = static_cast<int64_t>(tokens.size());
      for (const auto& [position, id] : tokens) {
        golden_.tokens.push_back({sequence, position, id});
        wanted_.push_back(selection_.WantsRow(position, --later));
      }
    }
    if (golden_.tokens.empty()) throw Error("expected a trace with tokens, found one without");
  }

  std::vector<std::string> SelectedNames() const {
    std::vector<std::string> names;
    for (const auto& [name, steps] : side_.points) {
      if (!selection_.WantsPoint(name)) continue;
      const auto ref = ParsePointName(name);
      if (ref && ref->spec->on_request) {
        throw Error("points \"" + options_.points + "\": expected points with rows of one length, found " + name +
                    ", whose rows grow with the position; leave it out, or compare whole traces");
      }
      names.push_back(name);
    }
    if (names.empty()) {
      throw Error("points \"" + options_.points + "\", layers \"" + options_.layers + "\": none of the " +
                  std::to_string(side_.points.size()) + " points of the trace is selected; see lockstep show");
    }
    return InExecutionOrder(std::move(names));
  }

  void RecordPoint(const std::string& name) {
    const std::vector<StepTensors>& steps = side_.points.at(name);
    const std::vector<std::string> axes = RowAxes(name, *steps.front().tensors.front());
    std::vector<Failure> failures;
    const PointRows collected = CollectRows(side_, name, steps, axes, numbers_, &failures);
    Require(failures);
    GoldenPoint point;
    point.name = name;
    point.row_shape = collected.pieces.front().row_shape();
    for (const Piece& piece : collected.pieces) {
      if (piece.row_size() == collected.pieces.front().row_size()) continue;
      throw Error(name + ": expected rows of shape " + ShapeText(point.row_shape) + " in every step, found " +
                  ShapeText(piece.row_shape()) + kMend);
    }
    Sum(collected, &point);
    if (!point.rows.empty()) golden_.points.push_back(std::move(point));
  }

  void Sum(const PointRows& collected, GoldenPoint* point) const {
    const std::vector<std::optional<RowAt>> all = FindRows(golden_.tokens, collected);
    std::vector<std::optional<RowAt>> rows;
    std::vector<int32_t> sequences;
    for (size_t i = 0; i < all.size(); ++i) {
      if (!all[i] || !wanted_[i]) continue;
      rows.push_back(all[i]);
      sequences.push_back(golden_.tokens[i].sequence);
      point->rows.push_back(static_cast<int32_t>(i));
    }
    point->block_rows = BlockRowsFor(rows.size());
    const std::vector<std::optional<BlockSums>> sums =
        SumBlocks(collected, rows, BlocksOf(sequences, point->block_rows));
    for (const std::optional<BlockSums>& block : sums) point->blocks.push_back(block->block);
    point->stats = StatsOf(sums);
    point->stats.dtype = collected.pieces.front().dtype();
  }

  const RecordOptions& options_;
  const Selection selection_;
  const SideRuns side_;
  std::map<int, int> numbers_;  // every sequence by its own number
  std::vector<bool> wanted_;    // by token
  Golden golden_;
};

}  // namespace

Golden Record(const std::vector<std::string>& traces, const RecordOptions& options) {
  const std::vector<TraceReader> readers = OpenAll(traces, "golden");
  return Recorder(Views(readers), options).Run();
}

}  // namespace lockstep
