// Looking into traces: what one holds and whether that looks sound, slices of tensors, and the same slice of two
// traces. The results are plain structs; TextReport and JsonReport of report.h print them.
//
//   TraceListing listing = ListTrace(TraceReader::Open("cpp.trace"));
//   TensorLook look = LookInto({"cpp.trace"}, "layer_3_attn_q_rope[pos=5, head=2]").front();
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lockstep/dtype.h"
#include "lockstep/place.h"
#include "lockstep/trace.h"

namespace lockstep {

// --- What a trace holds ---------------------------------------------------------------------------------------------

enum class AilmentKind : uint8_t {
  kNan,
  kInfinite,      // masked scores are not counted
  kAllZero,       // the whole tensor of a step
  kZeroRows,      // whole rows, not all
  kFilledRows,    // rows whose bytes are all the same and not 0: memory that nobody wrote
  kConstantRows,  // rows of one value
  kSaturated,     // F16 values of ±65504
  kHuge,          // magnitudes above kHugeMagnitude
  kTiny,          // nothing but magnitudes below kTinyMagnitude, though not all 0
};
inline constexpr double kHugeMagnitude = 1e6;
inline constexpr double kTinyMagnitude = 1e-12;

// What looks unsound in one point, over all steps and ranks.
struct Ailment {
  AilmentKind kind = AilmentKind::kNan;
  int64_t count = 0;  // elements; rows; of kAllZero and kTiny tensors
  size_t step = 0;    // of the first
  int rank = 0;
  Place first;       // sequence and position -1: padding, or a whole tensor
  double value = 0;  // kFilledRows: the byte; kConstantRows: the value of the first; kHuge, kTiny: largest magnitude
};

struct ListedPoint {
  std::string name;
  int layer = -1;
  std::string point;               // without the layer
  std::vector<std::string> axes;   // of a row; empty for a user's own point that declares none
  std::vector<int64_t> row_shape;  // of one rank, as in the first step
  bool shapes_differ = false;      // between steps, as those of attention tensors do
  DType dtype = DType::kF32;       // of the first
  bool dtypes_differ = false;
  std::string shard;              // "q_head / 2", "sum of 2 ranks"; empty for whole tensors
  int64_t rows = 0;               // over all steps, of one rank
  int64_t bytes = 0;              // of all ranks
  size_t steps = 0;               // that hold it
  std::vector<Ailment> ailments;  // at most one a kind
};

struct TraceListing {
  std::string path;
  TraceMeta meta;
  std::vector<std::string> warnings;
  struct Step {
    Phase phase = Phase::kPrefill;
    size_t tokens = 0;
    size_t padding = 0;
    struct Sequence {
      int number = 0;
      int first = 0, last = 0;  // positions
      size_t tokens = 0;
    };
    std::vector<Sequence> sequences;  // by number, without padding
    struct Tensor {
      std::string name;
      DType dtype = DType::kF32;
      std::vector<int64_t> shape;  // as stored
      int rank = 0;
    };
    std::vector<Tensor> tensors;  // of all ranks
    int64_t bytes = 0;
    std::vector<std::string> duplicates;
  };
  std::vector<Step> steps;
  std::vector<ListedPoint> points;   // in execution order
  std::vector<std::string> missing;  // promised, and in no step
  size_t tensors = 0;                // over all steps and ranks
  int64_t bytes = 0;                 // of their data
  int ranks = 1;
};

// Reads every value once, several tensors at a time. `progress` is called from one thread at a time.
TraceListing ListTrace(const TraceReader& trace, const std::function<void(size_t done, size_t total)>& progress = {});

// --- Into a tensor --------------------------------------------------------------------------------------------------

inline constexpr std::array<double, 7> kQuantiles = {0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99};
inline constexpr size_t kHistogramBins = 40;

// Of the finite values, each seen as f32; sums in f64, std of the population. Nothing is sampled.
struct ValueStats {
  int64_t count = 0;  // values, all of them
  int64_t finite = 0;
  int64_t nans = 0;
  int64_t infs = 0;
  int64_t masked = 0;  // attention scores; in no other figure
  double mean = 0, std = 0, rms = 0, min = 0, max = 0;
  Place min_at, max_at;  // the first of equals
  std::optional<Place> first_nan, first_inf;
  std::array<double, kQuantiles.size()> quantiles{};  // numpy's linear interpolation
  std::array<int64_t, kHistogramBins> histogram{};    // from min to max; empty where they are equal
};

// One axis of what was chosen.
struct ChosenAxis {
  std::string name;            // canonical: "q_head"
  int64_t size = 0;            // of the whole tensor
  std::vector<int64_t> index;  // ascending
};

// The values of a few rows, for print.
struct Excerpt {
  static constexpr size_t kRows = 12;     // the first and the last where there are more
  static constexpr size_t kValues = 256;  // of a row: the first
  struct Row {
    size_t number = 0;  // among the chosen rows
    Place token;
    std::vector<double> values;
    std::vector<double> other;  // LookAtDifference: of the candidate
  };
  std::vector<Row> rows;
  size_t left_out = 0;     // rows
  int64_t row_values = 0;  // of a whole row
};

// Of two slices; a is the candidate, b the reference, as in CompareResult.
struct SliceDifference {
  int64_t elements = 0;    // compared as numbers: equal NaNs, equal infinities and masked scores are left out
  int64_t mismatches = 0;  // NaN, infinite or masked on one side only
  std::optional<Place> first_mismatch;
  bool identical = false;  // no element differs
  double max_abs = 0, mean_abs = 0;
  double relative_l2 = 0;  // |a - b| / |b|; infinite where only b is zero
  double cosine = 1;
  struct Element {
    Place place;
    double reference = 0, candidate = 0;
  };
  std::vector<Element> largest;                   // by |a - b|, at most five
  size_t only_reference = 0, only_candidate = 0;  // rows
};

struct TensorLook {
  std::string name;
  DType dtype = DType::kF32;
  size_t rows = 0;                    // chosen: tokens
  std::vector<int> sequences;         // of the rows, ascending
  std::vector<ChosenAxis> axes;       // of a row
  std::vector<std::string> problems;  // shards that do not fit, steps left out
  ValueStats stats;
  Excerpt excerpt;
  // LookAtDifference: of the candidate, and between both.
  std::optional<ValueStats> other;
  DType other_dtype = DType::kF32;
  std::optional<SliceDifference> difference;
};

// `what`: a point, perhaps with `*` and a slice (docs/show.md). Rows are joined over steps, ranks and traces as
// Compare() joins them; of recomputed tokens the last counts. With `npy`, the slice is written there, [rows, axes…],
// whole or not at all. Throws Error: no such point, a bad slice, nothing chosen, several points for one file.
std::vector<TensorLook> LookInto(const std::vector<std::string>& traces, const std::string& what,
                                 const std::string& npy = "");

// The same slice of both; sequences are paired by their tokens, and numbered as the reference's.
std::vector<TensorLook> LookAtDifference(const std::vector<std::string>& reference,
                                         const std::vector<std::string>& candidate, const std::string& what);

}  // namespace lockstep
