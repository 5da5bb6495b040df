#include "engine/isa.h"

#include <oneapi/dnnl/dnnl.hpp>

namespace lockstep {
namespace {

Isa FindIsa() {
#if defined(__x86_64__)
  const auto has = [effective = static_cast<unsigned>(dnnl::get_effective_cpu_isa())](dnnl::cpu_isa isa) {
    return (effective & static_cast<unsigned>(isa)) == static_cast<unsigned>(isa);
  };
  if (has(dnnl::cpu_isa::avx512_core_bf16)) return Isa::kAvx512Bf16;
  if (has(dnnl::cpu_isa::avx512_core)) return Isa::kAvx512;
  if (has(dnnl::cpu_isa::avx2) && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

}  // namespace

Isa CpuIsa() {
  static const Isa isa = FindIsa();
  return isa;
}

}  // namespace lockstep
