#include "replay/product.h"

#include <algorithm>
#include <vector>

#include "base/round.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LOCKSTEP_X86_KERNELS
#endif

namespace lockstep {
namespace {

struct ProductKernels {
  void (*product64)(Strided<const double>, int64_t, Strided<const double>, int64_t, int64_t, Strided<double>);
  void (*product32)(Strided<const float>, int64_t, Strided<const float>, int64_t, int64_t, Strided<float>);
  void (*add_scaled)(double, const double*, int64_t, double*);
};

namespace baseline {
#define LOCKSTEP_VECTOR_BYTES 16
#include "replay/product_body.h"
#undef LOCKSTEP_VECTOR_BYTES
}  // namespace baseline

#ifdef LOCKSTEP_X86_KERNELS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
#define LOCKSTEP_VECTOR_BYTES 32
#include "replay/product_body.h"
#undef LOCKSTEP_VECTOR_BYTES
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
#define LOCKSTEP_VECTOR_BYTES 64
#include "replay/product_body.h"
#undef LOCKSTEP_VECTOR_BYTES
}  // namespace avx512
#pragma GCC pop_options
#endif

const ProductKernels& Best() {
#ifdef LOCKSTEP_X86_KERNELS
  static const ProductKernels& best = []() -> const ProductKernels& {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4")) return avx512::kKernels;
    if (__builtin_cpu_supports("x86-64-v3")) return avx2::kKernels;
    return baseline::kKernels;
  }();
  return best;
#else
  return baseline::kKernels;
#endif
}

}  // namespace

void Product(Strided<const double> x, int64_t rows, Strided<const double> w, int64_t columns, int64_t depth,
             Strided<double> y) {
  Best().product64(x, rows, w, columns, depth, y);
}

void Product(Strided<const float> x, int64_t rows, Strided<const float> w, int64_t columns, int64_t depth,
             Strided<float> y) {
  Best().product32(x, rows, w, columns, depth, y);
}

void AddScaled(double factor, const double* x, int64_t count, double* y) { Best().add_scaled(factor, x, count, y); }

}  // namespace lockstep
