// Writing a .npy file (version 1.0, little-endian, C order) value by value; it appears whole or not at all.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "lockstep/dtype.h"

namespace lockstep {

// The dtype that a file has for values of `dtype`: F16 "<f2", F64 "<f8", I32 "<i4", other integers "<i8", and
// everything else, BF16 too, "<f4", which holds it exactly.
class NpyWriter {
 public:
  // Throws Error, as the others do.
  NpyWriter(const std::string& path, DType dtype, const std::vector<int64_t>& shape);
  ~NpyWriter();  // without Commit(), nothing stays
  NpyWriter(const NpyWriter&) = delete;
  NpyWriter& operator=(const NpyWriter&) = delete;

  void Append(const std::vector<double>& values);
  void Commit();

 private:
  [[noreturn]] void Fail() const;

  std::string path_, temporary_;
  DType dtype_;  // F16, F64, I32, I64 or F32
  std::FILE* file_ = nullptr;
  std::vector<std::byte> bytes_;
};

}  // namespace lockstep
