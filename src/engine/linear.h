// y = x · Wᵀ with W packed once: through oneDNN where it multiplies the storage dtype at the machine's full speed with
// bits that depend on nothing but the row (its AVX-512 kernels for f32, AVX-512-BF16 for bf16), else through the
// engine's own panels (simd/row_kernels.h), which read 16-bit weights as they are on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lockstep/dtype.h"

namespace lockstep {

// What applying Linears needs beside the weights: oneDNN's kernels by shape, made once, and scratch memory. One user
// at a time.
class LinearWorkspace {
 public:
  LinearWorkspace();
  LinearWorkspace(LinearWorkspace&&) noexcept;
  LinearWorkspace& operator=(LinearWorkspace&&) noexcept;
  ~LinearWorkspace();

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

class Linear {
 public:
  Linear();
  // weight: [out, in], dense, in the storage dtype; it is packed, not kept.
  Linear(const std::byte* weight, int64_t out, int64_t in, DType storage);
  Linear(Linear&&) noexcept;
  Linear& operator=(Linear&&) noexcept;
  ~Linear();

  // x: [rows, in], y: [rows, out], both dense and in the storage dtype. Sums in f32, rounded once. A row's bits depend
  // on nothing but that row: not on the number of rows or threads.
  void Apply(const void* x, int64_t rows, void* y, LinearWorkspace& workspace) const;

  int64_t out() const;
  int64_t in() const;

  // The weight [out, in] again, from the packed memory that the product reads.
  std::vector<std::byte> Unpacked() const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep
