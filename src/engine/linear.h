// y = x · Wᵀ with W packed once into panels (simd/row_kernels.h); 16-bit weights are read as they are on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/aligned_bytes.h"
#include "engine/simd/row_kernels.h"
#include "lockstep/dtype.h"

namespace lockstep {

class Linear {
 public:
  Linear() = default;
  // weight: [out, in], dense, in the storage dtype; it is packed, not kept.
  Linear(const std::byte* weight, int64_t out, int64_t in, DType storage);

  // x: [rows, in], y: [rows, out], both dense and in the storage dtype. Sums in f32, rounded once. A row's bits depend
  // on nothing but that row: not on the number of rows or threads.
  void Apply(const void* x, int64_t rows, void* y) const;

  int64_t out() const { return out_; }
  int64_t in() const { return in_; }

  // The weight [out, in] again, from the packed memory that the product reads.
  std::vector<std::byte> Unpacked() const;

 private:
  int64_t Element() const { return static_cast<int64_t>(DTypeSize(storage_)); }
  int64_t Depth() const;  // of a panel: `in` rounded up to whole pairs
  int64_t NumPanels() const;
  std::byte* Panel(int64_t p) const;
  template <typename Copy>
  void ForPanel(int64_t p, Copy&& copy) const;
  const std::byte* Operands(const std::byte* x, int64_t rows) const;
  void ApplyPanel(const std::byte* operands, int64_t p, int64_t begin, int64_t rows, std::byte* y) const;

  int64_t out_ = 0, in_ = 0;
  DType storage_ = DType::kF32;
  const RowKernels* kernels_ = nullptr;
  AlignedBytes panels_;
};

}  // namespace lockstep
