// Keys and values of every layer and sequence, in the panels that attention multiplies (attention.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "engine/attention.h"
#include "lockstep/checkpoint.h"

namespace lockstep {

class KvCache {
 public:
  // Throws Error where there is no memory for it.
  KvCache(const Config& config, DType dtype, int num_sequences, int64_t capacity);

  int num_sequences() const { return static_cast<int>(lengths_.size()); }
  int64_t capacity() const { return capacity_; }
  int64_t Length(int sequence) const { return lengths_[static_cast<size_t>(sequence)]; }

  kernels::KvView View(int64_t layer, int sequence) const;
  // After all layers have written them: the sequence is `tokens` longer.
  void Advance(int sequence, int64_t tokens) { lengths_[static_cast<size_t>(sequence)] += tokens; }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };

  int64_t capacity_, padded_capacity_;
  size_t key_bytes_, value_bytes_;           // of one layer of one sequence
  std::vector<int64_t> lengths_;             // [sequences]
  std::unique_ptr<std::byte[], Free> data_;  // [layers, sequences, (k, v)]; zero pages until written
};

}  // namespace lockstep
