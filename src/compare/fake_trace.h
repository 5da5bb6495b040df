// A trace in memory, for the tests.
#pragma once

#include <cstring>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "base/convert.h"
#include "base/fingerprint.h"
#include "compare/views.h"

namespace lockstep {

class FakeTrace {
 public:
  FakeTrace() {
    meta.producer = "fake";
    meta.arithmetic.storage = DType::kF32;
    meta.closed = true;
  }

  TraceStep& AddStep(std::vector<int32_t> ids, std::vector<int32_t> positions, std::vector<int32_t> sequences = {}) {
    if (sequences.empty()) sequences.assign(positions.size(), 0);
    TraceStep step;
    step.input_ids = std::move(ids);
    step.positions = std::move(positions);
    step.sequences = std::move(sequences);
    steps.push_back(std::move(step));
    return steps.back();
  }

  // To the last step. `rows` empty: every token.
  TraceTensor& Add(const std::string& name, std::vector<int64_t> shape, const std::vector<float>& values,
                   std::vector<int32_t> rows = {}, DType dtype = DType::kF32) {
    TraceTensor tensor;
    tensor.name = name;
    tensor.dtype = dtype;
    tensor.shape = std::move(shape);
    tensor.bytes = values.size() * DTypeSize(dtype);
    // One byte off: stored tensors may lie anywhere.
    std::vector<std::byte>& bytes = storage_.emplace_back(tensor.bytes + 1);
    NarrowFromFloat(dtype, values.data(), values.size(), bytes.data() + 1);
    tensor.data = bytes.data() + 1;
    tensor.rows = std::move(rows);
    if (tensor.rows.empty()) {
      for (size_t i = 0; i < steps.back().positions.size(); ++i) tensor.rows.push_back(static_cast<int32_t>(i));
    }
    steps.back().tensors.push_back(std::move(tensor));
    return steps.back().tensors.back();
  }

  TraceView View() const { return {name, &meta, &steps}; }

  std::string name = "fake.trace";
  TraceMeta meta;
  std::vector<TraceStep> steps;

 private:
  std::deque<std::vector<std::byte>> storage_;
};

// A value that depends on the key and the channel alone, so that every chunking of a run holds the same rows.
inline float ValueAt(int seed, int sequence, int position, int channel) {
  const int64_t key = ((int64_t{seed} * 31 + sequence) * 1009 + position) * 400009 + channel;
  return static_cast<float>(SplitMix64(static_cast<uint64_t>(key)) % 20001) / 10000.0f - 1.0f;
}

inline std::vector<float> Rows(int seed, const std::vector<int32_t>& positions, int width, int sequence = 0) {
  std::vector<float> values;
  for (int32_t position : positions) {
    for (int channel = 0; channel < width; ++channel) values.push_back(ValueAt(seed, sequence, position, channel));
  }
  return values;
}

inline std::vector<int32_t> Range(int32_t begin, int32_t end) {
  std::vector<int32_t> out;
  for (int32_t i = begin; i < end; ++i) out.push_back(i);
  return out;
}

// Ids that differ from position to position and from sequence to sequence.
inline std::vector<int32_t> Ids(const std::vector<int32_t>& positions, int sequence = 0) {
  std::vector<int32_t> ids;
  for (int32_t position : positions) ids.push_back(100 * (sequence + 1) + position);
  return ids;
}

inline CompareResult CompareFakes(const FakeTrace& reference, const FakeTrace& candidate,
                                  const CompareOptions& options = {}) {
  return CompareViews({reference.View()}, {candidate.View()}, options);
}

}  // namespace lockstep
