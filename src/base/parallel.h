// One thread pool for everything: OpenMP, the runtime that oneDNN uses too.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>

namespace lockstep {

int MaxThreads();

// Calls body(i) for i in [0, count), spread over the threads in contiguous blocks. The first exception is rethrown in
// the caller.
template <typename Body>
void ParallelFor(int64_t count, Body&& body) {
  std::exception_ptr error;
  std::mutex mutex;
#pragma omp parallel for schedule(static) if (count > 1)
  for (int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace lockstep
