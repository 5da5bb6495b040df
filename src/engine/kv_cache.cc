#include "engine/kv_cache.h"

#include <cstring>
#include <new>
#include <string>

#include "lockstep/error.h"

namespace lockstep {
namespace {

// Beyond it a wrong number is likelier than a large machine.
constexpr size_t kMaxBytes = size_t{1} << 40;

}  // namespace

KvCache::KvCache(const Config& config, DType dtype, int num_sequences, int64_t capacity)
    : kv_heads_(config.num_key_value_heads),
      row_bytes_(config.head_dim * static_cast<int64_t>(DTypeSize(dtype))),
      capacity_(capacity) {
  size_t bytes = 0;
  if (__builtin_mul_overflow(2 * static_cast<size_t>(kv_heads_ * row_bytes_), static_cast<size_t>(capacity), &bytes) ||
      __builtin_mul_overflow(bytes, static_cast<size_t>(config.num_hidden_layers * num_sequences), &bytes) ||
      bytes > kMaxBytes) {
    throw Error("the KV cache of " + std::to_string(num_sequences) + " sequences of " + std::to_string(capacity) +
                " tokens needs more than 1 TiB; ask for fewer");
  }
  try {
    data_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
    lengths_.resize(static_cast<size_t>(num_sequences));
  } catch (const std::bad_alloc&) {
    throw Error("no memory for a KV cache of " + std::to_string(bytes >> 20) +
                " MiB; ask for fewer tokens or sequences");
  }
}

size_t KvCache::Offset(int64_t layer, int sequence) const {
  const int64_t block = layer * num_sequences() + sequence;
  return static_cast<size_t>(block * 2 * kv_heads_ * capacity_ * row_bytes_);
}

void KvCache::Write(int64_t layer, int sequence, int64_t position, const std::byte* k, const std::byte* v) {
  std::byte* keys = data_.get() + Offset(layer, sequence);
  std::byte* values = keys + kv_heads_ * capacity_ * row_bytes_;
  for (int64_t head = 0; head < kv_heads_; ++head) {
    const int64_t to = (head * capacity_ + position) * row_bytes_;
    std::memcpy(keys + to, k + head * row_bytes_, static_cast<size_t>(row_bytes_));
    std::memcpy(values + to, v + head * row_bytes_, static_cast<size_t>(row_bytes_));
  }
}

kernels::KvView KvCache::View(int64_t layer, int sequence) const {
  const std::byte* keys = data_.get() + Offset(layer, sequence);
  return {keys, keys + kv_heads_ * capacity_ * row_bytes_, capacity_};
}

}  // namespace lockstep
