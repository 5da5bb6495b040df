// Words of what `lockstep show` prints.
#pragma once

#include <string>

#include "lockstep/inspect.h"

namespace lockstep {

// "512 B", "1.25 MiB"
std::string BytesText(int64_t bytes);

// "NaN", "all zero", …
std::string AilmentWord(AilmentKind kind);

// "3 NaN, the first in step 0 at sequence 0, position 5, head 2, channel 1"
std::string AilmentText(const Ailment& ailment);

// "[token 18, q_head 6, head_dim 48]"
std::string AxesText(int64_t rows, const ListedPoint& point);

}  // namespace lockstep
