// What the machine can do, measured.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/aligned_bytes.h"
#include "lockstep/dtype.h"

namespace lockstep {

// How fast all threads together read memory, over a buffer that no cache holds.
class ReadBandwidth {
 public:
  ReadBandwidth();
  double Measure() const;  // bytes/s, the best of a few passes

  static int64_t BufferBytes();

 private:
  AlignedBytes buffer_;
};

// How fast all threads together multiply and add in registers, with the instruction that the engine's matrix products
// can use for a dtype. 16-bit dtypes without an instruction of their own are widened to f32, so f32 is their limit.
class PeakFlops {
 public:
  explicit PeakFlops(DType dtype);
  const std::string& loop() const { return name_; }  // "vdpbf16ps, 512 bits"
  double Measure() const;                            // FLOP/s, the best of a few bursts

 private:
  std::string name_;
  double (*burst_)(int64_t iterations) = nullptr;
  double flops_ = 0;  // of an iteration
};

// The processor has matrix tiles for the dtype, which PeakFlops does not measure.
bool HasTiles(DType dtype);

// Bytes/s of `bytes` bytes into a new file, which is removed; the system's own caching included, as for any writer.
// Throws Error.
double MeasureWriteBandwidth(const std::string& path, int64_t bytes);

}  // namespace lockstep
