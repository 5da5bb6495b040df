// Which instructions the engine's own kernels may use: what the machine has and oneDNN's ONEDNN_MAX_CPU_ISA allows, so
// that one variable caps both.
#pragma once

#include <cstdint>

namespace lockstep {

enum class Isa : uint8_t {
  kBaseline,    // what every x86-64 has, and every other architecture
  kAvx2,        // with FMA and F16C
  kAvx512,      // F, BW, DQ, VL
  kAvx512Bf16,  // with products of bf16
};

Isa CpuIsa();

}  // namespace lockstep
