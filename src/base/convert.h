// bf16 and f16 as storage types. Widening is exact; narrowing rounds to nearest even, as PyTorch does.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "lockstep/dtype.h"

namespace lockstep {

// Stored bits of fraction of F32, F16 and BF16.
constexpr int FractionBits(DType dtype) { return dtype == DType::kBF16 ? 7 : dtype == DType::kF16 ? 10 : 23; }

struct BF16 {
  uint16_t bits = 0;
};
struct F16 {
  uint16_t bits = 0;
};

inline float ToFloat(float value) { return value; }
inline float ToFloat(double value) { return static_cast<float>(value); }

inline float ToFloat(BF16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

inline float ToFloat(F16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1Fu;
  const uint32_t fraction = value.bits & 0x3FFu;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000u | (fraction << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  // Zero or subnormal: fraction · 2^-24 is exact in f32.
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

template <typename T>
T FromFloat(float value);

template <>
inline float FromFloat<float>(float value) {
  return value;
}

template <>
inline BF16 FromFloat<BF16>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {0x7FC0};  // NaN: the carry below could turn it into an infinity
  return {static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
inline F16 FromFloat<F16>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {static_cast<uint16_t>(sign | 0x7E00u)};
  if (magnitude >= 0x477FF000u) return {static_cast<uint16_t>(sign | 0x7C00u)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal in f16: adding 0.5 lets the f32 adder round at 2^-24, the step of an f16 subnormal.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3F000000u))};
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

// Unaligned load of element `index`: tensors in trace files may lie at odd addresses.
template <typename T>
T LoadElement(const std::byte* data, size_t index) {
  T value;
  std::memcpy(&value, data + index * sizeof(T), sizeof(T));
  return value;
}

// Converts `count` elements of any numeric dtype to f32 (f64 and integers are rounded). Exact for F32, BF16, F16.
void WidenToFloat(DType dtype, const std::byte* data, size_t count, float* out);

// REQUIRES: dtype is F32, BF16 or F16.
void NarrowFromFloat(DType dtype, const float* values, size_t count, std::byte* out);

// Calls f.template operator()<T>() with the element type of a storage dtype. REQUIRES: dtype is F32, BF16 or F16.
template <typename F>
decltype(auto) WithStorageType(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBF16: return f.template operator()<BF16>();
    case DType::kF16: return f.template operator()<F16>();
    default: return f.template operator()<float>();
  }
}

}  // namespace lockstep
