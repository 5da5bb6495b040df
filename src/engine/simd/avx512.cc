// Skylake-X and later.
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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12, about its own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#endif

#define LOCKSTEP_WIDTH 16

namespace lockstep {
namespace {
#include "engine/simd/vectors.h"
// Below the vectors that it is written in.
#include "engine/simd/row_kernels_impl.h"
}  // namespace

const RowKernels* Avx512Kernels(DType dtype) {
  return WithStorageType(dtype, []<typename T>() { return &kTable<T>; });
}

}  // namespace lockstep

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
