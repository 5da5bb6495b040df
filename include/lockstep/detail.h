// What a report draws of one tensor beyond its figures: small, however large the tensor is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lockstep {

// Errors by token and column. Long runs are folded: a band is a token, or several consecutive ones of one sequence, and
// shows the worst of them. With more sequences than kMaxBands, each is one band, and those with the largest values are
// kept.
struct ErrorMap {
  struct Band {
    int sequence = -1;  // where two sides are compared, the reference's number
    int first = -1;     // positions, inclusive
    int last = -1;
  };
  static constexpr size_t kMaxBands = 96;
  static constexpr size_t kMaxColumns = 64;

  std::vector<Band> bands;    // by sequence and position
  bool heads = false;         // columns are heads; else blocks of channels
  int64_t columns = 0;        // attention tensors: heads; 0: rows without elements
  int64_t per_column = 0;     // heads, or channels, of a column; the last may have fewer
  std::vector<float> values;  // [bands, columns], or [bands] without columns; infinite where one side is not finite
};

// Signed errors in noise units (captured - recomputed), counted in bins of kBinWidth around 0, which is the middle of
// the middle bin. What lies outside is counted in `below` and `above`.
struct ErrorHistogram {
  static constexpr size_t kBins = 65;
  static constexpr double kBinWidth = 0.25;

  std::array<int64_t, kBins> counts{};
  int64_t below = 0, above = 0;
};

// The values of both sides around PointResult::worst: up to two rows of its sequence before and after it (of a live
// comparison those of its step), up to four channels or keys on either side. Where no two numbers could be compared,
// around the first element that could not; empty where all are equal NaNs or infinities.
struct ValueWindow {
  int sequence = -1;
  int head = -1;                 // -1: the point has no heads
  std::vector<int> positions;    // rows
  std::vector<int> channels;     // columns; of attention tensors absolute key positions
  std::vector<float> reference;  // [positions, channels]; keys that a row has not: -infinity in scores, 0 in probs
  std::vector<float> candidate;
};

// One phase of a run alone (prefill or decode, by the candidate's steps): its rows together.
struct PhaseErrors {
  double prefill = 0;  // NaN: no such rows
  double decode = 0;
};

// Of a comparison of two sides.
struct DifferenceDetail {
  // Relative L2 of the row's column: |a - b| / |b|; infinite also where only b is zero, or where the masks differ.
  // Bands are cut from the rows joined; in a live comparison from the reference's.
  ErrorMap map;
  ValueWindow window;
  PhaseErrors relative_l2;
};

// Of a replay.
struct LocalDetail {
  ErrorMap map;  // root mean square of the row's column, in noise units
  ErrorHistogram histogram;
  PhaseErrors whole;  // root mean square over all elements
};

}  // namespace lockstep
