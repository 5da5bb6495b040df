// One loop an instruction set. Enough independent sums hide the latency of an instruction (4 to 6 cycles, two of them
// started a cycle), and few enough stay in registers.
#include <algorithm>
#include <array>
#include <cmath>

#include "base/clock.h"
#include "base/parallel.h"
#include "bench/machine.h"
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace lockstep {
namespace {

constexpr int64_t kIterations = 4'000'000;  // of a burst: some 10 ms
constexpr int kBursts = 3;

#if defined(__x86_64__)
constexpr int kSums = 16;
constexpr int kSums256 = 12;  // of 16 registers, two hold the factors

__attribute__((target("avx512f,avx512bf16"))) double Bf16Avx512(int64_t iterations) {
  __m512 sums[kSums];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  const auto x = (__m512bh)_mm512_set1_epi16(0x3f80);  // 1.0
  for (int64_t i = 0; i < iterations; ++i) {
    for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, x, x);
  }
  for (int s = 1; s < kSums; ++s) sums[0] = _mm512_add_ps(sums[0], sums[s]);
  return _mm512_cvtss_f32(sums[0]);
}

__attribute__((target("avx512f"))) double F32Avx512(int64_t iterations) {
  __m512 sums[kSums];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  const __m512 x = _mm512_set1_ps(0.5F);
  for (int64_t i = 0; i < iterations; ++i) {
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(sum, x, x);
  }
  for (int s = 1; s < kSums; ++s) sums[0] = _mm512_add_ps(sums[0], sums[s]);
  return _mm512_cvtss_f32(sums[0]);
}

__attribute__((target("avx2,fma"))) double F32Avx2(int64_t iterations) {
  __m256 sums[kSums256];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  const __m256 x = _mm256_set1_ps(0.5F);
  for (int64_t i = 0; i < iterations; ++i) {
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(sum, x, x);
  }
  for (int s = 1; s < kSums256; ++s) sums[0] = _mm256_add_ps(sums[0], sums[s]);
  return _mm256_cvtss_f32(sums[0]);
}
#endif

// For the compiler to vectorise with what the build targets; fused where that has an instruction for it.
constexpr int kPortableLanes = 48;

double F32Portable(int64_t iterations) {
  std::array<float, kPortableLanes> sums{};
  const float x = 0.5F;
  for (int64_t i = 0; i < iterations; ++i) {
    for (float& sum : sums) {
#ifdef FP_FAST_FMAF
      sum = std::fma(sum, x, x);
#else
      sum = sum * x + x;
#endif
    }
  }
  double all = 0;
  for (const float sum : sums) all += sum;
  return all;
}

}  // namespace

PeakFlops::PeakFlops([[maybe_unused]] DType dtype)
    : name_("f32 multiply and add, portable"), burst_(F32Portable), flops_(2.0 * kPortableLanes) {
#if defined(__x86_64__)
  if (dtype == DType::kBF16 && __builtin_cpu_supports("avx512bf16")) {
    name_ = "bf16 vdpbf16ps, 512 bits";
    burst_ = Bf16Avx512;
    flops_ = kSums * 16 * 4.0;  // lanes, and two products with two additions in each
  } else if (__builtin_cpu_supports("avx512f")) {
    name_ = "f32 FMA, 512 bits";
    burst_ = F32Avx512;
    flops_ = kSums * 16 * 2.0;
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    name_ = "f32 FMA, 256 bits";
    burst_ = F32Avx2;
    flops_ = kSums256 * 8 * 2.0;
  }
#endif
}

bool HasTiles([[maybe_unused]] DType dtype) {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;  // not every compiler's __builtin_cpu_supports knows amx-bf16
  constexpr unsigned kAmxBf16 = 1U << 22;
  return dtype == DType::kBF16 && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmxBf16) != 0;
#else
  return false;
#endif
}

double PeakFlops::Measure() const {
  const int threads = MaxThreads();
  std::vector<double> sums(static_cast<size_t>(threads));  // kept, so that the loops are not left out
  double best = 0;
  for (int burst = 0; burst < kBursts; ++burst) {
    const auto start = Clock::now();
    ParallelFor(threads, [&](int64_t i) { sums[static_cast<size_t>(i)] = burst_(kIterations); });
    const double seconds = SecondsSince(start);
    best = std::max(best, threads * flops_ * static_cast<double>(kIterations) / seconds);
  }
  return best;
}

}  // namespace lockstep
