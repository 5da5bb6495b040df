// y = x · Wᵀ through oneDNN, with W packed once. The one place that knows oneDNN.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "lockstep/checkpoint.h"
#include "lockstep/dtype.h"

namespace lockstep {

class Linear {
 public:
  Linear();
  // Converts the checkpoint's weight [out, in] to `storage` and packs it.
  Linear(const Weight& weight, DType storage);
  Linear(Linear&&) noexcept;
  Linear& operator=(Linear&&) noexcept;
  ~Linear();

  // x: [rows, in], y: [rows, out], both dense and in the storage dtype. Sums in f32, rounded once.
  void Apply(const void* x, int64_t rows, void* y) const;

  int64_t out() const;
  int64_t in() const;

  // Of the packed memory, unpacked again (docs/trace-format.md).
  std::string Fingerprint() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

std::string MatmulDescription();

}  // namespace lockstep
