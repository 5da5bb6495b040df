#include "base/convert.h"
#include "lockstep/trace.h"

namespace lockstep {

std::vector<float> ToFloats(const TraceTensor& tensor) {
  std::vector<float> out(tensor.bytes / DTypeSize(tensor.dtype));
  WidenToFloat(tensor.dtype, tensor.data, out.size(), out.data());
  return out;
}

}  // namespace lockstep
