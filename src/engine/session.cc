// The forward pass, with the capture beside each op. Shapes: T tokens of the batch, D hidden, H query heads, K
// key/value heads, d head_dim, I intermediate, V vocabulary, R rows of logits.
#include <algorithm>
#include <cstring>
#include <set>

#include "base/convert.h"
#include "base/fingerprint.h"
#include "engine/kernels.h"
#include "engine/kv_cache.h"
#include "engine/weights.h"
#include "lockstep/engine.h"

namespace lockstep {

using enum Point;

namespace {

// Dense rows in the storage dtype, reused from call to call.
class Buffer {
 public:
  void* Resize(int64_t rows, int64_t width, DType dtype) {
    bytes_.resize(static_cast<size_t>(rows * width) * DTypeSize(dtype));
    return bytes_.data();
  }
  void* data() { return bytes_.data(); }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace

struct Session::Impl {
  Impl(const Model& from, int num_sequences, int64_t max_tokens)
      : model(from.impl()),
        config(from.config()),
        dtype(from.dtype()),
        cache(from.config(), from.dtype(), num_sequences, max_tokens),
        rope(from.config(), from.dtype(), max_tokens) {}

  const Model::Impl& model;
  const Config& config;
  DType dtype;
  KvCache cache;
  kernels::RopeTable rope;
  // hidden is the residual stream; normed and projected are [T, D]; gate becomes the product.
  Buffer hidden, normed, projected, q, k, v, context, gate, up, selected, logits;
  std::vector<float> scores;  // [T, H, keys], only where a tap wants them

  // Of the call that is running:
  Tap* tap = nullptr;
  std::vector<int32_t> positions;  // [T]
  std::vector<int32_t> all_rows;   // 0 … T-1

  Logits Forward(const Batch& batch, Tap* observer);
  void CheckBatch(const Batch& batch) const;
  void Place(const Batch& batch);
  std::vector<int32_t> LastRows(const Batch& batch) const;
  void Embed(const Batch& batch);
  void Attention(const LayerWeights& w, int layer, const Batch& batch);
  void AttentionOverCache(int layer, std::span<const kernels::KvView> kv);
  void Mlp(const LayerWeights& w, int layer);
  Logits Head(std::span<const int32_t> rows);

  int64_t T() const { return static_cast<int64_t>(positions.size()); }

  void RmsNorm(const void* x, const NormWeight& w, int64_t rows, void* y) const {
    kernels::RmsNorm(dtype, x, w.values, config.rms_norm_eps, rows, y);
  }

  void Observe(Point point, int layer, void* data, std::vector<int64_t> shape, DType type,
               std::span<const int32_t> rows) {
    if (tap == nullptr || !tap->Wants(point, layer)) return;
    std::vector<int64_t> strides(shape.size(), 1);
    for (size_t axis = shape.size() - 1; axis > 0; --axis) strides[axis - 1] = strides[axis] * shape[axis];
    tap->OnTensor({point, layer, type, std::move(shape), std::move(strides), data, rows});
  }
  void Observe(Point point, int layer, void* data, std::vector<int64_t> shape) {
    Observe(point, layer, data, std::move(shape), dtype, all_rows);
  }
};

void Session::Impl::CheckBatch(const Batch& batch) const {
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
  std::set<int32_t> seen;
  for (size_t begin = 0; begin < batch.sequences.size();) {
    const int32_t sequence = batch.sequences[begin];
    size_t end = begin;
    while (end < batch.sequences.size() && batch.sequences[end] == sequence) ++end;
    if (!seen.insert(sequence).second) {
      throw Error("sequence " + std::to_string(sequence) +
                  " stands twice in the batch; its tokens must be consecutive");
    }
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
  for (size_t t = 0; t < positions.size(); ++t) {
    const bool first = t == 0 || batch.sequences[t] != batch.sequences[t - 1];
    positions[t] = first ? static_cast<int32_t>(cache.Length(batch.sequences[t])) : positions[t - 1] + 1;
    all_rows[t] = static_cast<int32_t>(t);
  }
}

std::vector<int32_t> Session::Impl::LastRows(const Batch& batch) const {
  std::vector<int32_t> rows;
  for (size_t t = 0; t < batch.sequences.size(); ++t) {
    if (t + 1 == batch.sequences.size() || batch.sequences[t + 1] != batch.sequences[t]) {
      rows.push_back(static_cast<int32_t>(t));
    }
  }
  return rows;
}

void Session::Impl::Embed(const Batch& batch) {
  void* out = hidden.Resize(T(), config.hidden_size, dtype);
  if (batch.embeddings.empty()) {
    model.Embed(batch.tokens, out);
  } else {
    NarrowFromFloat(dtype, batch.embeddings.data(), batch.embeddings.size(), static_cast<std::byte*>(out));
  }
}

Logits Session::Impl::Forward(const Batch& batch, Tap* observer) {
  CheckBatch(batch);
  Place(batch);
  tap = observer;
  if (tap != nullptr) tap->OnBegin(batch, positions);

  const int64_t D = config.hidden_size;
  Embed(batch);
  Observe(kInputEmbeddings, -1, hidden.data(), {T(), D});
  normed.Resize(T(), D, dtype);
  projected.Resize(T(), D, dtype);

  for (int layer = 0; layer < static_cast<int>(model.layers.size()); ++layer) {
    const LayerWeights& w = model.layers[static_cast<size_t>(layer)];
    Observe(kInputHiddenStates, layer, hidden.data(), {T(), D});
    RmsNorm(hidden.data(), w.input_norm, T(), normed.data());
    Observe(kAttnNormOutput, layer, normed.data(), {T(), D});
    Attention(w, layer, batch);
    kernels::Add(dtype, hidden.data(), projected.data(), T() * D, hidden.data());
    Observe(kAttnResidualOutput, layer, hidden.data(), {T(), D});

    RmsNorm(hidden.data(), w.post_attention_norm, T(), normed.data());
    Observe(kMlpNormOutput, layer, normed.data(), {T(), D});
    Mlp(w, layer);
    kernels::Add(dtype, hidden.data(), projected.data(), T() * D, hidden.data());
    Observe(kLayerOutput, layer, hidden.data(), {T(), D});
  }

  RmsNorm(hidden.data(), model.final_norm, T(), normed.data());
  Observe(kFinalNormOutput, -1, normed.data(), {T(), D});
  const std::vector<int32_t> last = LastRows(batch);
  Logits result = Head(batch.logits_rows == LogitsRows::kAll ? all_rows : last);

  // From here on the call can not fail any more: the cache may move on.
  for (size_t t = 0; t < batch.sequences.size(); ++t) cache.Advance(batch.sequences[t], 1);
  if (tap != nullptr) {
    std::vector<int32_t> next;
    for (size_t r = 0; r < result.rows.size(); ++r) {
      if (std::binary_search(last.begin(), last.end(), result.rows[r])) next.push_back(result.Greedy(r));
    }
    tap->OnEnd(last, next);
  }
  return result;
}

// normed -> projected
void Session::Impl::Attention(const LayerWeights& w, int layer, const Batch& batch) {
  const int64_t H = config.num_attention_heads;
  const int64_t K = config.num_key_value_heads;
  const int64_t d = config.head_dim;

  w.q_proj.Apply(normed.data(), T(), q.Resize(T(), H * d, dtype));
  Observe(kAttnQProjRaw, layer, q.data(), {T(), H, d});
  w.k_proj.Apply(normed.data(), T(), k.Resize(T(), K * d, dtype));
  Observe(kAttnKProjRaw, layer, k.data(), {T(), K, d});
  w.v_proj.Apply(normed.data(), T(), v.Resize(T(), K * d, dtype));
  Observe(kAttnVProjRaw, layer, v.data(), {T(), K, d});

  RmsNorm(q.data(), w.q_norm, T() * H, q.data());
  Observe(kAttnQNormed, layer, q.data(), {T(), H, d});
  RmsNorm(k.data(), w.k_norm, T() * K, k.data());
  Observe(kAttnKNormed, layer, k.data(), {T(), K, d});

  kernels::Rope(dtype, q.data(), rope, positions, H, d);
  Observe(kAttnQRope, layer, q.data(), {T(), H, d});
  kernels::Rope(dtype, k.data(), rope, positions, K, d);
  Observe(kAttnKRope, layer, k.data(), {T(), K, d});

  const auto row_bytes = static_cast<size_t>(K * d) * DTypeSize(dtype);
  std::vector<kernels::KvView> kv(positions.size());  // [T]
  for (size_t t = 0; t < positions.size(); ++t) {
    const auto* key = static_cast<const std::byte*>(k.data()) + t * row_bytes;
    const auto* value = static_cast<const std::byte*>(v.data()) + t * row_bytes;
    cache.Write(layer, batch.sequences[t], positions[t], key, value);
    kv[t] = cache.View(layer, batch.sequences[t]);
  }
  context.Resize(T(), H * d, dtype);
  AttentionOverCache(layer, kv);
  Observe(kAttnContext, layer, context.data(), {T(), H, d});

  w.o_proj.Apply(context.data(), T(), projected.data());
  Observe(kAttnOProj, layer, projected.data(), {T(), config.hidden_size});
}

// q, kv -> context; through whole matrices of scores only where a tap wants to see them.
void Session::Impl::AttentionOverCache(int layer, std::span<const kernels::KvView> kv) {
  const kernels::AttentionShape shape{config.num_attention_heads, config.num_key_value_heads, config.head_dim};
  if (tap == nullptr || !(tap->Wants(kAttnScores, layer) || tap->Wants(kAttnProbs, layer))) {
    kernels::Attention(dtype, shape, q.data(), kv, positions, context.data());
    return;
  }
  const int64_t keys = *std::max_element(positions.begin(), positions.end()) + 1;
  const std::vector<int64_t> matrix = {T(), shape.heads, keys};
  scores.resize(static_cast<size_t>(T() * shape.heads * keys));
  kernels::AttentionScores(dtype, shape, q.data(), kv, positions, keys, scores.data());
  Observe(kAttnScores, layer, scores.data(), matrix, DType::kF32, all_rows);
  kernels::AttentionProbs(dtype, shape, positions, keys, scores.data());
  Observe(kAttnProbs, layer, scores.data(), matrix, DType::kF32, all_rows);
  kernels::AttentionContext(dtype, shape, scores.data(), kv, positions, keys, context.data());
}

// normed -> projected
void Session::Impl::Mlp(const LayerWeights& w, int layer) {
  const int64_t I = config.intermediate_size;
  w.gate_proj.Apply(normed.data(), T(), gate.Resize(T(), I, dtype));
  Observe(kMlpGateProj, layer, gate.data(), {T(), I});
  w.up_proj.Apply(normed.data(), T(), up.Resize(T(), I, dtype));
  Observe(kMlpUpProj, layer, up.data(), {T(), I});
  kernels::SwiGlu(dtype, gate.data(), up.data(), T() * I);
  Observe(kMlpIntermediate, layer, gate.data(), {T(), I});
  w.down_proj.Apply(gate.data(), T(), projected.data());
  Observe(kMlpDownProj, layer, projected.data(), {T(), config.hidden_size});
}

// normed -> logits of the chosen rows
Logits Session::Impl::Head(std::span<const int32_t> rows) {
  const auto R = static_cast<int64_t>(rows.size());
  const size_t row_bytes = static_cast<size_t>(config.hidden_size) * DTypeSize(dtype);
  const auto* from = static_cast<const std::byte*>(normed.data());
  auto* chosen = static_cast<std::byte*>(selected.Resize(R, config.hidden_size, dtype));
  for (size_t r = 0; r < rows.size(); ++r) {
    std::memcpy(chosen + r * row_bytes, from + static_cast<size_t>(rows[r]) * row_bytes, row_bytes);
  }
  model.lm_head.Apply(chosen, R, logits.Resize(R, config.vocab_size, dtype));
  Observe(kLogits, -1, logits.data(), {R, config.vocab_size}, dtype, rows);

  Logits result{{rows.begin(), rows.end()}, config.vocab_size, {}};
  result.values.resize(static_cast<size_t>(R * config.vocab_size));
  WidenToFloat(dtype, static_cast<const std::byte*>(logits.data()), result.values.size(), result.values.data());
  return result;
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
Logits Session::Forward(const Batch& batch, Tap* tap) { return impl_->Forward(batch, tap); }
int64_t Session::Length(int sequence) const { return impl_->cache.Length(sequence); }

}  // namespace lockstep
