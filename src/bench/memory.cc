#include "bench/memory.h"

#include <algorithm>
#include <fstream>
#include <optional>

#include "bench/flops.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

// "MemAvailable:   12345 kB" -> bytes.
std::optional<int64_t> KibibytesLine(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with(key + ":")) return std::stoll(line.substr(key.size() + 1)) * 1024;
  }
  return std::nullopt;
}

// A file that holds one number; none where it says "max" or is not there.
std::optional<int64_t> NumberIn(const char* path) {
  std::ifstream file(path);
  int64_t number = 0;
  return file >> number ? std::optional(number) : std::nullopt;
}

}  // namespace

int64_t AvailableMemory() {
  const std::optional<int64_t> available = KibibytesLine("/proc/meminfo", "MemAvailable");
  const std::optional<int64_t> limit = NumberIn("/sys/fs/cgroup/memory.max");
  const std::optional<int64_t> used = NumberIn("/sys/fs/cgroup/memory.current");
  if (limit && used) return std::min(*limit - *used, available.value_or(*limit));
  return available.value_or(-1);
}

int64_t PeakMemory() { return KibibytesLine("/proc/self/status", "VmHWM").value_or(0); }

int64_t EngineMemory(const Config& config, DType dtype, int64_t capacity, int64_t logits_rows) {
  const auto size = static_cast<int64_t>(DTypeSize(dtype));
  const int64_t activations = capacity * (3 * config.hidden_size + 2 * config.intermediate_size) * size;
  const int64_t logits = logits_rows * config.vocab_size * (size + static_cast<int64_t>(sizeof(float)));
  return PackedElements(config) * size + CacheBytes(config, dtype, capacity) + std::max(activations, logits);
}

void RequireMemory(const std::string& what, int64_t needed, int64_t available) {
  if (available < 0 || needed <= available) return;
  throw Error(what + ": expected at least " + std::to_string(needed >> 20) + " MiB of memory, found " +
              std::to_string(available >> 20) + " MiB available; take a smaller shape or dtype, or shorter lengths");
}

}  // namespace lockstep
