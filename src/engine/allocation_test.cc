// A decode step allocates nothing: counted through the global operator new of this program.
#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "lockstep/engine.h"

#pragma GCC diagnostic ignored "-Wmismatched-new-delete"  // they do match, below

// The sanitizers have an operator new of their own.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace {
std::atomic<int64_t> allocations = 0;
}  // namespace

void* operator new(size_t size) {
  ++allocations;
  if (void* data = std::malloc(size)) return data;
  throw std::bad_alloc();
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, size_t) noexcept { std::free(data); }

namespace lockstep {
namespace {

class AllocationTest : public testing::TestWithParam<DType> {};

INSTANTIATE_TEST_SUITE_P(, AllocationTest, testing::Values(DType::kF32, DType::kBF16, DType::kF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

TEST_P(AllocationTest, DecodeStepsAllocateNothing) {
  const Model model = Model::Load(std::string(LOCKSTEP_SOURCE_DIR) + "/models/tiny-qwen3", {.dtype = GetParam()});
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);  // each thread makes room when it first gets work, which may be at any step
  Session session(model, 1, 64);
  const std::vector<int32_t> prompt(20, 7), zeros(20);
  session.Forward({.tokens = prompt, .sequences = zeros});
  const auto decode = [&](int steps) {
    for (int i = 0; i < steps; ++i) {
      session.Forward(
          {.tokens = std::span(prompt).first(1), .sequences = std::span(zeros).first(1), .phase = Phase::kDecode});
    }
  };
  decode(2);  // the first makes room for single rows
  const int64_t before = allocations;
  decode(8);  // within one step of the cache's columns
  EXPECT_EQ(allocations - before, 0);
  omp_set_num_threads(threads);
}

}  // namespace
}  // namespace lockstep

#endif
