#include "engine/weights.h"

#include <array>
#include <cstring>

#include "base/convert.h"
#include "base/fingerprint.h"
#include "base/parallel.h"

namespace lockstep {
namespace {

std::string LayerPrefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

// Each weight's name below "model.layers.N." beside its place: the one list for loading and for fingerprints.
struct NormPlace {
  const char* name;
  NormWeight LayerWeights::*place;
};
struct LinearPlace {
  const char* name;
  Linear LayerWeights::*place;
};
constexpr std::array<NormPlace, 4> kNorms = {{
    {"input_layernorm.weight", &LayerWeights::input_norm},
    {"self_attn.q_norm.weight", &LayerWeights::q_norm},
    {"self_attn.k_norm.weight", &LayerWeights::k_norm},
    {"post_attention_layernorm.weight", &LayerWeights::post_attention_norm},
}};
constexpr std::array<LinearPlace, 7> kLinears = {{
    {"self_attn.q_proj.weight", &LayerWeights::q_proj},
    {"self_attn.k_proj.weight", &LayerWeights::k_proj},
    {"self_attn.v_proj.weight", &LayerWeights::v_proj},
    {"self_attn.o_proj.weight", &LayerWeights::o_proj},
    {"mlp.gate_proj.weight", &LayerWeights::gate_proj},
    {"mlp.up_proj.weight", &LayerWeights::up_proj},
    {"mlp.down_proj.weight", &LayerWeights::down_proj},
}};

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kFinalNorm = "model.norm.weight";
constexpr const char* kHead = "lm_head.weight";

// Values rounded to the storage dtype: `count` elements of the checkpoint as f32.
void RoundedValues(DType from, const std::byte* data, size_t count, DType storage, float* out) {
  WidenToFloat(from, data, count, out);
  WithStorageType(storage, [&]<typename T>() {
    for (size_t i = 0; i < count; ++i) out[i] = ToFloat(FromFloat<T>(out[i]));
  });
}

NormWeight LoadNorm(const Checkpoint& checkpoint, const std::string& name, DType storage) {
  const Weight& weight = checkpoint.Get(name);
  NormWeight norm{name, std::vector<float>(static_cast<size_t>(weight.shape[0]))};
  RoundedValues(weight.dtype, weight.data, norm.values.size(), storage, norm.values.data());
  return norm;
}

Linear LoadLinear(const Checkpoint& checkpoint, const std::string& name, DType storage) {
  const Weight& weight = checkpoint.Get(name);
  Linear linear(weight, storage);
  checkpoint.Release(weight);  // packed now: the mapped pages are not read again
  return linear;
}

std::string NormFingerprint(const NormWeight& norm) {
  const auto* bytes = reinterpret_cast<const std::byte*>(norm.values.data());
  return FingerprintOfMatrix(DType::kF32, bytes, 1, static_cast<int64_t>(norm.values.size()));
}

}  // namespace

Model::Impl::Impl(Checkpoint from, DType storage) : checkpoint(std::move(from)), dtype(storage) {
  for (int64_t i = 0; i < checkpoint.config().num_hidden_layers; ++i) {
    LayerWeights layer;
    for (const NormPlace& norm : kNorms) layer.*norm.place = LoadNorm(checkpoint, LayerPrefix(i) + norm.name, dtype);
    for (const LinearPlace& linear : kLinears) {
      layer.*linear.place = LoadLinear(checkpoint, LayerPrefix(i) + linear.name, dtype);
    }
    layers.push_back(std::move(layer));
  }
  final_norm = LoadNorm(checkpoint, kFinalNorm, dtype);
  lm_head = LoadLinear(checkpoint, kHead, dtype);
}

void Model::Impl::Embed(std::span<const int32_t> tokens, void* out) const {
  const Weight& weight = checkpoint.Get(kEmbedding);
  const auto width = static_cast<size_t>(checkpoint.config().hidden_size);
  const size_t from_row = width * DTypeSize(weight.dtype);
  const size_t to_row = width * DTypeSize(dtype);
  ParallelFor(static_cast<int64_t>(tokens.size()), [&](int64_t t) {
    const std::byte* row = weight.data + static_cast<size_t>(tokens[static_cast<size_t>(t)]) * from_row;
    std::byte* to = static_cast<std::byte*>(out) + static_cast<size_t>(t) * to_row;
    std::vector<float> values(width);
    WidenToFloat(weight.dtype, row, width, values.data());
    NarrowFromFloat(dtype, values.data(), width, to);
  });
}

std::vector<Model::Fingerprint> Model::Fingerprints() const {
  std::vector<Fingerprint> out;
  const Config& c = config();
  // The embedding is read row by row from the mapped checkpoint, rounded to the storage dtype on the way.
  const Weight& embedding = checkpoint().Get(kEmbedding);
  std::vector<std::byte> rounded(static_cast<size_t>(c.vocab_size * c.hidden_size) * DTypeSize(dtype()));
  std::vector<int32_t> ids(static_cast<size_t>(c.vocab_size));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  impl_->Embed(ids, rounded.data());
  checkpoint().Release(embedding);
  out.push_back({kEmbedding,
                 {c.vocab_size, c.hidden_size},
                 FingerprintOfMatrix(dtype(), rounded.data(), c.vocab_size, c.hidden_size)});

  auto add_norm = [&](const NormWeight& norm) {
    out.push_back({norm.name, {static_cast<int64_t>(norm.values.size())}, NormFingerprint(norm)});
  };
  auto add_linear = [&](const std::string& name, const Linear& linear) {
    out.push_back({name, {linear.out(), linear.in()}, linear.Fingerprint()});
  };
  for (size_t i = 0; i < impl_->layers.size(); ++i) {
    const LayerWeights& layer = impl_->layers[i];
    for (const NormPlace& norm : kNorms) add_norm(layer.*norm.place);
    for (const LinearPlace& linear : kLinears) {
      add_linear(LayerPrefix(static_cast<int64_t>(i)) + linear.name, layer.*linear.place);
    }
  }
  add_norm(impl_->final_norm);
  add_linear(kHead, impl_->lm_head);
  return out;
}

Model Model::Load(const std::string& model_dir, const ModelOptions& options) {
  if (options.dtype != DType::kF32 && options.dtype != DType::kBF16 && options.dtype != DType::kF16) {
    throw Error(std::string("dtype ") + DTypeName(options.dtype) + " is not supported; expected f32, bf16 or f16");
  }
  return Model(std::make_unique<Impl>(Checkpoint::Open(model_dir, options.num_layers), options.dtype));
}

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;
const Config& Model::config() const { return impl_->checkpoint.config(); }
DType Model::dtype() const { return impl_->dtype; }
const Checkpoint& Model::checkpoint() const { return impl_->checkpoint; }

}  // namespace lockstep
