#include "engine/weights.h"

#include <array>
#include <span>

#include "base/convert.h"
#include "base/fingerprint.h"
#include "base/parallel.h"

namespace lockstep {
namespace {

const std::string kEmbedding = "model.embed_tokens.weight";  // no allocation where a row is read
constexpr const char* kFinalNorm = "model.norm.weight";
constexpr const char* kHead = "lm_head.weight";

// A weight's name below "model.layers.N." and its rows.
struct Part {
  const char* name;
  int64_t (*rows)(const Config&);
};
struct NormPlace {
  const char* name;
  int64_t Config::*width;
  NormWeight LayerWeights::*place;
};
struct LinearPlace {
  std::vector<Part> parts;  // from top to bottom
  int64_t (*columns)(const Config&);
  Linear LayerWeights::*place;
};

int64_t Hidden(const Config& c) { return c.hidden_size; }
int64_t Intermediate(const Config& c) { return c.intermediate_size; }
int64_t QueryWidth(const Config& c) { return c.num_attention_heads * c.head_dim; }
int64_t KeyWidth(const Config& c) { return c.num_key_value_heads * c.head_dim; }

// The one list of a layer's weights, for loading and for fingerprints.
const std::array<NormPlace, 4> kNorms = {{
    {"input_layernorm.weight", &Config::hidden_size, &LayerWeights::input_norm},
    {"self_attn.q_norm.weight", &Config::head_dim, &LayerWeights::q_norm},
    {"self_attn.k_norm.weight", &Config::head_dim, &LayerWeights::k_norm},
    {"post_attention_layernorm.weight", &Config::hidden_size, &LayerWeights::post_attention_norm},
}};
const std::array<LinearPlace, 4> kLinears = {{
    {{{"self_attn.q_proj.weight", QueryWidth},
      {"self_attn.k_proj.weight", KeyWidth},
      {"self_attn.v_proj.weight", KeyWidth}},
     Hidden,
     &LayerWeights::qkv},
    {{{"self_attn.o_proj.weight", Hidden}}, QueryWidth, &LayerWeights::o_proj},
    {{{"mlp.gate_proj.weight", Intermediate}, {"mlp.up_proj.weight", Intermediate}}, Hidden, &LayerWeights::gate_up},
    {{{"mlp.down_proj.weight", Hidden}}, Intermediate, &LayerWeights::down_proj},
}};

std::string LayerPrefix(size_t layer) { return "model.layers." + std::to_string(layer) + "."; }

NormWeight LoadNorm(const WeightSource& source, const std::string& name, int64_t width, DType storage) {
  std::vector<std::byte> stored(static_cast<size_t>(width) * DTypeSize(storage));
  source.Read(name, 0, width, storage, stored.data());
  NormWeight norm(static_cast<size_t>(width));
  WidenToFloat(storage, stored.data(), norm.size(), norm.data());
  return norm;
}

Linear LoadLinear(const WeightSource& source, const std::string& prefix, std::span<const Part> parts, int64_t columns,
                  DType storage) {
  const Config& config = source.config();
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.rows(config);
  const size_t row_bytes = static_cast<size_t>(columns) * DTypeSize(storage);
  const auto plain = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(rows) * row_bytes);
  std::byte* to = plain.get();
  for (const Part& part : parts) {
    source.Read(prefix + part.name, 0, part.rows(config) * columns, storage, to);
    source.Release(prefix + part.name);
    to += static_cast<size_t>(part.rows(config)) * row_bytes;
  }
  return {plain.get(), rows, columns, storage};
}

int64_t Vocabulary(const Config& c) { return c.vocab_size; }
const Part kHeadPart = {kHead, Vocabulary};

// The fingerprints of a linear's parts, in their order.
void AddFingerprints(const Config& config, const std::string& prefix, std::span<const Part> parts, const Linear& linear,
                     DType storage, std::vector<Model::Fingerprint>& out) {
  const std::vector<std::byte> plain = linear.Unpacked();
  size_t at = 0;
  for (const Part& part : parts) {
    const int64_t rows = part.rows(config);
    out.push_back(
        {prefix + part.name, {rows, linear.in()}, FingerprintOfMatrix(storage, plain.data() + at, rows, linear.in())});
    at += static_cast<size_t>(rows * linear.in()) * DTypeSize(storage);
  }
}

Model::Fingerprint FingerprintOfNorm(const std::string& name, const NormWeight& norm) {
  const auto width = static_cast<int64_t>(norm.size());
  const auto* bytes = reinterpret_cast<const std::byte*>(norm.data());
  return {name, {width}, FingerprintOfMatrix(DType::kF32, bytes, 1, width)};
}

DType Supported(DType dtype) {
  if (dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16) return dtype;
  throw Error(std::string("dtype ") + DTypeName(dtype) + " is not supported; expected f32, bf16 or f16");
}

}  // namespace

// The head comes first: while it is packed it is in memory twice, and nothing else is yet.
Model::Impl::Impl(std::unique_ptr<WeightSource> from, DType storage) : source(std::move(from)), dtype(storage) {
  const Config& config = source->config();
  lm_head = LoadLinear(*source, "", {&kHeadPart, 1}, config.hidden_size, dtype);
  layers.resize(static_cast<size_t>(config.num_hidden_layers));
  for (size_t i = 0; i < layers.size(); ++i) {
    for (const NormPlace& norm : kNorms) {
      layers[i].*norm.place = LoadNorm(*source, LayerPrefix(i) + norm.name, config.*norm.width, dtype);
    }
    for (const LinearPlace& linear : kLinears) {
      layers[i].*linear.place = LoadLinear(*source, LayerPrefix(i), linear.parts, linear.columns(config), dtype);
    }
  }
  final_norm = LoadNorm(*source, kFinalNorm, config.hidden_size, dtype);
}

void Model::Impl::Embed(std::span<const int32_t> tokens, void* out) const {
  const int64_t width = source->config().hidden_size;
  const int64_t row_bytes = width * static_cast<int64_t>(DTypeSize(dtype));
  const auto count = static_cast<int64_t>(tokens.size());
  ParallelForIf(count > 8, count, [&](int64_t t) {
    source->Read(kEmbedding, tokens[static_cast<size_t>(t)] * width, width, dtype,
                 static_cast<std::byte*>(out) + t * row_bytes);
  });
}

std::vector<Model::Fingerprint> Model::Fingerprints() const {
  std::vector<Fingerprint> out;
  const Config& c = config();
  std::vector<std::byte> embedding(static_cast<size_t>(c.vocab_size * c.hidden_size) * DTypeSize(dtype()));
  impl_->source->Read(kEmbedding, 0, c.vocab_size * c.hidden_size, dtype(), embedding.data());
  impl_->source->Release(kEmbedding);
  out.push_back({kEmbedding,
                 {c.vocab_size, c.hidden_size},
                 FingerprintOfMatrix(dtype(), embedding.data(), c.vocab_size, c.hidden_size)});
  for (size_t i = 0; i < impl_->layers.size(); ++i) {
    const LayerWeights& layer = impl_->layers[i];
    for (const NormPlace& norm : kNorms) {
      out.push_back(FingerprintOfNorm(LayerPrefix(i) + norm.name, layer.*norm.place));
    }
    for (const LinearPlace& linear : kLinears) {
      AddFingerprints(c, LayerPrefix(i), linear.parts, layer.*linear.place, dtype(), out);
    }
  }
  out.push_back(FingerprintOfNorm(kFinalNorm, impl_->final_norm));
  AddFingerprints(c, "", {&kHeadPart, 1}, impl_->lm_head, dtype(), out);
  return out;
}

Model Model::Load(const std::string& model_dir, const ModelOptions& options) {
  const DType dtype = Supported(options.dtype);
  return Model(std::make_unique<Impl>(SourceOf(Checkpoint::Open(model_dir, options.num_layers)), dtype));
}

Model Model::Random(const Config& config, const ModelOptions& options, uint64_t seed) {
  const DType dtype = Supported(options.dtype);
  Config cut = config;
  if (options.num_layers >= 0) cut.num_hidden_layers = options.num_layers;
  return Model(std::make_unique<Impl>(RandomSource(cut, seed), dtype));
}

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;
const Config& Model::config() const { return impl_->source->config(); }
DType Model::dtype() const { return impl_->dtype; }
const Checkpoint* Model::checkpoint() const { return impl_->source->checkpoint(); }

}  // namespace lockstep
