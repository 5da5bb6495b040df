#include "engine/isa.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>
#include <string_view>

#include "lockstep/error.h"

namespace lockstep {
namespace {

constexpr std::array<const char*, 4> kNames = {"baseline", "avx2", "avx512", "avx512_bf16"};

Isa Best() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!avx2) return Isa::kBaseline;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx512) return Isa::kAvx2;
  return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
#else
  return Isa::kBaseline;
#endif
}

Isa Cap() {
  const char* text = std::getenv("LOCKSTEP_MAX_ISA");
  if (text == nullptr) return Isa::kAvx512Bf16;
  const auto* found = std::find(kNames.begin(), kNames.end(), std::string_view(text));
  if (found == kNames.end()) {
    throw Error("LOCKSTEP_MAX_ISA: expected baseline, avx2, avx512 or avx512_bf16, found \"" + std::string(text) +
                "\"");
  }
  return static_cast<Isa>(found - kNames.begin());
}

}  // namespace

const char* IsaName(Isa isa) { return kNames[static_cast<size_t>(isa)]; }

Isa CpuIsa() {
  static const Isa isa = std::min(Best(), Cap());
  return isa;
}

}  // namespace lockstep
