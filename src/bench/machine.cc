#include "bench/machine.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "base/clock.h"
#include "base/parallel.h"
#include "lockstep/error.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lockstep {
namespace {

constexpr int kPasses = 3;
constexpr int64_t kMebibyte = int64_t{1} << 20;
constexpr int64_t kLeastBuffer = 512 * kMebibyte;
constexpr int64_t kCachesInBuffer = 4;
constexpr int64_t kStep = 32;  // elements that a loop below reads at a time

// Asking for lines some pages ahead keeps more of memory on its way than the processor does by itself.
constexpr int64_t kPrefetch = 1024;  // elements

uint64_t SumPlain(const uint64_t* data, int64_t count) { return std::accumulate(data, data + count, uint64_t{0}); }

#if defined(__x86_64__)
__attribute__((target("avx512f"))) uint64_t SumAvx512(const uint64_t* data, int64_t count) {
  __m512i a = _mm512_setzero_si512();
  __m512i b = a;
  __m512i c = a;
  __m512i d = a;
  for (int64_t i = 0; i + kStep <= count; i += kStep) {
    for (int64_t line = 0; line < kStep; line += 8) __builtin_prefetch(data + i + kPrefetch + line);
    a = _mm512_add_epi64(a, _mm512_loadu_si512(data + i));
    b = _mm512_add_epi64(b, _mm512_loadu_si512(data + i + 8));
    c = _mm512_add_epi64(c, _mm512_loadu_si512(data + i + 16));
    d = _mm512_add_epi64(d, _mm512_loadu_si512(data + i + 24));
  }
  alignas(64) uint64_t lanes[8];  // GCC 12 warns of its own header in _mm512_reduce_add_epi64
  _mm512_store_si512(lanes, _mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(c, d)));
  return SumPlain(lanes, 8);
}
#endif

// Wide loads keep more of memory on its way than baseline ones, by some 10 % on Zen 5.
auto SumFunction() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return SumAvx512;
#endif
  return SumPlain;
}

}  // namespace

ReadBandwidth::ReadBandwidth() : buffer_(static_cast<size_t>(BufferBytes())) {
  auto* data = reinterpret_cast<uint64_t*>(buffer_.data());
  std::fill(data, data + buffer_.size() / sizeof(uint64_t), uint64_t{1});
}

int64_t ReadBandwidth::BufferBytes() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  return std::max(kLeastBuffer, kCachesInBuffer * int64_t{sysconf(_SC_LEVEL3_CACHE_SIZE)});
#else
  return kLeastBuffer;
#endif
}

double ReadBandwidth::Measure() const {
  const auto sum = SumFunction();
  const int threads = MaxThreads();
  const auto* data = reinterpret_cast<const uint64_t*>(buffer_.data());
  const int64_t slice = static_cast<int64_t>(buffer_.size() / sizeof(uint64_t)) / threads / kStep * kStep;
  std::vector<uint64_t> sums(static_cast<size_t>(threads));
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = Clock::now();
    ParallelFor(threads, [&](int64_t i) { sums[static_cast<size_t>(i)] = sum(data + i * slice, slice); });
    const double seconds = SecondsSince(start);
    // The sums are looked at, so that nothing may be left out.
    for (const uint64_t s : sums) {
      if (s != static_cast<uint64_t>(slice)) throw Error("the sum over a buffer of ones is wrong: faulty memory?");
    }
    best = std::max(best, static_cast<double>(threads * slice) * sizeof(uint64_t) / seconds);
  }
  return best;
}

double MeasureWriteBandwidth(const std::string& path, int64_t bytes) {
  const std::vector<char> block(kMebibyte, 'x');
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) throw Error(path + ": cannot be written: " + std::strerror(errno));
  const auto start = Clock::now();
  int64_t left = bytes;
  while (left > 0) {
    const ssize_t n = write(fd, block.data(), static_cast<size_t>(std::min(left, kMebibyte)));
    if (n <= 0) break;
    left -= n;
  }
  const std::string reason = std::strerror(errno);
  close(fd);
  const double seconds = SecondsSince(start);
  std::remove(path.c_str());
  if (left > 0) throw Error(path + ": " + std::to_string(bytes) + " bytes cannot be written: " + reason);
  return static_cast<double>(bytes) / seconds;
}

}  // namespace lockstep
