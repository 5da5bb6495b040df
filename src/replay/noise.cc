#include "replay/noise.h"

namespace lockstep {

Grid::Grid(DType dtype) {
  constexpr double kLeastNormal = 0x1p-126;
  switch (dtype) {
    case DType::kF64: *this = Grid(0, 0, 0, INFINITY, 0x1p-53); break;
    case DType::kBF16: *this = Grid(0x1p-7, 0x1p-133, kLeastNormal, 0x1.FEp127, 0x1p-8); break;
    case DType::kF16: *this = Grid(0x1p-10, 0x1p-24, 0x1p-24, 65504, 0x1p-11); break;
    default: *this = Grid(0x1p-23, 0x1p-149, kLeastNormal, 0x1.FFFFFEp127, 0x1p-24); break;
  }
}

}  // namespace lockstep
