// One thread pool for everything: OpenMP, the runtime that oneDNN uses too.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>

namespace lockstep {

int MaxThreads();

// For the loops that this thread starts from here on, oneDNN's among them. Without OpenMP there is one thread.
// REQUIRES: threads > 0.
void SetMaxThreads(int threads);

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
