// What a report draws of one replayed point (lockstep/detail.h), gathered while its rows are judged.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "base/error_map.h"
#include "lockstep/detail.h"
#include "lockstep/trace.h"
#include "replay/block.h"
#include "replay/noise.h"

namespace lockstep {

// What the errors of some elements add up to.
struct ErrorSums {
  double squares = 0;
  double peak = 0;
  int64_t count = 0;
  int64_t peak_at = -1;  // element of the row

  double Rms() const { return count > 0 ? std::sqrt(squares / static_cast<double>(count)) : 0; }
  void Add(double error, int64_t at) {
    squares += Square(error);
    ++count;
    if (std::abs(error) > peak || peak_at < 0) peak = std::abs(error), peak_at = at;
  }
  void Add(const ErrorSums& other) {
    squares += other.squares;
    count += other.count;
    if (other.peak > peak || peak_at < 0) peak = other.peak, peak_at = other.peak_at;
  }
};

// error: signed, in noise units; infinite ones count as outside, NaN as above.
void Count(double error, ErrorHistogram* histogram);
void Merge(const ErrorHistogram& from, ErrorHistogram* to);

class LocalDetailMeter {
 public:
  // tokens: all that may come. heads: 0: a cell is a block of cell_width channels.
  LocalDetailMeter(const std::vector<TokenAt>& tokens, int64_t heads, int64_t cells, int64_t cell_width);

  void Add(const TokenAt& token, Phase phase, const std::vector<ErrorSums>& cells);
  // Fills everything but the histogram.
  void Finish(LocalDetail* detail) const;

 private:
  MapFold map_;
  int64_t cell_width_;
  ErrorSums prefill_, decode_;
};

}  // namespace lockstep
