// A mistake that an implementation may have made in one op, as the call that it would then have computed.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "lockstep/diagnose.h"
#include "replay/evaluator.h"
#include "replay/judge.h"

namespace lockstep {

// Rows of the point with their values: the worst, and others spread over positions, steps and sequences.
struct Sample {
  std::vector<TokenAt> tokens;
  Block captured;
  Evaluated expected;  // by the right call
};

// A locally faulty op.
struct Case {
  // REQUIRES: all outlive this.
  Case(Evaluator& evaluator, const PointErrors& errors, const Sample& sample);

  Evaluator& evaluator;
  const PointErrors& errors;  // of all rows against the right call, errors.call
  const Sample& sample;
  const std::vector<char> affected;   // [rows, cells] of `errors`: AffectedCells
  const std::vector<int64_t> row_of;  // [rows of the sample] in `errors`; -1 where it was not judged
  // Elements that were evaluated on it so far, of keys and values too: what a search may cost is counted, not timed, so
  // that a verdict depends on no machine.
  mutable double work = 0;
};

struct Hypothesis {
  std::string cause;   // one of the catalogue's ids: "rope-interleaved"
  std::string text;    // completes "the op …": "rotates interleaved pairs instead of halves"
  std::string advice;  // how it is usually fixed
  OpCall call;
  // What was fitted to the sample: nothing, a figure, or a map or vector. Of hypotheses that explain a fault the least
  // free is named.
  int freedom = 0;
};

// Adds what is worth trying in this case. Each stands for one kind of op and is registered in the catalogue.
using Propose = void (*)(const Case& fault, std::vector<Hypothesis>* out);

struct CatalogueEntry {
  Op op;
  Propose propose;
};
// Entries of one op; those for any op come last.
std::span<const CatalogueEntry> Catalogue();

// Mistakes that any op can show, found in the values themselves: permuted, scaled, stale, zeroed, clamped, rounded.
void ProposeForAnyOp(const Case& fault, std::vector<Hypothesis>* out);

// What the error looks like, the most telling first; never empty for a faulty op.
std::vector<Pattern> DescribePatterns(const Case& fault);
// "some-layers" or "all-layers", of the layers that a finding shows in.
std::vector<Pattern> LayerPatterns(const std::vector<int>& faulty, int num_layers);

}  // namespace lockstep
