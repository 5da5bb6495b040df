#include "diagnose/linear.h"

namespace lockstep {
namespace {

struct Scheme {
  Coarse grid;
  ScaleOf scale;
  int64_t group;
  const char* text;
};

constexpr Scheme kSchemes[] = {
    {Coarse::kBF16, ScaleOf::kNone, 0, "bf16"},
    {Coarse::kF16, ScaleOf::kNone, 0, "f16"},
    {Coarse::kE4M3, ScaleOf::kNone, 0, "fp8 (e4m3) without a scale"},
    {Coarse::kE4M3, ScaleOf::kTensor, 0, "fp8 (e4m3), one scale for the tensor"},
    {Coarse::kE4M3, ScaleOf::kRow, 0, "fp8 (e4m3), one scale a row"},
    {Coarse::kE4M3, ScaleOf::kGroup, 128, "fp8 (e4m3), groups of 128"},
    {Coarse::kE5M2, ScaleOf::kNone, 0, "fp8 (e5m2) without a scale"},
    {Coarse::kE5M2, ScaleOf::kTensor, 0, "fp8 (e5m2), one scale for the tensor"},
    {Coarse::kE5M2, ScaleOf::kRow, 0, "fp8 (e5m2), one scale a row"},
    {Coarse::kInt8, ScaleOf::kTensor, 0, "int8, one scale for the tensor"},
    {Coarse::kInt8, ScaleOf::kRow, 0, "int8, one scale a row"},
    {Coarse::kInt8, ScaleOf::kGroup, 32, "int8, groups of 32"},
    {Coarse::kInt8, ScaleOf::kGroup, 64, "int8, groups of 64"},
    {Coarse::kInt8, ScaleOf::kGroup, 128, "int8, groups of 128"},
    {Coarse::kInt4, ScaleOf::kRow, 0, "int4, one scale a row"},
    {Coarse::kInt4, ScaleOf::kGroup, 32, "int4, groups of 32"},
    {Coarse::kInt4, ScaleOf::kGroup, 64, "int4, groups of 64"},
    {Coarse::kInt4, ScaleOf::kGroup, 128, "int4, groups of 128"},
};

}  // namespace

void AddGrids(const Probe& probe, std::vector<Hypothesis>* out) {
  const Case& fault = probe.fault();
  const MatrixPtr& weight = fault.errors.call.matrix;
  const DType storage = fault.errors.arithmetic.storage;
  for (const Scheme& scheme : kSchemes) {
    if (scheme.grid == Coarse::kBF16 && storage == DType::kBF16) continue;
    if (scheme.grid == Coarse::kF16 && storage == DType::kF16) continue;
    if (scheme.scale == ScaleOf::kGroup && weight->columns % scheme.group != 0) continue;
    for (const DType result : {storage, DType::kF64}) {
      if (result == DType::kF64 && storage == DType::kF32) continue;
      const MatrixPtr coarse = Quantised(weight, scheme.grid, scheme.scale, scheme.group, result);
      if (!probe.Reproduces(*coarse)) continue;
      AddWeight(probe, "linear-weight-rounded", std::string("uses the weight rounded to ") + scheme.text, coarse, out);
    }
  }
}

}  // namespace lockstep
