// Where a model's weights come from: a checkpoint, or a formula.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "lockstep/checkpoint.h"
#include "lockstep/dtype.h"

namespace lockstep {

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual const Config& config() const = 0;
  // Elements [begin, begin + count) of a weight, by its name in the checkpoint, rounded to `dtype`.
  virtual void Read(const std::string& name, int64_t begin, int64_t count, DType dtype, std::byte* out) const = 0;
  // The weight was read for the time being: its pages may go.
  virtual void Release(const std::string& name) const = 0;
  virtual const Checkpoint* checkpoint() const { return nullptr; }
};

std::unique_ptr<WeightSource> SourceOf(Checkpoint checkpoint);

// Norms about 1, everything else about 0 with a standard deviation of 0.02: an element depends on the seed, the name
// and its index alone.
std::unique_ptr<WeightSource> RandomSource(const Config& config, uint64_t seed);

}  // namespace lockstep
