// The forward pass, with the capture beside each op. Shapes: T tokens of the batch, D hidden, H query heads, K
// key/value heads, d head_dim, I intermediate, V vocabulary, R rows of logits.
#include <algorithm>
#include <cstring>

#include "base/aligned_bytes.h"
#include "base/convert.h"
#include "base/fingerprint.h"
#include "engine/attention.h"
#include "engine/kernels.h"
#include "engine/kv_cache.h"
#include "engine/weights.h"
#include "lockstep/engine.h"

namespace lockstep {

using enum Point;

namespace {

// Dense rows in the storage dtype, reused from call to call; not initialised.
class Buffer {
 public:
  void* Resize(int64_t rows, int64_t width, DType dtype) {
    const size_t size = static_cast<size_t>(rows * width) * DTypeSize(dtype);
    if (size > bytes_.size()) {
      bytes_ = {};  // first, so that both are never there
      bytes_ = AlignedBytes(size);
    }
    return bytes_.data();
  }
  void* data() { return bytes_.data(); }

 private:
  AlignedBytes bytes_;
};

}  // namespace

struct Session::Impl {
  Impl(const Model& from, int num_sequences, int64_t max_tokens)
      : model(from.impl()),
        config(from.config()),
        dtype(from.dtype()),
        cache(from.config(), from.dtype(), num_sequences, max_tokens),
        rope(from.config(), from.dtype(), max_tokens),
        seen(static_cast<size_t>(num_sequences)) {}

  const Model::Impl& model;
  const Config& config;
  DType dtype;
  KvCache cache;
  kernels::RopeTable rope;
  Buffer hidden;              // [T, D], the residual stream
  Buffer normed, projected;   // [T, D]
  Buffer qkv;                 // [T, (H + 2K) d]
  Buffer context;             // [T, H, d]
  Buffer gate_up;             // [T, 2I]
  Buffer product;             // [T, I]
  Buffer selected, logits;    // [R, D], [R, V]
  std::vector<float> scores;  // [T, H, keys], only where a tap wants them
  Logits result;

  // Of the call that is running:
  Tap* tap = nullptr;
  std::vector<int32_t> positions;  // [T]
  std::vector<int32_t> all_rows;   // 0 … T-1
  std::vector<int32_t> last_rows;  // of each sequence
  std::vector<bool> seen;          // [sequences of the session]
  std::vector<kernels::Run> runs;  // [sequences of the batch]

  const Logits& Forward(const Batch& batch, Tap* observer);
  void CheckBatch(const Batch& batch);
  void Place(const Batch& batch);
  void Embed(const Batch& batch);
  void Attention(const LayerWeights& w, int layer, const Batch& batch);
  void AttentionOverCache(int layer, const kernels::HeadView& q);
  void Mlp(const LayerWeights& w, int layer);
  void Head(std::span<const int32_t> rows);

  int64_t T() const { return static_cast<int64_t>(positions.size()); }
  kernels::AttentionShape Shape() const {
    return {config.num_attention_heads, config.num_key_value_heads, config.head_dim};
  }

  void RmsNorm(const void* x, const NormWeight& w, int64_t rows, void* y) const {
    kernels::RmsNorm(dtype, x, w, config.rms_norm_eps, rows, y);
  }

  void Observe(Point point, int layer, void* data, std::span<const int64_t> shape, std::span<const int64_t> strides,
               DType type, std::span<const int32_t> rows) {
    tap->OnTensor({point, layer, type, {shape.begin(), shape.end()}, {strides.begin(), strides.end()}, data, rows});
  }
  bool Wants(Point point, int layer) const { return tap != nullptr && tap->Wants(point, layer); }
  // [T, width], rows `stride` elements apart; 0: dense.
  void Observe(Point point, int layer, void* data, int64_t width, int64_t stride = 0) {
    if (!Wants(point, layer)) return;
    const int64_t shape[] = {T(), width}, strides[] = {stride == 0 ? width : stride, 1};
    Observe(point, layer, data, shape, strides, dtype, all_rows);
  }
  // [T, heads, head_dim]
  void Observe(Point point, int layer, const kernels::HeadView& x) {
    if (!Wants(point, layer)) return;
    const int64_t shape[] = {x.tokens, x.heads, x.width}, strides[] = {x.stride, x.width, 1};
    Observe(point, layer, x.data, shape, strides, dtype, all_rows);
  }
};

void Session::Impl::CheckBatch(const Batch& batch) {
  if (batch.tokens.empty()) throw Error("an empty batch: expected at least one token");
  if (batch.tokens.size() != batch.sequences.size()) {
    throw Error("a batch of " + std::to_string(batch.tokens.size()) + " tokens, but " +
                std::to_string(batch.sequences.size()) + " sequence numbers");
  }
  if (!batch.embeddings.empty() &&
      batch.embeddings.size() != batch.tokens.size() * static_cast<size_t>(config.hidden_size)) {
    throw Error("input embeddings: expected " + std::to_string(batch.tokens.size()) + " rows of " +
                std::to_string(config.hidden_size) + " values, found " + std::to_string(batch.embeddings.size()) +
                " values in all");
  }
  if (batch.embeddings.empty()) CheckTokens(config, batch.tokens);
  for (size_t t = 0; t < batch.tokens.size(); ++t) {
    if (batch.sequences[t] < 0 || batch.sequences[t] >= cache.num_sequences()) {
      throw Error("token " + std::to_string(t) + ": expected a sequence from 0 to " +
                  std::to_string(cache.num_sequences() - 1) + ", found " + std::to_string(batch.sequences[t]));
    }
  }
  std::fill(seen.begin(), seen.end(), false);
  for (size_t begin = 0; begin < batch.sequences.size();) {
    const int32_t sequence = batch.sequences[begin];
    size_t end = begin;
    while (end < batch.sequences.size() && batch.sequences[end] == sequence) ++end;
    if (seen[static_cast<size_t>(sequence)]) {
      throw Error("sequence " + std::to_string(sequence) +
                  " stands twice in the batch; its tokens must be consecutive");
    }
    seen[static_cast<size_t>(sequence)] = true;
    const int64_t length = cache.Length(sequence) + static_cast<int64_t>(end - begin);
    if (length > cache.capacity()) {
      throw Error("sequence " + std::to_string(sequence) + " would have " + std::to_string(length) +
                  " tokens; its cache has room for " + std::to_string(cache.capacity()));
    }
    begin = end;
  }
}

// Positions follow what the cache holds.
void Session::Impl::Place(const Batch& batch) {
  positions.resize(batch.tokens.size());
  all_rows.resize(batch.tokens.size());
  last_rows.clear();
  runs.clear();
  for (size_t t = 0; t < positions.size(); ++t) {
    const int32_t sequence = batch.sequences[t];
    const auto row = static_cast<int32_t>(t);
    if (t == 0 || sequence != batch.sequences[t - 1]) {
      runs.push_back({row, 0, cache.Length(sequence), {}});
      last_rows.push_back(row);
    }
    positions[t] = static_cast<int32_t>(runs.back().position + runs.back().count++);
    all_rows[t] = row;
    last_rows.back() = row;
  }
}

void Session::Impl::Embed(const Batch& batch) {
  void* out = hidden.Resize(T(), config.hidden_size, dtype);
  if (batch.embeddings.empty()) {
    model.Embed(batch.tokens, out);
  } else {
    NarrowFromFloat(dtype, batch.embeddings.data(), batch.embeddings.size(), static_cast<std::byte*>(out));
  }
}

const Logits& Session::Impl::Forward(const Batch& batch, Tap* observer) {
  CheckBatch(batch);
  Place(batch);
  tap = observer;
  if (tap != nullptr) tap->OnBegin(batch, positions);

  const int64_t D = config.hidden_size;
  Embed(batch);
  Observe(kInputEmbeddings, -1, hidden.data(), D);
  normed.Resize(T(), D, dtype);
  projected.Resize(T(), D, dtype);

  for (int layer = 0; layer < static_cast<int>(model.layers.size()); ++layer) {
    const LayerWeights& w = model.layers[static_cast<size_t>(layer)];
    Observe(kInputHiddenStates, layer, hidden.data(), D);
    RmsNorm(hidden.data(), w.input_norm, T(), normed.data());
    Observe(kAttnNormOutput, layer, normed.data(), D);
    Attention(w, layer, batch);
    kernels::Add(dtype, hidden.data(), projected.data(), T() * D, hidden.data());
    Observe(kAttnResidualOutput, layer, hidden.data(), D);

    RmsNorm(hidden.data(), w.post_attention_norm, T(), normed.data());
    Observe(kMlpNormOutput, layer, normed.data(), D);
    Mlp(w, layer);
    kernels::Add(dtype, hidden.data(), projected.data(), T() * D, hidden.data());
    Observe(kLayerOutput, layer, hidden.data(), D);
  }

  RmsNorm(hidden.data(), model.final_norm, T(), normed.data());
  Observe(kFinalNormOutput, -1, normed.data(), D);
  Head(batch.logits_rows == LogitsRows::kAll ? all_rows : last_rows);

  // From here on the call can not fail any more: the cache may move on.
  for (const int32_t sequence : batch.sequences) cache.Advance(sequence, 1);
  if (tap != nullptr) {
    std::vector<int32_t> next;
    for (size_t r = 0; r < result.rows.size(); ++r) {
      if (std::binary_search(last_rows.begin(), last_rows.end(), result.rows[r])) next.push_back(result.Greedy(r));
    }
    tap->OnEnd(last_rows, next);
  }
  return result;
}

// normed -> projected
void Session::Impl::Attention(const LayerWeights& w, int layer, const Batch& batch) {
  const kernels::AttentionShape shape = Shape();
  const auto [H, K, d] = shape;
  const int64_t width = w.qkv.out();
  const auto element = static_cast<int64_t>(DTypeSize(dtype));
  auto* data = static_cast<std::byte*>(qkv.Resize(T(), width, dtype));
  const kernels::HeadView q{data, T(), H, d, width};
  const kernels::HeadView k{data + H * d * element, T(), K, d, width};
  const kernels::HeadView v{data + (H + K) * d * element, T(), K, d, width};

  w.qkv.Apply(normed.data(), T(), qkv.data());
  Observe(kAttnQProjRaw, layer, q);
  Observe(kAttnKProjRaw, layer, k);
  Observe(kAttnVProjRaw, layer, v);

  kernels::RmsNorm(dtype, q, w.q_norm, config.rms_norm_eps);
  Observe(kAttnQNormed, layer, q);
  kernels::RmsNorm(dtype, k, w.k_norm, config.rms_norm_eps);
  Observe(kAttnKNormed, layer, k);

  kernels::Rope(dtype, q, rope, positions);
  Observe(kAttnQRope, layer, q);
  kernels::Rope(dtype, k, rope, positions);
  Observe(kAttnKRope, layer, k);

  for (kernels::Run& run : runs) {
    run.kv = cache.View(layer, batch.sequences[static_cast<size_t>(run.begin)]);
    const int64_t at = run.begin * width * element;
    kernels::WriteKeysAndValues(dtype, shape, run.kv, run.position, run.count, static_cast<std::byte*>(k.data) + at,
                                static_cast<std::byte*>(v.data) + at, width);
  }
  context.Resize(T(), H * d, dtype);
  AttentionOverCache(layer, q);
  Observe(kAttnContext, layer, kernels::HeadView{context.data(), T(), H, d, H * d});

  w.o_proj.Apply(context.data(), T(), projected.data());
  Observe(kAttnOProj, layer, projected.data(), config.hidden_size);
}

// q, cache -> context; through whole matrices of scores only where a tap wants to see them.
void Session::Impl::AttentionOverCache(int layer, const kernels::HeadView& q) {
  const kernels::AttentionShape shape = Shape();
  if (!Wants(kAttnScores, layer) && !Wants(kAttnProbs, layer)) {
    kernels::Attention(dtype, shape, q.data, q.stride, runs, context.data());
    return;
  }
  const int64_t keys = *std::max_element(positions.begin(), positions.end()) + 1;
  const auto observe = [&](Point point) {
    if (!Wants(point, layer)) return;
    const int64_t matrix[] = {T(), shape.heads, keys}, strides[] = {shape.heads * keys, keys, 1};
    Observe(point, layer, scores.data(), matrix, strides, DType::kF32, all_rows);
  };
  scores.resize(static_cast<size_t>(T() * shape.heads * keys));
  kernels::AttentionScores(dtype, shape, q.data, q.stride, runs, keys, scores.data());
  observe(kAttnScores);
  kernels::AttentionProbs(dtype, shape, runs, keys, scores.data());
  observe(kAttnProbs);
  kernels::AttentionContext(dtype, shape, scores.data(), runs, keys, context.data());
}

// normed -> projected
void Session::Impl::Mlp(const LayerWeights& w, int layer) {
  const int64_t I = config.intermediate_size;
  auto* gate = static_cast<std::byte*>(gate_up.Resize(T(), 2 * I, dtype));
  w.gate_up.Apply(normed.data(), T(), gate);
  Observe(kMlpGateProj, layer, gate, I, 2 * I);
  Observe(kMlpUpProj, layer, gate + static_cast<size_t>(I) * DTypeSize(dtype), I, 2 * I);
  kernels::SwiGlu(dtype, gate, T(), I, product.Resize(T(), I, dtype));
  Observe(kMlpIntermediate, layer, product.data(), I);
  w.down_proj.Apply(product.data(), T(), projected.data());
  Observe(kMlpDownProj, layer, projected.data(), config.hidden_size);
}

// normed -> the logits of the chosen rows
void Session::Impl::Head(std::span<const int32_t> rows) {
  const auto R = static_cast<int64_t>(rows.size());
  const int64_t V = config.vocab_size;
  const size_t row_bytes = static_cast<size_t>(config.hidden_size) * DTypeSize(dtype);
  const auto* from = static_cast<const std::byte*>(normed.data());
  auto* chosen = static_cast<std::byte*>(selected.Resize(R, config.hidden_size, dtype));
  for (size_t r = 0; r < rows.size(); ++r) {
    std::memcpy(chosen + r * row_bytes, from + static_cast<size_t>(rows[r]) * row_bytes, row_bytes);
  }
  model.lm_head.Apply(chosen, R, logits.Resize(R, V, dtype));
  if (Wants(kLogits, -1)) {
    const int64_t shape[] = {R, V}, strides[] = {V, 1};
    Observe(kLogits, -1, logits.data(), shape, strides, dtype, rows);
  }
  result.rows.assign(rows.begin(), rows.end());
  result.vocab = V;
  result.values.resize(static_cast<size_t>(R * V));
  kernels::Widen(dtype, logits.data(), R * V, result.values.data());
}

void CheckTokens(const Config& config, std::span<const int32_t> tokens) {
  for (size_t t = 0; t < tokens.size(); ++t) {
    if (tokens[t] >= 0 && tokens[t] < config.vocab_size) continue;
    throw Error("token " + std::to_string(t) + ": expected an id from 0 to " + std::to_string(config.vocab_size - 1) +
                ", found " + std::to_string(tokens[t]) + "; is it another model's tokenizer?");
  }
}

int32_t Logits::Greedy(size_t r) const {
  const std::span<const float> row = Row(r);
  return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

std::string Logits::Hash(size_t r) const {
  return FingerprintOfMatrix(DType::kF32, std::as_bytes(Row(r)).data(), 1, vocab);
}

Session::Session(const Model& model, int num_sequences, int64_t max_tokens) {
  if (num_sequences < 1 || max_tokens < 1) throw Error("a session needs at least one sequence and one token");
  if (max_tokens > model.config().max_position_embeddings) {
    throw Error(std::to_string(max_tokens) + " tokens are more than the model's max_position_embeddings, " +
                std::to_string(model.config().max_position_embeddings) + "; shorten the prompt or decode fewer");
  }
  impl_ = std::make_unique<Impl>(model, num_sequences, max_tokens);
}

Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;
const Logits& Session::Forward(const Batch& batch, Tap* tap) { return impl_->Forward(batch, tap); }
int64_t Session::Length(int sequence) const { return impl_->cache.Length(sequence); }

}  // namespace lockstep
