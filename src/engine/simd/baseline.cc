// What every machine can do: SSE2, NEON, or whatever the compiler makes of vectors of four.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/convert.h"
#include "engine/simd/tables.h"

#define LOCKSTEP_WIDTH 4

namespace lockstep {
namespace {
#include "engine/simd/vectors.h"
// Below the vectors that it is written in.
#include "engine/simd/row_kernels_impl.h"
}  // namespace

const RowKernels* BaselineKernels(DType dtype) {
  return WithStorageType(dtype, []<typename T>() { return &kTable<T>; });
}

}  // namespace lockstep
