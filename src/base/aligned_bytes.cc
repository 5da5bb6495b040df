#include "base/aligned_bytes.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#include "base/round.h"

namespace lockstep {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

AlignedBytes::AlignedBytes(size_t size) : size_(size) {
  const size_t step = size >= kHugePage ? kHugePage : kCacheLine;
  const size_t rounded = RoundUp(size, step);
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(step, rounded)));
  if (!data_ && rounded > 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (size >= kHugePage) madvise(data_.get(), size, MADV_HUGEPAGE);  // the rest of the last page stays small
#endif
}

void AlignedBytes::Free::operator()(std::byte* data) const { std::free(data); }

}  // namespace lockstep
