// The ops between the matrix products, spread over tokens and threads. Tensors are in the storage dtype; arithmetic is
// f32 with the roundings of the Hugging Face model (points.md): what PyTorch rounds to storage between two steps is
// rounded here too.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lockstep/checkpoint.h"
#include "lockstep/dtype.h"

namespace lockstep::kernels {

// [tokens, heads, width]: the heads of a token are dense, tokens lie `stride` elements apart.
struct HeadView {
  void* data;
  int64_t tokens, heads, width, stride;
};

// y[r] = w · round(x[r] / sqrt(mean(x[r]²) + eps)); x, y: [rows, width], dense, may be the same; w: [width] f32 values
// of the storage dtype.
void RmsNorm(DType dtype, const void* x, std::span<const float> w, double eps, int64_t rows, void* y);
// The same for each head in place.
void RmsNorm(DType dtype, const HeadView& x, std::span<const float> w, double eps);

// cos and sin of position · theta^(-2i/head_dim) for i < head_dim/2, rounded to the storage dtype.
class RopeTable {
 public:
  RopeTable() = default;
  RopeTable(const Config& config, DType dtype, int64_t max_positions);
  std::span<const float> Cos(int64_t position) const { return Row(cos_, position); }  // [head_dim / 2]
  std::span<const float> Sin(int64_t position) const { return Row(sin_, position); }

 private:
  std::span<const float> Row(const std::vector<float>& table, int64_t position) const {
    return std::span(table).subspan(static_cast<size_t>(position) * half_, half_);
  }
  size_t half_ = 0;
  std::vector<float> cos_, sin_;  // [positions, head_dim / 2]
};

// Rotates the pairs (i, i + width/2) of each head in place. positions: [tokens].
void Rope(DType dtype, const HeadView& x, const RopeTable& table, std::span<const int32_t> positions);

// y = a + b, elementwise; y may be a or b.
void Add(DType dtype, const void* a, const void* b, int64_t count, void* y);

// y = silu(gate) · up. gate_up: [rows, (gate, up), width]; y: [rows, width].
void SwiGlu(DType dtype, const void* gate_up, int64_t rows, int64_t width, void* y);

void Widen(DType dtype, const void* x, int64_t count, float* y);

}  // namespace lockstep::kernels
