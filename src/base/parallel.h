// One thread pool for everything: OpenMP.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>

#include "base/round.h"

namespace lockstep {

int MaxThreads();

// For the loops that this thread starts from here on. Without OpenMP there is one thread.
// REQUIRES: threads > 0.
void SetMaxThreads(int threads);

// The first exception of a loop's bodies, to be rethrown in the caller: none may leave a thread of OpenMP.
class FirstException {
 public:
  template <typename Body>
  void Guard(Body&& body) {
    try {
      body();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
  void Rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr error_;
};

// Calls body(i) for i in [0, count), spread over the threads in contiguous blocks; without them where `parallel` is
// false, which saves waking them for little work.
template <typename Body>
void ParallelForIf(bool parallel, int64_t count, Body&& body) {
  FirstException error;
#pragma omp parallel for schedule(static) if (parallel && count > 1)
  for (int64_t i = 0; i < count; ++i) error.Guard([&] { body(i); });
  error.Rethrow();
}

template <typename Body>
void ParallelFor(int64_t count, Body&& body) {
  ParallelForIf(true, count, body);
}

// Calls body(begin, size) for blocks of at most `block` elements of [0, count).
template <typename Body>
void ParallelForBlocks(bool parallel, int64_t count, int64_t block, Body&& body) {
  ParallelForIf(parallel, CeilDiv(count, block), [&](int64_t i) {
    const int64_t begin = i * block;
    body(begin, std::min(block, count - begin));
  });
}

// ParallelFor for bodies of unequal length: a thread takes the next as it finishes one.
template <typename Body>
void ParallelForDynamic(int64_t count, Body&& body) {
  FirstException error;
#pragma omp parallel for schedule(dynamic) if (count > 1)
  for (int64_t i = 0; i < count; ++i) error.Guard([&] { body(i); });
  error.Rethrow();
}

}  // namespace lockstep
