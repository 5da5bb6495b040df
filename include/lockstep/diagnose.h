// Why an op is wrong: at each locally faulty op, what the error looks like, and the known mistake that explains it down
// to the noise floor. A cause is named only when it does; what fits nothing is described, never guessed.
//
//   Diagnosis diagnosis = Diagnose({"cpp.trace"}, "models/tiny-qwen3");
//   for (const Finding& finding : diagnosis.findings) std::cout << FindingSentence(finding) << "\n";  // report.h
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lockstep/replay.h"

namespace lockstep {

// A known mistake, and how well the op recomputed with it fits what was captured.
struct Explanation {
  std::string cause;     // "rope-interleaved"
  std::string text;      // "rotates interleaved pairs instead of halves"
  std::string advice;    // how it is usually fixed
  double explained = 0;  // worst affected row or head that is left, in noise units
};

// What the error looks like: "exact at position 0".
struct Pattern {
  std::string id;  // "exact-at-position-0"
  std::string text;
};

// One fault, wherever it shows.
struct Finding {
  std::string point;               // "attn_q_rope"
  std::vector<int> layers;         // ascending; empty outside the layers
  std::vector<std::string> names;  // of the points, in execution order
  std::string op;
  double error = 0;  // worst row or head, in noise units
  double clean = 0;  // below this figure it would have been clean
  Place worst;
  std::optional<Explanation> cause;  // none: unexplained
  std::vector<Explanation> also;     // fit as well
  std::optional<Explanation> next;   // the best of those that do not fit
  std::vector<Pattern> patterns;     // the most telling first
};

struct Diagnosis {
  ReplayResult replay;
  std::vector<Finding> findings;  // in execution order of their first point
  // Points that hold other values than the table says, in a way that changes nothing: a permuted basis of q and k.
  std::vector<std::string> layouts;

  // 0: no locally faulty op and no weight that is not the checkpoint's; else 1.
  int ExitCode() const;
};

// Replays and explains. Several traces: parts of a batch, or the ranks of one run. Throws Error for bad input: no
// trace, another model than `model`, nothing that could be recomputed.
Diagnosis Diagnose(const std::vector<std::string>& traces, const std::string& model, const ReplayOptions& options = {});

}  // namespace lockstep
