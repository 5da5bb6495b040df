// Which rows of a long table stand by themselves: the first that matter. The rest is folded, run by run, into one line
// each, which tells the worst figures of its run.
#pragma once

#include <cmath>
#include <cstddef>
#include <functional>
#include <vector>

namespace lockstep {

// Rows [begin, end): one line of the table.
struct Stretch {
  size_t begin = 0;
  size_t end = 0;

  bool folded() const { return end - begin > 1; }
};

struct FoldedRows {
  size_t count = 0;
  std::function<bool(size_t)> matters;    // faulty, suspect or failing
  std::function<bool(size_t)> in_layers;  // a run lies in layers, or outside them
};

// In order, without gaps. Short tables, and with `all` every one, are not folded.
std::vector<Stretch> Fold(const FoldedRows& rows, bool all);

// NaN is worse than every number.
inline bool IsWorse(double a, double b) { return !std::isnan(b) && (std::isnan(a) || a > b); }
inline double Worse(double a, double b) { return IsWorse(a, b) ? a : b; }

}  // namespace lockstep
