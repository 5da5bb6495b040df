#include "engine/simd/row_kernels.h"

#include "engine/isa.h"
#include "engine/simd/tables.h"

namespace lockstep {

const RowKernels& RowKernelsFor(DType dtype) {
#if defined(__x86_64__)
  switch (CpuIsa()) {
    case Isa::kAvx512Bf16: return *Avx512Bf16Kernels(dtype);
    case Isa::kAvx512: return *Avx512Kernels(dtype);
    case Isa::kAvx2: return *Avx2Kernels(dtype);
    case Isa::kBaseline: break;
  }
#endif
  return *BaselineKernels(dtype);
}

}  // namespace lockstep
