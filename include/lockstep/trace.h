// Reading traces (docs/trace-format.md). Writing them is capture.hpp's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lockstep/capture.hpp"
#include "lockstep/error.h"

namespace lockstep {

// One slice of `count` equal ones along the axis of that name.
struct Shard {
  std::string axis;
  int index = 0;
  int count = 1;
};

struct TraceTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;     // as stored
  std::vector<std::string> axes;  // as stored; empty for a user's own point: then the token axis is the first
  int token_axis = 0;
  const std::byte* data = nullptr;  // may be unaligned; lives as long as the reader
  size_t bytes = 0;
  std::vector<int32_t> rows;  // [R] indices into the step's tokens; always filled, R == shape[token_axis]
  std::vector<int32_t> keys;  // [R, K] absolute key positions where they are not 0, 1, 2, …; else empty
  std::string layout;
  std::optional<Shard> shard;
  bool partial = false;  // the true tensor is the sum over the ranks
  int rank = 0;
  std::string file;  // path of the step file that holds it
};

// All elements in stored order, widened to f32 (f64 and integers are rounded). Throws Error for dtypes that are no
// numbers.
std::vector<float> ToFloats(const TraceTensor& tensor);

struct TraceStep {
  Phase phase = Phase::kPrefill;
  std::vector<int32_t> positions;       // [T]
  std::vector<int32_t> sequences;       // [T]; -1 is padding
  std::vector<int32_t> input_ids;       // [T], -1 where there was no token; empty where the trace has none
  std::vector<TraceTensor> tensors;     // of all ranks; without positions, sequences, input_ids, rows:*, keys:*
  std::vector<std::string> duplicates;  // names recorded twice by one rank
  std::vector<std::string> files;

  // The tensor of that name, of that rank; null if it is not there.
  const TraceTensor* Find(const std::string& name, int rank = 0) const;
};

struct WeightFingerprint {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::string hash;
};

// In which dtypes an implementation computes.
struct Arithmetic {
  DType storage = DType::kF32;   // of weights and activations
  DType operands = DType::kF32;  // of the matrix products
  DType accumulate = DType::kF32;
  DType cache = DType::kF32;  // of keys and values
  bool operator==(const Arithmetic&) const = default;
};

// What differs for the tensors whose name the pattern matches.
struct ArithmeticOverride {
  std::string pattern;
  std::optional<DType> storage, operands, accumulate, cache;
};

struct TraceMeta {
  std::string producer;
  std::string producer_version;
  std::string model_type;
  // Values of model.config as JSON text, by key, numbers normalised ("1e-06" and "0.000001" are equal here).
  std::map<std::string, std::string> config;
  Arithmetic arithmetic;
  bool has_arithmetic = false;                // false: nothing was declared, the dtypes above are guesses
  std::vector<ArithmeticOverride> overrides;  // for engines that mix
  std::vector<std::string> points;            // promised
  std::vector<std::string> not_observable;    // patterns
  std::string select_points, select_layers, select_steps, select_rows;
  std::map<std::string, WeightFingerprint> weights;
  std::vector<std::string> errors;
  int rank = 0;
  bool closed = false;

  // Of one tensor; of several overrides that match, the one with most letters counts.
  Arithmetic ArithmeticOf(const std::string& name) const;
};

class TraceReader {
 public:
  // Takes a shared lock, maps every file and validates everything. Throws Error for bad input of any kind: no trace, a
  // newer version, a directory that is being written, damaged files. `path` may end in a slash.
  static TraceReader Open(const std::string& path);

  TraceReader(TraceReader&&) noexcept;
  TraceReader& operator=(TraceReader&&) noexcept;
  ~TraceReader();

  const std::string& path() const;
  const TraceMeta& meta() const;
  const std::vector<TraceStep>& steps() const;
  // What a reader should know though it is no error: not closed, unindexed tails.
  const std::vector<std::string>& warnings() const;

  // Tokens of every sequence by position, from the latest step that holds it; -1 where unknown or never run.
  std::map<int, std::vector<int32_t>> Sequences() const;

 private:
  struct Impl;
  explicit TraceReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Cuts the unindexed tails of a trace that a killed writer left behind and closes it, after which every safetensors
// reader opens its files. Returns what was done, one line each. Throws Error when the trace is being written or is
// damaged otherwise.
std::vector<std::string> RepairTrace(const std::string& path);

}  // namespace lockstep
