// The tables of each instruction set; row_kernels.cc chooses.
#pragma once

#include "engine/simd/row_kernels.h"

namespace lockstep {

const RowKernels* BaselineKernels(DType dtype);
// Only on x86-64.
const RowKernels* Avx2Kernels(DType dtype);
const RowKernels* Avx512Kernels(DType dtype);
const RowKernels* Avx512Bf16Kernels(DType dtype);

}  // namespace lockstep
