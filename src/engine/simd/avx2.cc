// Haswell and later.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/convert.h"
#include "engine/simd/tables.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define LOCKSTEP_WIDTH 8

namespace lockstep {
namespace {
#include "engine/simd/vectors.h"
// Below the vectors that it is written in.
#include "engine/simd/row_kernels_impl.h"
}  // namespace

const RowKernels* Avx2Kernels(DType dtype) {
  return WithStorageType(dtype, []<typename T>() { return &kTable<T>; });
}

}  // namespace lockstep

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
