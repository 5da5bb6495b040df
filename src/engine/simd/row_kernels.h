// The inner loops of the engine, one table of functions a storage dtype and instruction set. They work on one row or
// one tile, in one thread; kernels.h, attention.h and linear.h spread them over tokens, heads and threads.
//
// Products. The right-hand matrix lies in panels of `panel_width` columns, so that one load gives the same k of many
// columns: a panel is [depth / pair][panel_width][pair] elements of the storage dtype, zero where a column or the last
// of a pair is missing. `pair` is 2 where the machine multiplies pairs of bf16, else 1. The left-hand rows are
// operands: f32 values, or pairs of bf16. Each output is one sum in f32 over k = 0, 1, 2, …, whatever stands in the
// other rows and columns: no bit depends on the number of threads, on the batch or on the chunk. (A library's product
// splits long sums by their number of rows or threads, and was no faster: docs/performance.md.)
#pragma once

#include <cstdint>

#include "lockstep/dtype.h"

namespace lockstep {

inline constexpr int64_t kColumns = 16;  // what a product computes at a time at least

struct RowKernels {
  int64_t panel_width;  // 64, or 16 below AVX-512
  int64_t pair;
  int64_t operand_size;  // bytes of an operand's element

  // y = w · round(x / sqrt(mean(x²) + eps)); y may be x.
  void (*rms_norm)(const void* x, const float* w, int64_t width, float eps, void* y);
  // Rotates the pairs (i, i + half) of one head in place. cos, sin: [half].
  void (*rope)(void* head, const float* cos, const float* sin, int64_t half);
  // y = a + b; y may be a or b.
  void (*add)(const void* a, const void* b, int64_t count, void* y);
  // y = silu(gate) · up; y may be gate or up.
  void (*swiglu)(const void* gate, const void* up, int64_t count, void* y);

  void (*widen)(const void* x, int64_t count, float* y);
  void (*narrow)(const float* x, int64_t count, void* y);
  void (*operand)(const void* x, int64_t count, void* y);
  void (*operand_of_floats)(const float* x, int64_t count, void* y);

  // out[r][c] = Σ_k a[r][k] · panels[k][c] for `columns` columns, a multiple of 16. a: operands, rows lda elements
  // apart, depth of them filled up to a multiple of `pair` with zeros; panels lie panel_stride elements apart; out:
  // rows ldo floats apart.
  void (*product)(const void* a, int64_t lda, int64_t rows, const void* panels, int64_t panel_stride, int64_t columns,
                  int64_t depth, void* out, int64_t ldo);
  // The same, rounded to the storage dtype.
  void (*stored_product)(const void* a, int64_t lda, int64_t rows, const void* panels, int64_t panel_stride,
                         int64_t columns, int64_t depth, void* out, int64_t ldo);

  // One row of attention, values of the storage dtype kept as f32; padded is a multiple of 16. scale_scores:
  // round(round(x) · scale) for the first `valid`, -infinity for the rest up to `padded`; gives the largest. A score of
  // 20 rounded to bf16 moves its probability by 6 %: an engine that does not round here is nearer to the truth and
  // further from PyTorch.
  float (*scale_scores)(float* row, int64_t valid, int64_t padded, float scale);
  // Probabilities, rounded, as operands; overwrites the row. max: its largest score.
  void (*softmax)(float* row, int64_t padded, float max, void* probs);
};

// The best that this machine has. REQUIRES: dtype is F32, BF16 or F16.
const RowKernels& RowKernelsFor(DType dtype);

}  // namespace lockstep
