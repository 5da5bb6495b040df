// Element types. `DType` itself is defined in capture.hpp, because that file has to stand alone in other people's
// engines.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

#include "lockstep/capture.hpp"

namespace lockstep {

// By its safetensors name ("BF16"), or the short names of the command line ("bf16", "f32", "f16").
std::optional<DType> ParseDType(std::string_view name);

inline bool IsFloat(DType dtype) {
  return dtype == DType::kF64 || dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

}  // namespace lockstep
