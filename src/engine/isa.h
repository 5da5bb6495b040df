// Which instructions the kernels use: the best that the machine has, or less where LOCKSTEP_MAX_ISA says so (baseline,
// avx2, avx512, avx512_bf16), for tests and for measurements.
#pragma once

#include <cstdint>

namespace lockstep {

enum class Isa : uint8_t {
  kBaseline,    // what every x86-64 has, and every other architecture
  kAvx2,        // with FMA and F16C
  kAvx512,      // F, BW, DQ, VL
  kAvx512Bf16,  // with products of pairs of bf16
};
const char* IsaName(Isa isa);  // "avx512_bf16"

// Throws Error where LOCKSTEP_MAX_ISA is none of these.
Isa CpuIsa();

}  // namespace lockstep
