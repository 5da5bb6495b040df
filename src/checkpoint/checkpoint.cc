#include "lockstep/checkpoint.h"

#include <algorithm>
#include <cassert>
#include <charconv>
#include <cstring>
#include <functional>
#include <iterator>
#include <mutex>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/safetensors.h"
#include "checkpoint/model_directory.h"

namespace lockstep {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr size_t kMaxIndexBytes = size_t{256} << 20;

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";
constexpr std::string_view kLayerPrefix = "model.layers.";

// ---- What a Qwen3 consists of

enum class Dim { kNone, kHidden, kQueries, kKeys, kHeadDim, kIntermediate, kVocab };

struct Expected {
  std::string_view name;
  Dim rows;
  Dim columns = Dim::kNone;  // kNone: a vector
};

// In the order of PyTorch's parameters. Layer weights follow "model.layers.N.".
constexpr Expected kBeforeLayers[] = {{kEmbedding, Dim::kVocab, Dim::kHidden}};
constexpr Expected kLayer[] = {
    {"self_attn.q_proj.weight", Dim::kQueries, Dim::kHidden},
    {"self_attn.k_proj.weight", Dim::kKeys, Dim::kHidden},
    {"self_attn.v_proj.weight", Dim::kKeys, Dim::kHidden},
    {"self_attn.o_proj.weight", Dim::kHidden, Dim::kQueries},
    {"self_attn.q_norm.weight", Dim::kHeadDim},
    {"self_attn.k_norm.weight", Dim::kHeadDim},
    {"mlp.gate_proj.weight", Dim::kIntermediate, Dim::kHidden},
    {"mlp.up_proj.weight", Dim::kIntermediate, Dim::kHidden},
    {"mlp.down_proj.weight", Dim::kHidden, Dim::kIntermediate},
    {"input_layernorm.weight", Dim::kHidden},
    {"post_attention_layernorm.weight", Dim::kHidden},
};
constexpr Expected kAfterLayers[] = {{"model.norm.weight", Dim::kHidden}};
constexpr Expected kUntiedHead[] = {{kHead, Dim::kVocab, Dim::kHidden}};

int64_t Extent(Dim dim, const Config& config) {
  switch (dim) {
    case Dim::kNone: break;
    case Dim::kHidden: return config.hidden_size;
    case Dim::kQueries: return config.num_attention_heads * config.head_dim;
    case Dim::kKeys: return config.num_key_value_heads * config.head_dim;
    case Dim::kHeadDim: return config.head_dim;
    case Dim::kIntermediate: return config.intermediate_size;
    case Dim::kVocab: return config.vocab_size;
  }
  assert(false);
  return 0;
}

// Name and shape of every weight of the model; dtype and data are not known yet.
std::vector<Weight> ExpectedWeights(const Config& config) {
  std::vector<Weight> weights;
  const auto append = [&](const auto& table, const std::string& prefix) {
    for (const Expected& expected : table) {
      Weight& weight = weights.emplace_back();
      weight.name = prefix + std::string(expected.name);
      weight.shape = {Extent(expected.rows, config)};
      if (expected.columns != Dim::kNone) weight.shape.push_back(Extent(expected.columns, config));
    }
  };
  append(kBeforeLayers, "");
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    append(kLayer, std::string(kLayerPrefix) + std::to_string(layer) + ".");
  }
  append(kAfterLayers, "");
  if (!config.tie_word_embeddings) append(kUntiedHead, "");
  return weights;
}

// ---- The files

// The shards of an index, and the shard of each weight.
struct Index {
  std::set<std::string> files;
  std::vector<std::pair<std::string, std::string>> weight_map;  // weight, file
};

// For messages: names in files can be of any length.
std::string Shortened(const std::string& name) { return name.size() <= 200 ? name : name.substr(0, 200) + "..."; }

// A checkpoint from the internet must not make us open other files than its own.
bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

Index ReadIndex(const std::string& path) {
  const Json json = ParseJson(ReadTextFile(path, kMaxIndexBytes), path);
  const auto map = json.is_object() ? json.find("weight_map") : json.end();
  if (map == json.end() || !map->is_object() || map->empty()) {
    throw Error(path + ": expected an object \"weight_map\" from weight names to file names; download it again");
  }
  Index index;
  for (const auto& [weight, file] : map->items()) {
    if (!file.is_string() || !IsPlainFileName(file.get<std::string>())) {
      throw Error(path + ": weight_map of " + Shortened(weight) +
                  ": expected the name of a file in the same directory, found " + Shortened(file.dump(-1, ' ', true)) +
                  "; download it again");
    }
    index.weight_map.emplace_back(weight, file.get<std::string>());
    index.files.insert(file.get<std::string>());
  }
  return index;
}

struct Stored {
  const StoredTensor* tensor;
  const SafetensorsFile* file;
};

// Every weight in the files. The names live in `files`, which neither grows nor moves after this.
using StoredWeights = std::unordered_map<std::string_view, Stored>;

StoredWeights CollectWeights(const std::vector<SafetensorsFile>& files) {
  StoredWeights stored;
  for (const SafetensorsFile& file : files) {
    for (const StoredTensor& tensor : file.tensors) {
      const auto [it, is_new] = stored.emplace(tensor.name, Stored{&tensor, &file});
      if (!is_new) {
        throw Error(Shortened(tensor.name) + ": expected in one shard, found in " + it->second.file->file->path() +
                    " and in " + file.file->path() + "; download the shards again");
      }
    }
  }
  return stored;
}

std::vector<SafetensorsFile> OpenShards(const std::string& dir, const Index& index) {
  std::vector<SafetensorsFile> files;
  for (const std::string& name : index.files) {
    const std::string path = dir + "/" + name;
    if (!FileExists(path)) {
      throw Error(path + ": expected a shard, as " + kIndexFile + " says, found no such file; download it too");
    }
    files.push_back(OpenSafetensors(path));
  }
  return files;
}

// REQUIRES: every shard of the index is in `stored`.
void CheckIndex(const std::string& dir, const Index& index, const StoredWeights& stored) {
  for (const auto& [weight, file] : index.weight_map) {
    const auto it = stored.find(weight);
    const std::string path = dir + "/" + file;
    if (it != stored.end() && it->second.file->file->path() == path) continue;
    throw Error(Shortened(weight) + ": expected in " + path + ", as " + kIndexFile + " says, found " +
                (it == stored.end() ? "in no shard" : "in " + it->second.file->file->path()) +
                "; download the shards again");
  }
}

// ---- Names

// Whether the model of `num_layers` layers has a layer weight of this name.
bool IsLayerWeight(std::string_view name, int64_t num_layers) {
  if (!name.starts_with(kLayerPrefix)) return false;
  const std::string_view rest = name.substr(kLayerPrefix.size());
  const std::string_view number = rest.substr(0, rest.find('.'));
  int64_t layer = 0;
  std::from_chars(number.data(), number.data() + number.size(), layer);
  if (number.size() == rest.size() || std::to_string(layer) != number) return false;  // "01" is no layer
  const std::string_view suffix = rest.substr(number.size() + 1);
  return layer >= 0 && layer < num_layers &&
         std::any_of(std::begin(kLayer), std::end(kLayer), [&](const Expected& e) { return e.name == suffix; });
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);  // distances from a[0, i) to each prefix of b
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0]++;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

// Up to three names of `unclaimed`, nearest first. Bounded, because headers are not trusted.
std::string NearNames(const std::string& name, const std::vector<std::string>& unclaimed) {
  constexpr size_t kMaxNames = 10000;
  constexpr size_t kMaxLength = 200;
  constexpr size_t kMaxShown = 3;
  // What other exports put another prefix before, of whatever length.
  const std::string_view core = std::string_view(name).substr(name.starts_with("model.") ? 6 : 0);
  std::vector<std::pair<size_t, const std::string*>> near;
  for (size_t i = 0; i < std::min(unclaimed.size(), kMaxNames); ++i) {
    if (unclaimed[i].size() > kMaxLength) continue;
    const size_t distance = EditDistance(name, unclaimed[i]);
    if (distance <= name.size() / 2 || unclaimed[i].ends_with(core)) near.emplace_back(distance, &unclaimed[i]);
  }
  std::stable_sort(near.begin(), near.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::string text;
  for (size_t i = 0; i < std::min(near.size(), kMaxShown); ++i) text += (i ? ", " : "") + *near[i].second;
  return text;
}

// ---- Judging a weight

struct Context {
  const std::string& dir;
  const Config& config;
  const std::vector<std::string>& unclaimed;  // names that are in the files and not in the model
};

std::string MissingText(const Weight& expected, const Context& context) {
  std::string text = expected.name + ": expected " + ShapeText(expected.shape) + ", found no weight of this name";
  const std::string near = NearNames(expected.name, context.unclaimed);
  if (!near.empty()) return text + "; similar names are there: " + near + "; rename them in the export";
  if (expected.name == kHead) {
    return text + "; if the head shares the embedding's weight, config.json must say \"tie_word_embeddings\": true";
  }
  return text + "; incomplete download, or another model's config.json?";
}

std::string WrongShapeText(const Weight& expected, const StoredTensor& found, const Config& config) {
  std::string text =
      expected.name + ": expected " + ShapeText(expected.shape) + ", found " + ShapeText(found.shape) + "; ";
  const std::vector<int64_t> transposed(expected.shape.rbegin(), expected.shape.rend());
  if (found.shape == transposed) return text + "transposed export?";
  const bool of_heads = expected.name.find(".self_attn.") != std::string::npos;
  if (of_heads && config.head_dim * config.num_attention_heads == config.hidden_size) {
    return text + "is head_dim = " + std::to_string(config.head_dim) +
           " right? Without that key in config.json it is hidden_size / num_attention_heads";
  }
  return text + "another model's config.json?";
}

bool IsSupported(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16; }

// What is wrong with the weight; nothing: it is filled in.
std::optional<std::string> Fill(Weight& weight, const StoredTensor& found, const Config& config) {
  if (found.shape != weight.shape) return WrongShapeText(weight, found, config);
  if (!IsSupported(found.dtype)) {
    return weight.name + ": expected F32, BF16 or F16, found " + DTypeName(found.dtype) +
           "; take a checkpoint that is not quantized, or convert it";
  }
  weight.dtype = found.dtype;
  weight.data = found.data;
  weight.bytes = found.bytes;
  return std::nullopt;
}

// Fills in all weights, or throws the first fault and the number of the others.
void FillAll(std::vector<Weight>& weights, const StoredWeights& stored, const Context& context) {
  std::string first;
  size_t faults = 0;
  for (Weight& weight : weights) {
    const auto it = stored.find(weight.name);
    const bool missing = it == stored.end();
    // The search for near names is slow, so only the fault that is shown gets them.
    if (missing && ++faults == 1) first = MissingText(weight, context);
    if (missing) continue;
    const std::optional<std::string> fault = Fill(weight, *it->second.tensor, context.config);
    if (fault && ++faults == 1) first = *fault;
  }
  if (faults == 0) return;
  const std::string more =
      faults == 1 ? "" : " (and " + std::to_string(faults - 1) + " more weights are missing or wrong)";
  throw Error(context.dir + ": " + first + more);
}

}  // namespace

struct Checkpoint::Impl {
  std::string path;
  Config config;
  std::vector<SafetensorsFile> files;
  std::vector<Weight> weights;
  std::unordered_map<std::string, const Weight*> by_name;
  std::vector<std::string> unused;
  std::optional<Weight> spare_head;  // the lm_head.weight of a tied model

  std::once_flag spare_head_compared;

  StoredWeights MapFiles();
  std::vector<std::string> Unclaimed(int64_t num_layers_of_file) const;
  void ExplainSpareHead();
};

// Maps the files and parses their headers; reads nothing else.
StoredWeights Checkpoint::Impl::MapFiles() {
  const std::string single = path + "/" + kSingleFile;
  if (FileExists(single)) {
    files.push_back(OpenSafetensors(single));
    return CollectWeights(files);
  }
  const std::string index_path = path + "/" + kIndexFile;
  if (!FileExists(index_path)) {
    throw Error(path + ": expected " + kSingleFile + " or " + kIndexFile + ", found neither" +
                AdviceOnOtherFormats(path));
  }
  const Index index = ReadIndex(index_path);
  files = OpenShards(path, index);
  StoredWeights stored = CollectWeights(files);
  CheckIndex(path, index, stored);
  return stored;
}

std::vector<std::string> Checkpoint::Impl::Unclaimed(int64_t num_layers_of_file) const {
  std::unordered_set<std::string_view> claimed;
  for (const Weight& weight : weights) claimed.insert(weight.name);
  std::vector<std::string> names;
  for (const SafetensorsFile& file : files) {
    for (const StoredTensor& tensor : file.tensors) {
      // A layer that num_layers left out is of the model all the same.
      const bool is_layers = IsLayerWeight(tensor.name, num_layers_of_file);
      if (!is_layers && !claimed.contains(tensor.name)) names.push_back(tensor.name);
    }
  }
  return names;
}

// Small Qwen3 checkpoints are tied and carry a copy of the head all the same. One that is no copy may be the head that
// was meant.
void Checkpoint::Impl::ExplainSpareHead() {
  if (!spare_head) return;
  const Weight& embedding = *by_name.at(kEmbedding);
  const bool is_copy = spare_head->dtype == embedding.dtype && spare_head->shape == embedding.shape &&
                       std::memcmp(spare_head->data, embedding.data, embedding.bytes) == 0;
  if (is_copy) return;
  *std::find(unused.begin(), unused.end(), kHead) +=
      " (differs from " + std::string(kEmbedding) +
      ", which is used in its place, as tie_word_embeddings in config.json says)";
}

Checkpoint Checkpoint::Open(const std::string& model_dir, int num_layers) {
  auto impl = std::make_unique<Impl>();
  impl->path = model_dir;
  impl->config = ReadConfig(model_dir);
  const int64_t num_layers_of_file = impl->config.num_hidden_layers;
  if (num_layers != -1) {
    if (num_layers < 1 || num_layers > num_layers_of_file) {
      throw Error("number of layers: expected 1 to " + std::to_string(num_layers_of_file) + ", which " + model_dir +
                  " has, found " + std::to_string(num_layers));
    }
    impl->config.num_hidden_layers = num_layers;
  }

  const StoredWeights stored = impl->MapFiles();
  // From here on every file is valid and every name in them is unique.
  impl->weights = ExpectedWeights(impl->config);
  impl->unused = impl->Unclaimed(num_layers_of_file);
  FillAll(impl->weights, stored, {impl->path, impl->config, impl->unused});
  // From here on every weight has its data, its shape and a float dtype.
  for (const Weight& weight : impl->weights) impl->by_name.emplace(weight.name, &weight);
  if (impl->config.tie_word_embeddings) {
    impl->by_name.emplace(kHead, impl->by_name.at(kEmbedding));
    if (const auto head = stored.find(kHead); head != stored.end()) {
      const StoredTensor& tensor = *head->second.tensor;
      impl->spare_head = Weight{tensor.name, tensor.dtype, tensor.shape, tensor.data, tensor.bytes};
    }
  }
  return Checkpoint(std::move(impl));
}

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

const std::string& Checkpoint::path() const { return impl_->path; }

const Config& Checkpoint::config() const { return impl_->config; }

const Weight& Checkpoint::Get(const std::string& name) const {
  assert(impl_->by_name.contains(name));
  return *impl_->by_name.at(name);
}

const std::vector<Weight>& Checkpoint::weights() const { return impl_->weights; }

// Comparing the heads reads both, hundreds of megabytes: done here and not in Open, so that only who asks pays.
const std::vector<std::string>& Checkpoint::unused() const {
  std::call_once(impl_->spare_head_compared, [&] {
    impl_->ExplainSpareHead();
    if (!impl_->spare_head) return;
    Release(*impl_->spare_head);
    Release(impl_->weights.front());
  });
  return impl_->unused;
}

void Checkpoint::Release(const Weight& weight) const {
  for (const SafetensorsFile& file : impl_->files) {
    const std::span<const std::byte> bytes = file.file->bytes();
    const bool inside =
        !std::less<>()(weight.data, bytes.data()) && std::less<>()(weight.data, bytes.data() + bytes.size());
    if (inside) file.file->Release(weight.data, weight.bytes);
  }
}

}  // namespace lockstep
