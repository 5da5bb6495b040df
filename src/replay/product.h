// The one dear computation of the replay, x · wᵀ, in the best instruction set of the machine. Written here, and not
// shared with the engine: a judge must not have the defendant's bug. (Eigen was tried: it is built for one instruction
// set, and its baseline is three times slower.)
#pragma once

#include <cstdint>

namespace lockstep {

// y[r, j] = sum_k x[r, k] * w[j, k] for r in [0, rows), j in [0, columns), k in [0, depth), in the calling thread.
// x: [rows, depth]; w: [columns, depth]; y: [rows, columns] with `stride` elements from row to row.
void Product(const double* x, int64_t rows, const double* w, int64_t columns, int64_t depth, double* y, int64_t stride);
void Product(const float* x, int64_t rows, const float* w, int64_t columns, int64_t depth, float* y, int64_t stride);

// sum_i a[i] * b[i]
double Dot(const double* a, const double* b, int64_t count);
// y[i] += factor * x[i]
void AddScaled(double factor, const double* x, int64_t count, double* y);

}  // namespace lockstep
