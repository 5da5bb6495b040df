// Golden traces: what a run computed, in kilobytes (docs/golden.md). Recorded once and committed, it tells a later run
// of the same tokens whether it is the same to the bit, and if not, where and how far it drifted.
//
//   WriteText("golden.json", GoldenText(Record({"engine.trace"})));
//   CheckResult result = Check("golden.json", {"engine.trace"});
//   return result.ExitCode();
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lockstep/compare.h"
#include "lockstep/error.h"
#include "lockstep/trace.h"

namespace lockstep {

inline constexpr size_t kProjections = 4;

// What is kept of some rows, [rows, elements of a row], as f32.
struct GoldenBlock {
  uint64_t hash = 0;                         // of the bits
  float norm = 0;                            // root of the sum of squares; NaN and infinities count as 0
  std::array<float, kProjections> sketch{};  // sums of the values with random signs
};

struct GoldenToken {
  int32_t sequence = 0;
  int32_t position = 0;
  int32_t id = -1;  // -1: unknown
};

struct GoldenPoint {
  std::string name;
  std::vector<int64_t> row_shape;  // canonical, without the token axis
  SideStats stats;                 // of all rows; first_nan and first_inf are not kept
  std::vector<int32_t> rows;       // [R] indices into Golden::tokens, ascending
  int32_t block_rows = 1;          // most rows of a block
  std::vector<GoldenBlock> blocks;
};

struct Golden {
  std::string path;  // of the file it was read from
  // Producer, model, arithmetic and weights. Promises, selections and errors are not kept.
  TraceMeta meta;
  std::vector<GoldenToken> tokens;  // by sequence and position
  std::vector<GoldenPoint> points;  // in execution order
};

// What `record` keeps unless it is told otherwise: the residual stream behind attention and behind the MLP of every
// layer, and both ends of the model.
inline constexpr const char* kDefaultGoldenPoints =
    "input_embeddings,attn_residual_output,layer_output,final_norm_output,logits";

struct RecordOptions {
  // Selections as in docs/trace-format.md; rows count within a whole sequence, however it was split into steps.
  std::string points = kDefaultGoldenPoints;
  std::string layers;
  std::string rows;
  std::function<void(size_t points_done, size_t points_total)> progress;
};

// Several traces: parts of a batch, or the ranks of one run. Throws Error for bad traces, for those that are not whole
// (a point recorded twice, a missing shard, an error of the writer), and where nothing is selected.
Golden Record(const std::vector<std::string>& traces, const RecordOptions& options = {});

// The file "lockstep-golden/1": the same for the same trace, whatever the machine and the number of threads.
std::string GoldenText(const Golden& golden);

// Throws Error for anything that is no such file.
Golden ReadGolden(const std::string& path);

struct CheckOptions {
  std::optional<double> rtol;  // your own bound of the relative L2 of every block, instead of that of the dtype
  bool exact = false;          // every bit must be the same
  std::function<void(size_t points_done, size_t points_total)> progress;
};

// How far the rows of a block are from the golden's. relative_l2 is estimated from the sketch: |P(a - b)| / sqrt(k) /
// |b|; 0 where the hashes are equal; infinite where only b is zero.
struct BlockDrift {
  Place first, last;  // rows; sequence is the golden's
  int64_t rows = 0;
  double relative_l2 = 0;
};

struct CheckedPoint {
  std::string name;
  int layer = -1;
  std::string point;  // without the layer
  std::vector<int64_t> row_shape;
  int64_t rows = 0;  // compared
  SideStats golden;
  SideStats candidate;  // of the rows of whole blocks
  size_t blocks = 0;    // compared
  size_t identical_blocks = 0;
  double relative_l2 = 0;     // of all blocks compared
  double standard_error = 0;  // of relative_l2
  BlockDrift worst;           // the first of equals; without rows where all are identical
  std::optional<double> bound;
  std::vector<std::string> reasons;  // why it drifted; empty where it did not

  bool bit_identical() const { return blocks == identical_blocks; }
};

struct CheckResult {
  std::string golden;  // path
  std::vector<std::string> traces;
  std::string golden_producer, producer;
  std::string golden_model;
  std::vector<SequencePair> pairs;  // reference: the golden's
  std::optional<double> rtol;       // as asked for
  bool exact = false;
  std::vector<Failure> failures;  // what the trace lacks
  std::vector<WeightDifference> weights;
  size_t weights_compared = 0;
  std::string arithmetic;            // what it computes in otherwise than the golden's run; empty: the same
  std::vector<CheckedPoint> points;  // in execution order
  size_t bit_identical = 0;          // points
  size_t drifted = 0;                // points with reasons
  std::optional<size_t> first_drifted;
  std::vector<std::string> notes;

  // 0: the same within the bound; 1: a point drifted or is missing, or weights or arithmetic are others.
  int ExitCode() const;
};

// Throws Error for what cannot be told: bad files, other tokens, another model.
CheckResult Check(const std::string& golden, const std::vector<std::string>& traces, const CheckOptions& options = {});
CheckResult Check(const Golden& golden, const std::vector<std::string>& traces, const CheckOptions& options = {});

}  // namespace lockstep
