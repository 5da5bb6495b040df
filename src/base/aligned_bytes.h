// Memory for vectors: at the start of a cache line, not initialised, in huge pages where it is large and the system
// gives them, so that reading all of it costs few page faults and few misses of the TLB.
#pragma once

#include <cstddef>
#include <memory>

namespace lockstep {

class AlignedBytes {
 public:
  AlignedBytes() = default;
  // Throws std::bad_alloc.
  explicit AlignedBytes(size_t size);
  std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte[], Free> data_;
  size_t size_ = 0;
};

}  // namespace lockstep
