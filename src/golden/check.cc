// A trace against a golden. The golden stands in for a reference's trace that has tokens and weights and no tensors, so
// that what comes before any number is the comparison's own.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>

#include "base/safetensors.h"
#include "compare/classify.h"
#include "compare/completeness.h"
#include "compare/config.h"
#include "compare/weights.h"
#include "golden/points.h"
#include "lockstep/points.h"

namespace lockstep {
namespace {

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g", value);
  return text;
}

std::string Producer(const TraceMeta& meta) {
  return meta.producer + (meta.producer_version.empty() ? "" : " " + meta.producer_version);
}

std::string ArithmeticText(const Arithmetic& a) {
  const auto name = [](DType dtype) { return std::string(DTypeName(dtype)); };
  return "storage " + name(a.storage) + ", operands " + name(a.operands) + ", accumulated in " + name(a.accumulate) +
         ", cache " + name(a.cache);
}

TraceStep TokensOf(const Golden& golden) {
  TraceStep step;
  for (const GoldenToken& token : golden.tokens) {
    step.sequences.push_back(token.sequence);
    step.positions.push_back(token.position);
    step.input_ids.push_back(token.id);
  }
  return step;
}

// Rows that are flattened on one side only have the same order.
bool Fits(const std::vector<int64_t>& golden, const Piece& piece) {
  const std::vector<int64_t>& row = piece.row_shape();
  return row == golden || ((row.size() == 1 || golden.size() == 1) && NumElements(golden) == piece.row_size());
}

class Checker {
 public:
  Checker(const Golden& golden, const std::vector<TraceView>& traces, const CheckOptions& options)
      : golden_(golden), options_(options), steps_({TokensOf(golden)}) {
    const TraceView stand_in = {golden.path, &golden.meta, &steps_};
    CheckConfigs({stand_in}, traces, &result_.notes);
    reference_ = GroupRuns(Side::kReference, {stand_in});
    candidate_ = GroupRuns(Side::kCandidate, traces);
    Pair(traces.front().path);
    Describe(traces);
  }

  CheckResult Run() {
    CheckTraces(candidate_, &result_.failures);
    CheckSequences();
    CompareAllWeights();
    CompareArithmetic();
    LearnDepth();
    const size_t total = golden_.points.size();
    for (size_t i = 0; i < total; ++i) {
      CheckPoint(golden_.points[i]);
      if (options_.progress) options_.progress(i + 1, total);
    }
    return std::move(result_);
  }

 private:
  void Pair(const std::string& trace) {
    try {
      result_.pairs = PairSequences(reference_, candidate_, {}, &result_.notes);
    } catch (const Error& e) {
      throw Error("reference " + golden_.path + ", candidate " + trace + ": " + e.what() +
                  ", or record a new golden from the new input");
    }
    for (const SequencePair& pair : result_.pairs) numbers_[pair.candidate] = pair.reference;
  }

  void Describe(const std::vector<TraceView>& traces) {
    result_.golden = golden_.path;
    result_.golden_producer = Producer(golden_.meta);
    result_.golden_model = golden_.meta.model_type;
    result_.producer = Producer(*traces.front().meta);
    result_.rtol = options_.rtol;
    result_.exact = options_.exact;
    for (const TraceView& trace : traces) result_.traces.push_back(trace.path);
  }

  void Fail(FailureKind kind, const std::string& point, const std::string& text) {
    result_.failures.push_back({kind, Side::kCandidate, point, text});
  }

  void CheckSequences() {
    std::map<int, bool> paired;
    for (const auto& [candidate, reference] : numbers_) paired[reference] = true;
    for (const auto& [sequence, tokens] : reference_.sequences) {
      if (paired[sequence]) continue;
      Fail(FailureKind::kMissingRows, "",
           "no sequence has the " + std::to_string(tokens.size()) + " tokens of the golden's sequence " +
               std::to_string(sequence));
    }
  }

  void CompareAllWeights() {
    CompareResult compared;
    CompareWeights(reference_, candidate_, &compared);
    result_.weights = std::move(compared.weights);
    result_.weights_compared = compared.weights_compared;
    result_.notes.insert(result_.notes.end(), compared.notes.begin(), compared.notes.end());
  }

  void CompareArithmetic() {
    const TraceMeta& meta = candidate_.runs.front().meta();
    if (!meta.has_arithmetic || !golden_.meta.has_arithmetic || meta.arithmetic == golden_.meta.arithmetic) return;
    result_.arithmetic = ArithmeticText(meta.arithmetic) + "; in the golden " + ArithmeticText(golden_.meta.arithmetic);
  }

  void LearnDepth() {
    num_layers_ = static_cast<int>(std::min<int64_t>(ConfigNumber(reference_, "num_hidden_layers"), 1 << 20));
    for (const GoldenPoint& point : golden_.points) num_layers_ = std::max(num_layers_, LayerOf(point.name) + 1);
  }

  void CheckPoint(const GoldenPoint& golden) {
    const auto steps = candidate_.points.find(golden.name);
    if (steps == candidate_.points.end()) {
      return Fail(FailureKind::kMissing, golden.name, "the golden has it, the trace has not");
    }
    const std::vector<std::string> axes = RowAxes(golden.name, *steps->second.front().tensors.front());
    const PointRows rows = CollectRows(candidate_, golden.name, steps->second, axes, numbers_, &result_.failures);
    for (const Piece& piece : rows.pieces) {
      if (Fits(golden.row_shape, piece)) continue;
      return Fail(FailureKind::kShape, golden.name,
                  "rows of shape " + ShapeText(piece.row_shape()) + ", in the golden " + ShapeText(golden.row_shape));
    }
    Measure(golden, rows);
    Release(candidate_, golden.name);
  }

  void Measure(const GoldenPoint& golden, const PointRows& collected) {
    std::vector<GoldenToken> tokens;
    std::vector<int32_t> sequences;
    for (const int32_t row : golden.rows) {
      tokens.push_back(golden_.tokens[static_cast<size_t>(row)]);
      sequences.push_back(tokens.back().sequence);
    }
    const std::vector<std::optional<RowAt>> rows = FindRows(tokens, collected);
    CheckRows(golden.name, tokens, rows);
    const std::vector<BlockRange> blocks = BlocksOf(sequences, golden.block_rows);
    const std::vector<std::optional<BlockSums>> sums = SumBlocks(collected, rows, blocks);
    CheckedPoint point = DescribePoint(golden);
    point.candidate = StatsOf(sums);
    if (!collected.pieces.empty()) point.candidate.dtype = collected.pieces.front().dtype();
    AddDrift(golden, tokens, blocks, sums, &point);
    if (point.blocks == 0) return;  // all its rows are missing, which is told
    Judge(point.blocks == blocks.size(), &point);
    Add(std::move(point));
  }

  void CheckRows(const std::string& name, const std::vector<GoldenToken>& tokens,
                 const std::vector<std::optional<RowAt>>& rows) {
    const auto missing = static_cast<size_t>(std::count(rows.begin(), rows.end(), std::nullopt));
    if (missing == 0) return;
    const auto first = static_cast<size_t>(std::find(rows.begin(), rows.end(), std::nullopt) - rows.begin());
    Fail(FailureKind::kMissingRows, name,
         std::to_string(missing) + " of " + std::to_string(rows.size()) + " rows are missing, the first of sequence " +
             std::to_string(tokens[first].sequence) + ", position " + std::to_string(tokens[first].position));
  }

  static CheckedPoint DescribePoint(const GoldenPoint& golden) {
    CheckedPoint point;
    point.name = golden.name;
    point.layer = LayerOf(golden.name);
    point.point = std::string(WithoutLayer(golden.name));
    point.row_shape = golden.row_shape;
    point.golden = golden.stats;
    return point;
  }

  // Blocks that are not whole are left out.
  static void AddDrift(const GoldenPoint& golden, const std::vector<GoldenToken>& tokens,
                       const std::vector<BlockRange>& blocks, const std::vector<std::optional<BlockSums>>& sums,
                       CheckedPoint* point) {
    double squares = 0, variance = 0, norm = 0;
    for (size_t b = 0; b < blocks.size(); ++b) {
      if (!sums[b]) continue;
      const GoldenBlock& kept = golden.blocks[b];
      const auto [begin, end] = blocks[b];
      ++point->blocks;
      point->rows += static_cast<int64_t>(end - begin);
      norm += static_cast<double>(kept.norm) * kept.norm;
      if (kept.hash == sums[b]->block.hash) {
        ++point->identical_blocks;
        continue;
      }
      const double squared = SquaredDistance(sums[b]->block, kept);
      squares += squared;
      variance += squared * squared * 2 / (kProjections + 2);
      const double drift = Relative(squared, static_cast<double>(kept.norm) * kept.norm);
      if (point->worst.rows > 0 && drift <= point->worst.relative_l2) continue;
      const auto at = [&](size_t row) { return Place{tokens[row].sequence, tokens[row].position}; };
      point->worst = {at(begin), at(end - 1), static_cast<int64_t>(end - begin), drift};
    }
    point->relative_l2 = Relative(squares, norm);
    // The square root halves a relative error.
    point->standard_error = squares == 0 ? 0 : point->relative_l2 * std::sqrt(variance) / squares / 2;
  }

  static double Relative(double squares, double reference) {
    if (squares == 0) return 0;
    return reference == 0 ? std::numeric_limits<double>::infinity() : std::sqrt(squares / reference);
  }

  void Judge(bool whole, CheckedPoint* point) const {
    if (point->bit_identical()) return;
    const auto same_counts = [&] {
      return point->golden.nan_count == point->candidate.nan_count &&
             point->golden.inf_count == point->candidate.inf_count;
    };
    if (whole && !same_counts()) {
      const auto counts = [](const SideStats& stats) {
        return std::to_string(stats.nan_count) + " NaN and " + std::to_string(stats.inf_count) + " infinite";
      };
      point->reasons.push_back(counts(point->candidate) + " values, in the golden " + counts(point->golden));
    }
    const double u = std::max(DeclaredRoundoff(golden_.meta), UnitRoundoff(point->golden.dtype));
    if (options_.exact || (!options_.rtol && u == 0)) {
      point->reasons.push_back(std::to_string(point->blocks - point->identical_blocks) + " of " +
                               std::to_string(point->blocks) + " blocks of rows are not the same to the bit");
      return;
    }
    const int depth = DepthOf(point->name, num_layers_);
    point->bound = options_.rtol ? *options_.rtol : RelativeL2Bound(u, depth);
    if (point->worst.relative_l2 <= *point->bound) return;
    point->reasons.push_back(
        "relative L2 of the worst block " + Number(point->worst.relative_l2) + " is above " + Number(*point->bound) +
        ", " + (options_.rtol ? "which --rtol asks for" : "the bound for rounding at depth " + std::to_string(depth)));
  }

  void Add(CheckedPoint point) {
    result_.bit_identical += point.bit_identical();
    if (!point.reasons.empty()) {
      ++result_.drifted;
      if (!result_.first_drifted) result_.first_drifted = result_.points.size();
    }
    result_.points.push_back(std::move(point));
  }

  const Golden& golden_;
  const CheckOptions& options_;
  const std::vector<TraceStep> steps_;
  SideRuns reference_, candidate_;
  std::map<int, int> numbers_;  // from the candidate's sequences to the golden's
  int num_layers_ = 0;
  CheckResult result_;
};

}  // namespace

int CheckResult::ExitCode() const {
  return first_drifted || !failures.empty() || !weights.empty() || !arithmetic.empty() ? 1 : 0;
}

CheckResult Check(const Golden& golden, const std::vector<std::string>& traces, const CheckOptions& options) {
  if (options.rtol && !(*options.rtol >= 0)) {
    throw Error("--rtol: expected 0 or more, found " + std::to_string(*options.rtol));
  }
  const std::vector<TraceReader> readers = OpenAll(traces, SideName(Side::kCandidate));
  CheckResult result = Checker(golden, Views(readers), options).Run();
  NoteWarnings(readers, &result.notes);
  return result;
}

CheckResult Check(const std::string& golden, const std::vector<std::string>& traces, const CheckOptions& options) {
  return Check(ReadGolden(golden), traces, options);
}

}  // namespace lockstep
