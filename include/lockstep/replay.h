// Which op is itself wrong: every op recomputed in float64 from the trace's own captured inputs and the checkpoint,
// with no reference at all. What is left is that op's own error, told in noise units: 1 is what rounding alone would
// give under the declared arithmetic (docs/replay.md).
//
//   ReplayResult result = Replay({"cpp.trace"}, "models/tiny-qwen3");
//   if (result.first_faulty) std::cout << result.points[*result.first_faulty].name;
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lockstep/detail.h"
#include "lockstep/error.h"
#include "lockstep/place.h"
#include "lockstep/trace.h"

namespace lockstep {

struct ReplayOptions {
  // Selections as in docs/trace-format.md; empty means everything.
  std::string points;
  std::string layers;
  bool details = false;  // fill LocalError::detail
  // Called after each point, from the calling thread.
  std::function<void(size_t points_done, size_t points_total)> progress;
};

enum class OpVerdict : uint8_t { kClean, kSuspect, kFaulty, kNotObservable };
std::string_view OpVerdictName(OpVerdict verdict);  // "clean", "suspect", "faulty", "not-observable"

// What makes a point faulty when its figure of that name is above (worst_row, worst_head, max, |scale|); without heads,
// `head` is that of a block of channels.
struct NoiseLimits {
  double row = 0, head = 0, max = 0, scale = 0;
};

// The error of one op alone, in noise units: (captured - recomputed) / sigma, sigma the standard deviation that
// rounding gives that element.
struct LocalError {
  std::string name;   // "layer_3_attn_q_rope"
  int layer = -1;     // 3; -1 outside the layers
  std::string point;  // "attn_q_rope"
  std::string op;     // "rope"
  OpVerdict verdict = OpVerdict::kClean;
  std::vector<std::string> reasons;  // why it is suspect, faulty or not observable
  std::vector<std::string> from;     // the captured points that it was recomputed from
  bool bridged = false;              // an input was not captured: several ops were composed
  Arithmetic arithmetic;

  int64_t rows = 0;                 // judged
  int64_t rows_not_observable = 0;  // an input is missing and cannot be recomputed
  int64_t rows_inherited = 0;       // an input is NaN or infinite: nothing can be said of these rows
  int64_t elements = 0;

  double worst_row = 0;  // root mean square over the row
  Place worst_row_at;
  double worst_head = 0;  // root mean square over a head of one token; 0 where the point has no heads
  Place worst_head_at;
  double whole = 0;  // root mean square over all elements
  double max = 0;    // largest single one
  Place max_at;
  double max_value = 0;     // captured there
  double max_expected = 0;  // recomputed there
  // Best factor between captured and recomputed values, less 1, weighted by their noise; and its standard error. A
  // systematic error shows here long before it shows in any maximum.
  double scale = 0;
  double scale_error = 0;
  // NaN or infinite where the recomputed value is not.
  int64_t non_finite = 0;
  std::optional<Place> first_non_finite;
  NoiseLimits limits;                         // that it was judged by
  std::shared_ptr<const LocalDetail> detail;  // null unless asked for
};

// A weight of the trace that is not the checkpoint's: it was loaded wrongly, or the checkpoint changed since.
struct WeightMismatch {
  std::string name;
  std::string text;  // one line
};

struct ReplayResult {
  std::vector<std::string> traces;
  std::string model;
  Arithmetic arithmetic;           // of most points
  bool has_arithmetic = false;     // false: inferred from the data
  std::vector<LocalError> points;  // in execution order
  std::optional<size_t> first_faulty;
  size_t clean = 0, suspect = 0, faulty = 0, not_observable = 0;
  std::vector<WeightMismatch> weights;  // whose fingerprints differ from the checkpoint's
  size_t weights_compared = 0;
  std::vector<std::string> notes;
};

// Several traces: parts of a batch, or the ranks of one run. Throws Error for bad input: no trace, another model than
// `model`, nothing that could be recomputed.
ReplayResult Replay(const std::vector<std::string>& traces, const std::string& model,
                    const ReplayOptions& options = {});

}  // namespace lockstep
