#include "engine/kv_cache.h"

#include <new>
#include <string>

#include "base/round.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

// Beyond it a wrong number is likelier than a large machine.
constexpr size_t kMaxBytes = size_t{1} << 40;

}  // namespace

KvCache::KvCache(const Config& config, DType dtype, int num_sequences, int64_t capacity) : capacity_(capacity) {
  const kernels::AttentionShape shape{config.num_attention_heads, config.num_key_value_heads, config.head_dim};
  const size_t per_token = kernels::KeyBytes(dtype, shape, 1) + kernels::ValueBytes(dtype, shape, 1);
  size_t bytes = 0;
  if (__builtin_mul_overflow(per_token, static_cast<size_t>(capacity), &bytes) ||
      __builtin_mul_overflow(bytes, static_cast<size_t>(config.num_hidden_layers * num_sequences), &bytes) ||
      bytes > kMaxBytes) {
    throw Error("the KV cache of " + std::to_string(num_sequences) + " sequences of " + std::to_string(capacity) +
                " tokens needs more than 1 TiB; ask for fewer");
  }
  padded_capacity_ = RoundUp(capacity, kernels::kCapacityStep);
  key_bytes_ = kernels::KeyBytes(dtype, shape, padded_capacity_);
  value_bytes_ = kernels::ValueBytes(dtype, shape, padded_capacity_);
  lengths_.resize(static_cast<size_t>(num_sequences));
  const size_t blocks = static_cast<size_t>(config.num_hidden_layers) * lengths_.size();
  data_.reset(static_cast<std::byte*>(std::calloc(blocks, key_bytes_ + value_bytes_)));
  if (!data_) {
    throw Error("no memory for a KV cache of " + std::to_string(blocks * (key_bytes_ + value_bytes_) >> 20) +
                " MiB; ask for fewer tokens or sequences");
  }
}

kernels::KvView KvCache::View(int64_t layer, int sequence) const {
  const auto block = static_cast<size_t>(layer * num_sequences() + sequence);
  std::byte* keys = data_.get() + block * (key_bytes_ + value_bytes_);
  return {keys, keys + key_bytes_, padded_capacity_};
}

}  // namespace lockstep
