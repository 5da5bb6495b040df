// Whole steps. REQUIRES (both): value >= 0, step > 0.
#pragma once

namespace lockstep {

template <typename T>
constexpr T CeilDiv(T value, T step) {
  return (value + step - 1) / step;
}

template <typename T>
constexpr T RoundUp(T value, T step) {
  return CeilDiv(value, step) * step;
}

}  // namespace lockstep
