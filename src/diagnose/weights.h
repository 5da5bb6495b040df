// Weights as a mistake would hold them: every function gives a view that computes what is read.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "replay/op_call.h"

namespace lockstep {

using MatrixPtr = std::shared_ptr<Matrix>;

// Row r is row map[r] of `m`; -1: zeros.
MatrixPtr WithRows(const MatrixPtr& m, std::vector<int64_t> map);
// Column c is column map[c] of `m`; -1: zeros.
MatrixPtr WithColumns(const MatrixPtr& m, std::vector<int64_t> map);
// Element [r, c] is element at(r, c) of `m` taken as one run of memory. Reads all of `m` once, on first use.
MatrixPtr Reordered(const MatrixPtr& m, int64_t rows, int64_t columns, std::function<int64_t(int64_t, int64_t)> at);
// The parts below one another. REQUIRES: equal columns.
MatrixPtr Stacked(const std::vector<MatrixPtr>& parts);

// The grids that weights are squeezed onto.
enum class Coarse : uint8_t { kBF16, kF16, kE4M3, kE5M2, kInt8, kInt4 };
// What shares a scale that brings its largest magnitude to the grid's largest number.
enum class ScaleOf : uint8_t { kNone, kTensor, kRow, kGroup };
// Rounded to a grid and back, computed in f32 as a quantiser does. `group`: elements of a row that share a scale.
// `storage`: what the result is rounded to; F64: nothing more.
MatrixPtr Quantised(const MatrixPtr& m, Coarse grid, ScaleOf scale, int64_t group, DType storage);

// 2-byte elements read as the other 16-bit dtype.
double Reinterpreted(double value, DType from, DType as);

}  // namespace lockstep
