#include "engine/kernels.h"

#include <cmath>

#include "base/convert.h"
#include "base/parallel.h"
#include "engine/simd/row_kernels.h"

namespace lockstep::kernels {
namespace {

// Below this many elements one thread is done before another is awake.
constexpr int64_t kParallelElements = 32768;
constexpr int64_t kBlock = 4096;  // elements that a thread takes at a time in elementwise ops

int64_t ElementSize(DType dtype) { return static_cast<int64_t>(DTypeSize(dtype)); }

const std::byte* At(const void* data, int64_t offset) { return static_cast<const std::byte*>(data) + offset; }
std::byte* At(void* data, int64_t offset) { return static_cast<std::byte*>(data) + offset; }

template <typename Body>
void ForBlocks(int64_t count, Body&& body) {
  ParallelForBlocks(count >= kParallelElements, count, kBlock, body);
}

// Calls body(token, head's data) for every head.
template <typename Body>
void ForHeads(DType dtype, const HeadView& x, Body&& body) {
  ParallelForIf(x.tokens * x.heads * x.width >= kParallelElements, x.tokens, [&](int64_t t) {
    for (int64_t h = 0; h < x.heads; ++h) body(t, At(x.data, (t * x.stride + h * x.width) * ElementSize(dtype)));
  });
}

}  // namespace

void RmsNorm(DType dtype, const void* x, std::span<const float> w, double eps, int64_t rows, void* y) {
  const RowKernels& row = RowKernelsFor(dtype);
  const auto width = static_cast<int64_t>(w.size());
  ParallelForIf(rows * width >= kParallelElements, rows, [&](int64_t r) {
    const int64_t at = r * width * ElementSize(dtype);
    row.rms_norm(At(x, at), w.data(), width, static_cast<float>(eps), At(y, at));
  });
}

void RmsNorm(DType dtype, const HeadView& x, std::span<const float> w, double eps) {
  const RowKernels& row = RowKernelsFor(dtype);
  ForHeads(dtype, x,
           [&](int64_t, void* head) { row.rms_norm(head, w.data(), x.width, static_cast<float>(eps), head); });
}

RopeTable::RopeTable(const Config& config, DType dtype, int64_t max_positions)
    : half_(static_cast<size_t>(config.head_dim / 2)) {
  std::vector<float> inverse_frequencies(half_);
  for (size_t i = 0; i < half_; ++i) {
    const double exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    inverse_frequencies[i] = 1.0F / static_cast<float>(std::pow(config.rope_theta, exponent));
  }
  const size_t count = static_cast<size_t>(max_positions) * half_;
  cos_.resize(count);
  sin_.resize(count);
  WithStorageType(dtype, [&]<typename T>() {
    ParallelFor(max_positions, [&](int64_t position) {
      for (size_t i = 0; i < half_; ++i) {
        const float angle = static_cast<float>(position) * inverse_frequencies[i];
        const size_t at = static_cast<size_t>(position) * half_ + i;
        cos_[at] = ToFloat(FromFloat<T>(std::cos(angle)));
        sin_[at] = ToFloat(FromFloat<T>(std::sin(angle)));
      }
    });
  });
}

void Rope(DType dtype, const HeadView& x, const RopeTable& table, std::span<const int32_t> positions) {
  const RowKernels& row = RowKernelsFor(dtype);
  ForHeads(dtype, x, [&](int64_t t, void* head) {
    const int64_t position = positions[static_cast<size_t>(t)];
    row.rope(head, table.Cos(position).data(), table.Sin(position).data(), x.width / 2);
  });
}

void Add(DType dtype, const void* a, const void* b, int64_t count, void* y) {
  const RowKernels& row = RowKernelsFor(dtype);
  ForBlocks(count, [&](int64_t begin, int64_t size) {
    const int64_t at = begin * ElementSize(dtype);
    row.add(At(a, at), At(b, at), size, At(y, at));
  });
}

void SwiGlu(DType dtype, const void* gate_up, int64_t rows, int64_t width, void* y) {
  const RowKernels& row = RowKernelsFor(dtype);
  ParallelForIf(rows * width >= kParallelElements, rows, [&](int64_t r) {
    const std::byte* gate = At(gate_up, r * 2 * width * ElementSize(dtype));
    row.swiglu(gate, gate + width * ElementSize(dtype), width, At(y, r * width * ElementSize(dtype)));
  });
}

void Widen(DType dtype, const void* x, int64_t count, float* y) {
  const RowKernels& row = RowKernelsFor(dtype);
  ForBlocks(count, [&](int64_t begin, int64_t size) { row.widen(At(x, begin * ElementSize(dtype)), size, y + begin); });
}

}  // namespace lockstep::kernels
