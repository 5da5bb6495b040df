// What every machine can do: SSE2, NEON, or whatever the compiler makes of vectors of four.
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
  switch (dtype) {
    case DType::kBF16: return &kTable<BF16>;
    case DType::kF16: return &kTable<F16>;
    default: return &kTable<float>;
  }
}

}  // namespace lockstep
