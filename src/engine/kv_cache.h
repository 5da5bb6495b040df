// Keys and values of every layer and sequence, head-major so that attention reads one head's keys in a row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/kernels.h"
#include "lockstep/checkpoint.h"

namespace lockstep {

class KvCache {
 public:
  KvCache(const Config& config, DType dtype, int num_sequences, int64_t capacity);

  int num_sequences() const { return static_cast<int>(lengths_.size()); }
  int64_t capacity() const { return capacity_; }
  int64_t Length(int sequence) const { return lengths_[static_cast<size_t>(sequence)]; }

  // Writes one token's key and value (each [kv_heads, head_dim]) at `position`. REQUIRES: position < capacity().
  void Write(int64_t layer, int sequence, int64_t position, const std::byte* k, const std::byte* v);
  kernels::KvView View(int64_t layer, int sequence) const;
  // After all layers have written them: the sequence is `tokens` longer.
  void Advance(int sequence, int64_t tokens) { lengths_[static_cast<size_t>(sequence)] += tokens; }

 private:
  size_t Offset(int64_t layer, int sequence) const;

  int64_t kv_heads_, row_bytes_, capacity_;
  std::vector<int64_t> lengths_;  // [sequences]
  std::unique_ptr<std::byte[]>
      data_;  // [layers, sequences, (k, v), kv_heads, capacity, head_dim]; touched only where written
};

}  // namespace lockstep
