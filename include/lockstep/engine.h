// The built-in Qwen3 engine: prefill in one shot or in chunks, decode with a KV cache, ragged batches, and a tap at
// every point of the table (points.h) that can observe and replace the tensor on its way.
//
//   Model model = Model::Load("models/tiny-qwen3", {.dtype = DType::kBF16});
//   Session session(model, /*num_sequences=*/1, /*max_tokens=*/256);
//   Logits logits = session.Forward({.tokens = prompt, .sequences = zeros});
//   int32_t next = logits.Greedy(0);
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lockstep/capture.hpp"
#include "lockstep/checkpoint.h"
#include "lockstep/dtype.h"
#include "lockstep/points.h"

namespace lockstep {

enum class LogitsRows : uint8_t {
  kLast,  // of each sequence in the batch
  kAll,
};

// One forward call. Tokens of one sequence are consecutive and follow what its cache already holds.
struct Batch {
  std::span<const int32_t> tokens;     // [T] ids; -1 only together with embeddings
  std::span<const int32_t> sequences;  // [T] in [0, num_sequences)
  std::span<const float> embeddings;   // [T, hidden] to use instead of the embedding's rows, or empty
  Phase phase = Phase::kPrefill;
  LogitsRows logits_rows = LogitsRows::kLast;
};

// A tensor at its point. Writing to `data` replaces it: the engine goes on with what the tap leaves there.
struct TapTensor {
  Point point;
  int layer;  // -1 outside the layers
  DType dtype;
  std::vector<int64_t> shape;    // axes as in the point table
  std::vector<int64_t> strides;  // in elements; a row is dense, rows may lie apart: a part of a fused product
  void* data;
  std::span<const int32_t> rows;  // [shape[0]] indices into the batch's tokens
};

class Tap {
 public:
  virtual ~Tap() = default;
  // Asked before a point; the engine skips work that nobody wants (attn_scores and attn_probs are only materialised
  // when wanted).
  virtual bool Wants(Point point, int layer) = 0;
  virtual void OnBegin(const Batch& batch, std::span<const int32_t> positions) = 0;
  virtual void OnTensor(const TapTensor& tensor) = 0;
  // rows: [R] indices of the last token of each sequence; next: [R] the greedy choice after it.
  virtual void OnEnd(std::span<const int32_t> rows, std::span<const int32_t> next) = 0;
};

struct ModelOptions {
  DType dtype = DType::kF32;  // of weights, activations and cache: F32, BF16 or F16; sums are accumulated in f32
  int num_layers = -1;        // only the first N layers; -1: all
};

class Model {
 public:
  // Throws Error when the checkpoint is not right (checkpoint.h).
  static Model Load(const std::string& model_dir, const ModelOptions& options = {});
  // Random weights in the shape of `config`, the same for the same seed, without a checkpoint: to measure speed.
  static Model Random(const Config& config, const ModelOptions& options = {}, uint64_t seed = 0);
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const Config& config() const;
  DType dtype() const;
  const Checkpoint* checkpoint() const;  // nullptr for random weights

  // Fingerprints (docs/trace-format.md) of all logical weights, from the memory that the matrix products read; reads
  // all of it.
  struct Fingerprint {
    std::string name;
    std::vector<int64_t> shape;
    std::string hash;
  };
  std::vector<Fingerprint> Fingerprints() const;

  struct Impl;
  const Impl& impl() const { return *impl_; }

 private:
  explicit Model(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Throws Error for an id that is not one of the model's.
void CheckTokens(const Config& config, std::span<const int32_t> tokens);

struct Logits {
  std::vector<int32_t> rows;  // [R] indices into the batch's tokens
  int64_t vocab = 0;
  std::vector<float> values;  // [R, vocab]

  std::span<const float> Row(size_t r) const {
    return std::span(values).subspan(r * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
  }
  int32_t Greedy(size_t r) const;    // the first of the largest
  std::string Hash(size_t r) const;  // the fingerprint (docs/trace-format.md) of a row: 16 hex digits
};

// What a run of sequences through a model needs beside the weights: the KV cache and the activations.
// The model must outlive it. One call at a time per session; sessions on the same model may run at the same time.
class Session {
 public:
  // Room for `max_tokens` tokens in each sequence. Throws Error beyond max_position_embeddings.
  Session(const Model& model, int num_sequences, int64_t max_tokens);
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  // Throws Error for bad input (ids out of range, cache full, sequences not consecutive) and leaves the cache as it
  // was.
  // The result is valid until the next call.
  const Logits& Forward(const Batch& batch, Tap* tap = nullptr);

  // Tokens in the cache of a sequence.
  int64_t Length(int sequence) const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

// Embeddings for Batch::embeddings, one [T, hidden] block a sequence. source: a .npy file of shape [T, hidden] or [B,
// T, hidden], or an edge case: "zeros", "tiny" (about 1e-6) or "huge" (about 1e4), whose value at token t, channel c is
// scale · ((splitmix64(t · hidden + c) >> 40) · 2^-23 - 1) with scale 0, 2^-20 or 2^13. prompt_lengths: T of each
// sequence; empty, with a file: as the file says. Throws Error.
std::vector<std::vector<float>> InputEmbeddings(const std::string& source, int64_t hidden,
                                                std::span<const int64_t> prompt_lengths);

// A tap that writes a trace; the same code as any engine would use (capture.hpp).
struct TraceTapOptions {
  std::string points, layers, steps, rows;  // selections (docs/trace-format.md)
  bool fingerprints = true;                 // record the weights' fingerprints, which reads all of them
  bool promise = true;                      // every selected point; false: the caller passes on only some tensors
};
// What trace.json says of such a trace. Throws Error for a bad selection.
TraceInfo TraceInfoOf(const Model& model, const TraceTapOptions& options = {});

class TraceTap : public Tap {
 public:
  // Throws Error when the trace cannot be created.
  TraceTap(const Model& model, const std::string& path, const TraceTapOptions& options = {});
  ~TraceTap() override;
  bool Wants(Point point, int layer) override;
  void OnBegin(const Batch& batch, std::span<const int32_t> positions) override;
  void OnTensor(const TapTensor& tensor) override;
  void OnEnd(std::span<const int32_t> rows, std::span<const int32_t> next) override;
  // Finishes the trace. Throws Error if anything could not be written.
  void Close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Which instruction set the matrix products use, and whether bf16 is native there, for `doctor` and traces.
std::string MatmulDescription();

}  // namespace lockstep
