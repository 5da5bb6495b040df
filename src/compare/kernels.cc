#include "compare/kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/fingerprint.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LOCKSTEP_X86_KERNELS
#include <immintrin.h>
#endif

#define LOCKSTEP_INLINE inline __attribute__((always_inline))
#define LOCKSTEP_LAMBDA __attribute__((always_inline))

namespace lockstep {
namespace {

constexpr size_t kLanes = 8;

namespace baseline {
#define LOCKSTEP_ISA_NAME "baseline"
#define LOCKSTEP_VECTOR_BYTES 16
#include "compare/kernels_body.h"
#undef LOCKSTEP_ISA_NAME
#undef LOCKSTEP_VECTOR_BYTES
}  // namespace baseline

#ifdef LOCKSTEP_X86_KERNELS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
#define LOCKSTEP_ISA_NAME "AVX2"
#define LOCKSTEP_VECTOR_BYTES 32
#include "compare/kernels_body.h"
#undef LOCKSTEP_ISA_NAME
#undef LOCKSTEP_VECTOR_BYTES
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
#define LOCKSTEP_ISA_NAME "AVX-512"
#define LOCKSTEP_VECTOR_BYTES 64
#include "compare/kernels_body.h"
#undef LOCKSTEP_ISA_NAME
#undef LOCKSTEP_VECTOR_BYTES
}  // namespace avx512
#pragma GCC pop_options
#endif

constexpr const Kernels* kAll[] = {
    &baseline::kKernels,
#ifdef LOCKSTEP_X86_KERNELS
    &avx2::kKernels,
    &avx512::kKernels,
#endif
};

size_t CountAvailable() {
#ifdef LOCKSTEP_X86_KERNELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return 3;
  if (__builtin_cpu_supports("x86-64-v3")) return 2;
#endif
  return 1;
}

}  // namespace

void Products::Add(const Products& other) {
  aa += other.aa;
  bb += other.bb;
  ab += other.ab;
  dd += other.dd;
}

double Products::Cosine() const {
  if (dd == 0) return 1;
  if (aa == 0 || bb == 0) return 0;
  // Two roots, for the product of tiny squares may underflow.
  return std::clamp(ab / (std::sqrt(aa) * std::sqrt(bb)), -1.0, 1.0);
}

double Products::RelativeL2() const {
  if (dd == 0) return 0;
  return bb == 0 ? std::numeric_limits<double>::infinity() : std::sqrt(dd) / std::sqrt(bb);
}

std::span<const Kernels* const> AvailableKernels() {
  static const size_t available = CountAvailable();
  return std::span(kAll).first(available);
}

const Kernels& BestKernels() { return *AvailableKernels().back(); }

}  // namespace lockstep
