// What looks unsound in one tensor of one step and rank.
#pragma once

#include <string>
#include <vector>

#include "lockstep/inspect.h"

namespace lockstep {

// Reads every value once. At most one of a kind. Nothing for dtypes that are no floats.
std::vector<Ailment> Examine(const TraceTensor& tensor, const TraceStep& step, size_t step_number);

// The place of element `index` of a row of that shape: heads where the first of several axes is one.
Place PlaceOf(int sequence, int position, const std::vector<std::string>& axes, const std::vector<int64_t>& row_shape,
              int64_t index);

}  // namespace lockstep
