// The one dear computation of the replay, x · wᵀ, in the best instruction set of the machine. Written here, and not
// shared with the engine: a judge must not have the defendant's bug. (Eigen was tried: it is built for one instruction
// set, and its baseline is three times slower.)
#pragma once

#include <cstdint>

namespace lockstep {

// Rows of numbers, `stride` elements from one to the next.
template <typename T>
struct Strided {
  T* data;
  int64_t stride;
};

// y[r, j] = sum_k x[r, k] * w[j, k] for r in [0, rows), j in [0, columns), k in [0, depth), in the calling thread.
void Product(Strided<const double> x, int64_t rows, Strided<const double> w, int64_t columns, int64_t depth,
             Strided<double> y);
void Product(Strided<const float> x, int64_t rows, Strided<const float> w, int64_t columns, int64_t depth,
             Strided<float> y);

// y[i] += factor * x[i]
void AddScaled(double factor, const double* x, int64_t count, double* y);

}  // namespace lockstep
