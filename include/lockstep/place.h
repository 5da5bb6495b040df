// Where a value stands in a trace.
#pragma once

namespace lockstep {

// An element, or with head and channel -1 a token.
struct Place {
  int sequence = -1;  // where two sides are compared, the reference's number
  int position = -1;
  int head = -1;     // -1: the point has no heads
  int channel = -1;  // index within the head, or within the row; for attention tensors the absolute key position
};

}  // namespace lockstep
