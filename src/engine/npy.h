// Reading a .npy file (numpy's format, versions 1 to 3) of floats in C order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lockstep {

struct Npy {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// Throws Error for anything that is not a whole .npy file of little-endian f16, f32 or f64 in C order.
Npy ReadNpy(const std::string& path);

}  // namespace lockstep
