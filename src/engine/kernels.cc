#include "engine/kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/convert.h"
#include "base/parallel.h"

namespace lockstep::kernels {
namespace {

template <typename T>
float Rounded(float value) {
  return ToFloat(FromFloat<T>(value));
}

// Sums in a fixed number of lanes: the compiler may vectorise them, and the order of summation is the same on every
// machine.
constexpr int64_t kLanes = 16;

template <typename Term>
float SumOf(int64_t count, Term&& term) {
  std::array<float, kLanes> lanes{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[static_cast<size_t>(l)] += term(i + l);
  }
  for (int64_t l = 0; i + l < count; ++l) lanes[static_cast<size_t>(l)] += term(i + l);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t l = 0; l < width; ++l) lanes[static_cast<size_t>(l)] += lanes[static_cast<size_t>(l + width)];
  }
  return lanes[0];
}

template <typename T>
void RmsNormRow(const T* x, std::span<const float> w, float eps, T* y) {
  const auto width = static_cast<int64_t>(w.size());
  const float mean = SumOf(width, [&](int64_t i) { return ToFloat(x[i]) * ToFloat(x[i]); }) / static_cast<float>(width);
  const float scale = 1.0F / std::sqrt(mean + eps);
  for (int64_t i = 0; i < width; ++i) {
    const float normed = Rounded<T>(ToFloat(x[i]) * scale);
    y[i] = FromFloat<T>(w[static_cast<size_t>(i)] * normed);
  }
}

template <typename T>
void RopeHead(T* x, std::span<const float> cos, std::span<const float> sin) {
  const size_t half = cos.size();
  for (size_t i = 0; i < half; ++i) {
    const float a = ToFloat(x[i]);
    const float b = ToFloat(x[i + half]);
    x[i] = FromFloat<T>(Rounded<T>(a * cos[i]) + Rounded<T>(-b * sin[i]));
    x[i + half] = FromFloat<T>(Rounded<T>(b * cos[i]) + Rounded<T>(a * sin[i]));
  }
}

// scores: [keys], q·k rounded, times 1/sqrt(head_dim) rounded, for keys 0..position; -infinity beyond. A score of 20
// rounded to bf16 moves its probability by 6 %: an engine that does not round here is nearer to the truth and further
// from PyTorch.
template <typename T>
void ScoreRow(const T* q, const T* k, int64_t head_dim, int64_t position, std::span<float> scores) {
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_dim));
  for (int64_t j = 0; j <= position; ++j) {
    const T* key = k + j * head_dim;
    const float dot = SumOf(head_dim, [&](int64_t i) { return ToFloat(q[i]) * ToFloat(key[i]); });
    scores[static_cast<size_t>(j)] = Rounded<T>(Rounded<T>(dot) * scale);
  }
  std::fill(scores.begin() + position + 1, scores.end(), -std::numeric_limits<float>::infinity());
}

// In place over the keys 0..position, in f32, then rounded; the masked rest becomes 0.
template <typename T>
void SoftmaxRow(int64_t position, std::span<float> scores) {
  const std::span<float> valid = scores.first(static_cast<size_t>(position + 1));
  const float max = *std::max_element(valid.begin(), valid.end());
  for (float& score : valid) score = std::exp(score - max);
  const float sum = SumOf(position + 1, [&](int64_t j) { return valid[static_cast<size_t>(j)]; });
  for (float& score : valid) score = Rounded<T>(score / sum);
  std::fill(scores.begin() + position + 1, scores.end(), 0.0F);
}

template <typename T>
void ContextRow(const float* probs, const T* v, int64_t head_dim, int64_t position, std::span<float> sums, T* context) {
  std::fill(sums.begin(), sums.end(), 0.0F);
  for (int64_t j = 0; j <= position; ++j) {
    const T* value = v + j * head_dim;
    const float p = probs[j];
    for (int64_t i = 0; i < head_dim; ++i) sums[static_cast<size_t>(i)] += p * ToFloat(value[i]);
  }
  for (int64_t i = 0; i < head_dim; ++i) context[i] = FromFloat<T>(sums[static_cast<size_t>(i)]);
}

// Calls row(token, head, keys, values) for every token and head, with its key/value head's part of the cache.
template <typename T, typename Row>
void ForEachHead(const AttentionShape& shape, std::span<const KvView> kv, Row&& row) {
  const int64_t group = shape.heads / shape.kv_heads;
  ParallelFor(static_cast<int64_t>(kv.size()) * shape.heads, [&](int64_t index) {
    const int64_t token = index / shape.heads;
    const int64_t head = index % shape.heads;
    const KvView& cache = kv[static_cast<size_t>(token)];
    const int64_t offset = head / group * cache.capacity * shape.head_dim;
    row(token, head, reinterpret_cast<const T*>(cache.k) + offset, reinterpret_cast<const T*>(cache.v) + offset);
  });
}

}  // namespace

void RmsNorm(DType dtype, const void* x, std::span<const float> w, double eps, int64_t rows, void* y) {
  WithStorageType(dtype, [&]<typename T>() {
    const auto width = static_cast<int64_t>(w.size());
    ParallelFor(rows, [&](int64_t r) {
      RmsNormRow(static_cast<const T*>(x) + r * width, w, static_cast<float>(eps), static_cast<T*>(y) + r * width);
    });
  });
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
        cos_[at] = Rounded<T>(std::cos(angle));
        sin_[at] = Rounded<T>(std::sin(angle));
      }
    });
  });
}

void Rope(DType dtype, void* x, const RopeTable& table, std::span<const int32_t> positions, int64_t heads,
          int64_t head_dim) {
  WithStorageType(dtype, [&]<typename T>() {
    ParallelFor(static_cast<int64_t>(positions.size()), [&](int64_t t) {
      const int64_t position = positions[static_cast<size_t>(t)];
      for (int64_t h = 0; h < heads; ++h) {
        RopeHead(static_cast<T*>(x) + (t * heads + h) * head_dim, table.Cos(position), table.Sin(position));
      }
    });
  });
}

namespace {

constexpr int64_t kBlock = 4096;  // elements that a thread takes at a time in elementwise ops

template <typename Body>
void ForBlocks(int64_t count, Body&& body) {
  ParallelFor((count + kBlock - 1) / kBlock, [&](int64_t block) {
    const int64_t end = std::min(count, (block + 1) * kBlock);
    for (int64_t i = block * kBlock; i < end; ++i) body(i);
  });
}

}  // namespace

void Add(DType dtype, const void* a, const void* b, int64_t count, void* y) {
  WithStorageType(dtype, [&]<typename T>() {
    ForBlocks(count, [&](int64_t i) {
      static_cast<T*>(y)[i] = FromFloat<T>(ToFloat(static_cast<const T*>(a)[i]) + ToFloat(static_cast<const T*>(b)[i]));
    });
  });
}

void SwiGlu(DType dtype, void* gate, const void* up, int64_t count) {
  WithStorageType(dtype, [&]<typename T>() {
    ForBlocks(count, [&](int64_t i) {
      const float g = ToFloat(static_cast<const T*>(gate)[i]);
      const float silu = Rounded<T>(g / (1.0F + std::exp(-g)));
      static_cast<T*>(gate)[i] = FromFloat<T>(silu * ToFloat(static_cast<const T*>(up)[i]));
    });
  });
}

void Attention(DType dtype, const AttentionShape& shape, const void* q, std::span<const KvView> kv,
               std::span<const int32_t> positions, void* context) {
  WithStorageType(dtype, [&]<typename T>() {
    ForEachHead<T>(shape, kv, [&](int64_t token, int64_t head, const T* k, const T* v) {
      const int64_t position = positions[static_cast<size_t>(token)];
      const int64_t at = (token * shape.heads + head) * shape.head_dim;
      static thread_local std::vector<float> scores, sums;
      scores.resize(static_cast<size_t>(position + 1));
      sums.resize(static_cast<size_t>(shape.head_dim));
      ScoreRow(static_cast<const T*>(q) + at, k, shape.head_dim, position, std::span(scores));
      SoftmaxRow<T>(position, scores);
      ContextRow(scores.data(), v, shape.head_dim, position, std::span(sums), static_cast<T*>(context) + at);
    });
  });
}

namespace {

std::span<float> MatrixRow(float* matrix, const AttentionShape& shape, int64_t token, int64_t head, int64_t keys) {
  return {matrix + (token * shape.heads + head) * keys, static_cast<size_t>(keys)};
}

}  // namespace

void AttentionScores(DType dtype, const AttentionShape& shape, const void* q, std::span<const KvView> kv,
                     std::span<const int32_t> positions, int64_t keys, float* scores) {
  WithStorageType(dtype, [&]<typename T>() {
    ForEachHead<T>(shape, kv, [&](int64_t token, int64_t head, const T* k, const T* /*v*/) {
      const T* query = static_cast<const T*>(q) + (token * shape.heads + head) * shape.head_dim;
      ScoreRow(query, k, shape.head_dim, positions[static_cast<size_t>(token)],
               MatrixRow(scores, shape, token, head, keys));
    });
  });
}

void AttentionProbs(DType dtype, const AttentionShape& shape, std::span<const int32_t> positions, int64_t keys,
                    float* scores_to_probs) {
  WithStorageType(dtype, [&]<typename T>() {
    ParallelFor(static_cast<int64_t>(positions.size()) * shape.heads, [&](int64_t index) {
      const int64_t token = index / shape.heads;
      SoftmaxRow<T>(positions[static_cast<size_t>(token)],
                    MatrixRow(scores_to_probs, shape, token, index % shape.heads, keys));
    });
  });
}

void AttentionContext(DType dtype, const AttentionShape& shape, const float* probs, std::span<const KvView> kv,
                      std::span<const int32_t> positions, int64_t keys, void* context) {
  WithStorageType(dtype, [&]<typename T>() {
    ForEachHead<T>(shape, kv, [&](int64_t token, int64_t head, const T* /*k*/, const T* v) {
      static thread_local std::vector<float> sums;
      sums.resize(static_cast<size_t>(shape.head_dim));
      const int64_t at = token * shape.heads + head;
      ContextRow(probs + at * keys, v, shape.head_dim, positions[static_cast<size_t>(token)], std::span(sums),
                 static_cast<T*>(context) + at * shape.head_dim);
    });
  });
}

}  // namespace lockstep::kernels
