#include "model.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace {

float Dot(const float* a, const float* b, int n) { return std::inner_product(a, a + n, b, 0.0F); }

// x [rows, in], weight [out, in] -> [rows, out]
Floats Linear(const Floats& x, const Floats& weight, int rows) {
  const int in = static_cast<int>(x.size()) / rows;
  const int out = static_cast<int>(weight.size()) / in;
  Floats y(static_cast<size_t>(rows) * out);
  for (int r = 0; r < rows; ++r) {
    for (int o = 0; o < out; ++o) y[size_t(r) * out + o] = Dot(&x[size_t(r) * in], &weight[size_t(o) * in], in);
  }
  return y;
}

// Each row of weight.size() values by itself: tokens, or the heads of tokens.
Floats RmsNorm(const Floats& x, const Floats& weight, float eps) {
  const int n = static_cast<int>(weight.size());
  Floats y(x.size());
  for (size_t row = 0; row < x.size(); row += n) {
    const float scale = 1.0F / std::sqrt(Dot(&x[row], &x[row], n) / n + eps);
    for (int i = 0; i < n; ++i) y[row + i] = weight[i] * (x[row + i] * scale);
  }
  return y;
}

void AddTo(Floats& x, const Floats& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

}  // namespace

Model::Model(const std::string& directory) : config_(LoadConfig(directory)) {
  Weights weights(directory + "/model.safetensors");
  const size_t hidden = config_.hidden, inner = config_.intermediate, d = config_.head_dim;
  const size_t q = config_.heads * d, kv = config_.kv_heads * d;
  embed_ = weights.Take("model.embed_tokens.weight", config_.vocab * hidden);
  norm_ = weights.Take("model.norm.weight", hidden);
  if (!config_.tied) lm_head_ = weights.Take("lm_head.weight", config_.vocab * hidden);
  for (int n = 0; n < config_.layers; ++n) {
    const auto take = [&](const char* name, size_t size) {
      return weights.Take("model.layers." + std::to_string(n) + "." + name + ".weight", size);
    };
    Layer layer;
    layer.input_norm = take("input_layernorm", hidden);
    layer.q_proj = take("self_attn.q_proj", q * hidden);
    layer.k_proj = take("self_attn.k_proj", kv * hidden);
    layer.v_proj = take("self_attn.v_proj", kv * hidden);
    layer.q_norm = take("self_attn.q_norm", d);
    layer.k_norm = take("self_attn.k_norm", d);
    layer.o_proj = take("self_attn.o_proj", hidden * q);
    layer.post_norm = take("post_attention_layernorm", hidden);
    layer.gate_proj = take("mlp.gate_proj", inner * hidden);
    layer.up_proj = take("mlp.up_proj", inner * hidden);
    layer.down_proj = take("mlp.down_proj", hidden * inner);
    layers_.push_back(std::move(layer));
  }
}

int32_t Model::Forward(const std::vector<int32_t>& ids) {
  const int tokens = static_cast<int>(ids.size());
  std::vector<int32_t> positions(tokens);
  std::iota(positions.begin(), positions.end(), past_);
  const auto phase = past_ == 0 ? lockstep::Phase::kPrefill : lockstep::Phase::kDecode;
  step_ = trace.BeginStep(ids.data(), positions.data(), nullptr, tokens, phase);

  Floats x;  // [tokens, hidden]
  for (const int32_t id : ids) {
    if (id < 0 || id >= config_.vocab) throw std::runtime_error("no such token: " + std::to_string(id));
    const auto row = embed_.begin() + static_cast<ptrdiff_t>(id) * config_.hidden;
    x.insert(x.end(), row, row + config_.hidden);
  }
  step_.Record("input_embeddings", x.data(), lockstep::DType::kF32, {tokens, config_.hidden});
  for (int n = 0; n < config_.layers; ++n) RunLayer(layers_[n], n, x, tokens);
  past_ += tokens;

  const Floats last(x.end() - config_.hidden, x.end());  // only the last token's logits are needed
  const Floats logits = Linear(RmsNorm(last, norm_, config_.eps), config_.tied ? embed_ : lm_head_, 1);
  const auto next = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  step_.RecordRows("logits", logits.data(), lockstep::DType::kF32, {1, config_.vocab}, {tokens - 1});
  step_.RecordRows("next_token", &next, lockstep::DType::kI32, {1}, {tokens - 1});
  step_.End();
  return next;
}

void Model::RunLayer(Layer& layer, int index, Floats& x, int tokens) {
  const int heads = config_.heads, kv_heads = config_.kv_heads, d = config_.head_dim;
  const auto record = [&](const char* point, const Floats& y, lockstep::ListView<int64_t> shape) {
    const std::string name = "layer_" + std::to_string(index) + "_" + point;
    step_.Record(name, y.data(), lockstep::DType::kF32, shape);
  };

  const Floats normed = RmsNorm(x, layer.input_norm, config_.eps);
  Floats q = RmsNorm(Linear(normed, layer.q_proj, tokens), layer.q_norm, config_.eps);  // [tokens, heads, head_dim]
  Floats k = RmsNorm(Linear(normed, layer.k_proj, tokens), layer.k_norm, config_.eps);  // [tokens, kv_heads, head_dim]
  const Floats v = Linear(normed, layer.v_proj, tokens);                                // [tokens, kv_heads, head_dim]
  record("attn_q_normed", q, {tokens, heads, d});
  record("attn_k_normed", k, {tokens, kv_heads, d});
  record("attn_v_proj_raw", v, {tokens, kv_heads, d});
  Rope(q, tokens, heads);
  Rope(k, tokens, kv_heads);
  record("attn_q_rope", q, {tokens, heads, d});
  record("attn_k_rope", k, {tokens, kv_heads, d});
  layer.k_cache.insert(layer.k_cache.end(), k.begin(), k.end());
  layer.v_cache.insert(layer.v_cache.end(), v.begin(), v.end());
  Floats context(q.size());  // [tokens, heads, head_dim]
  Attend(layer, q, tokens, context);
  record("attn_context", context, {tokens, heads, d});
  AddTo(x, Linear(context, layer.o_proj, tokens));
  record("attn_residual_output", x, {tokens, config_.hidden});

  const Floats middle = RmsNorm(x, layer.post_norm, config_.eps);
  Floats gate = Linear(middle, layer.gate_proj, tokens);  // [tokens, intermediate]
  const Floats up = Linear(middle, layer.up_proj, tokens);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
  record("mlp_intermediate", gate, {tokens, config_.intermediate});
  AddTo(x, Linear(gate, layer.down_proj, tokens));
  record("layer_output", x, {tokens, config_.hidden});
}

// Turns channel i with channel i + head_dim / 2, as Hugging Face does.
void Model::Rope(Floats& x, int tokens, int heads) const {
  const int half = config_.head_dim / 2;
  for (int t = 0; t < tokens; ++t) {
    for (int i = 0; i < half; ++i) {
      const float angle = static_cast<float>(past_ + t) * std::pow(config_.rope_theta, -static_cast<float>(i) / half);
      const float c = std::cos(angle), s = std::sin(angle);
      for (int h = 0; h < heads; ++h) {
        float* head = &x[(size_t(t) * heads + h) * config_.head_dim];
        const float a = head[i], b = head[i + half];
        head[i] = a * c - b * s;
        head[i + half] = b * c + a * s;
      }
    }
  }
}

void Model::Attend(const Layer& layer, const Floats& q, int tokens, Floats& out) const {
  const int heads = config_.heads, kv_heads = config_.kv_heads, d = config_.head_dim;
  const float scale = 1.0F / std::sqrt(static_cast<float>(d));
  for (int t = 0; t < tokens; ++t) {
    Floats p(past_ + t + 1);  // a token sees itself and all before it
    for (int h = 0; h < heads; ++h) {
      const size_t row = (size_t(t) * heads + h) * d;
      const int group = h / (heads / kv_heads);
      const auto cached = [&](const Floats& cache, size_t j) { return &cache[(j * kv_heads + group) * d]; };
      for (size_t j = 0; j < p.size(); ++j) p[j] = Dot(&q[row], cached(layer.k_cache, j), d) * scale;
      const float largest = *std::max_element(p.begin(), p.end());
      for (float& score : p) score = std::exp(score - largest);
      const float sum = std::accumulate(p.begin(), p.end(), 0.0F);
      for (size_t j = 0; j < p.size(); ++j) {
        const float* value = cached(layer.v_cache, j);
        for (int i = 0; i < d; ++i) out[row + i] += p[j] / sum * value[i];
      }
    }
  }
}
