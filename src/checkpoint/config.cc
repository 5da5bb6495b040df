// config.json, read strictly. Whatever would silently change the numbers (another RoPE, a window, a bias) is refused by
// name. Of the defaults of transformers' Qwen3Config only the switches are relied on:
//   tie_word_embeddings, attention_bias, use_sliding_window absent: false; hidden_act absent: silu.
// Sizes, eps and theta have none here, because those of Qwen3Config fit hardly any model. An absent head_dim is
// hidden_size / num_attention_heads, not Qwen3Config's 128; the shapes of q_norm and k_norm then show whether that
// holds.
#include <optional>
#include <utility>

#include "base/json.h"
#include "base/mapped_file.h"
#include "checkpoint/model_directory.h"
#include "lockstep/checkpoint.h"

namespace lockstep {
namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;

// Far above any real model; a larger number is a damaged file. So no product of two dimensions overflows.
constexpr int64_t kMaxDimension = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxPositions = int64_t{1} << 30;
constexpr double kMaxEps = 1.0;
constexpr double kMaxTheta = 1e30;

constexpr const char* kCorrect = "correct the file, or download it again";

std::string Shown(const Json& value) {
  const std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

std::string NumberText(double value) { return Json(value).dump(); }

// An object of config.json. Null counts as absent, as in transformers.
class Reader {
 public:
  // `prefix` stands before the keys in messages ("rope_parameters.").
  Reader(const Json& object, std::string path, std::string prefix = "")
      : object_(object), path_(std::move(path)), prefix_(std::move(prefix)) {}

  [[noreturn]] void Fail(const std::string& key, const std::string& expected, const std::string& found,
                         const std::string& way_out = kCorrect) const {
    throw Error(path_ + ": " + prefix_ + key + ": expected " + expected + ", found " + found + "; " + way_out);
  }

  const Json* Find(const std::string& key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  bool IsNull(const std::string& key) const { return object_.contains(key) && Find(key) == nullptr; }

  std::string Found(const std::string& key) const {
    const auto found = object_.find(key);
    return found == object_.end() ? "nothing" : Shown(*found);
  }

  int64_t Integer(const std::string& key, int64_t limit = kMaxDimension) const {
    const Json* value = Find(key);
    const bool whole = value != nullptr && value->is_number_unsigned();
    if (!whole || value->get<uint64_t>() < 1 || value->get<uint64_t>() > static_cast<uint64_t>(limit)) {
      Fail(key, "an integer from 1 to " + std::to_string(limit), Found(key));
    }
    return value->get<int64_t>();
  }

  double Positive(const std::string& key, double limit) const {
    const Json* value = Find(key);
    const double number = value != nullptr && value->is_number() ? value->get<double>() : 0;
    if (!(number > 0 && number <= limit)) Fail(key, "a number above 0 and at most " + NumberText(limit), Found(key));
    return number;
  }

  bool Boolean(const std::string& key) const {
    const Json* value = Find(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) Fail(key, "true or false", Found(key));
    return value->get<bool>();
  }

  void RefuseTrue(const std::string& key, const std::string& why) const {
    if (Boolean(key)) Fail(key, "false", "true", why);
  }

  // The key may be absent.
  void RequireText(const std::string& key, const std::string& expected, const std::string& why) const {
    const Json* value = Find(key);
    if (value != nullptr && *value != expected) Fail(key, '"' + expected + '"', Found(key), why);
  }

  const Json& object() const { return object_; }
  const std::string& path() const { return path_; }

 private:
  const Json& object_;
  std::string path_;
  std::string prefix_;
};

void RefuseOtherModels(const Reader& in) {
  const Json* type = in.Find("model_type");
  if (type == nullptr || *type != "qwen3") {
    in.Fail("model_type", "\"qwen3\"", in.Found("model_type"),
            "only the dense Qwen3 is supported; qwen2 (no q_norm and k_norm), qwen3_moe (experts) and others are other "
            "models");
  }
  in.RequireText("hidden_act", "silu", "other activations are not supported");
  in.RefuseTrue("attention_bias", "projections with a bias are not supported");
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (in.Find(key) != nullptr) {
      in.Fail(key, "nothing", in.Found(key),
              "quantized checkpoints are not supported; take the checkpoint in bf16, f16 or f32 that it was made from");
    }
  }
}

// `sliding_window` alone has no effect, and released files carry it: the switch and the types of the layers count.
void RefuseWindows(const Reader& in, int64_t num_layers) {
  in.RefuseTrue("use_sliding_window", "sliding-window attention is not supported");
  const Json* types = in.Find("layer_types");
  if (types == nullptr) return;
  if (!types->is_array()) in.Fail("layer_types", "a list", in.Found("layer_types"));
  for (size_t layer = 0; layer < types->size(); ++layer) {
    if ((*types)[layer] != "full_attention") {
      in.Fail("layer_types[" + std::to_string(layer) + "]", "\"full_attention\"", Shown((*types)[layer]),
              "other attention is not supported");
    }
  }
  if (types->size() != static_cast<size_t>(num_layers)) {
    in.Fail("layer_types", "num_hidden_layers = " + std::to_string(num_layers) + " entries",
            std::to_string(types->size()));
  }
}

// Plain RoPE only, so every key that could change it is refused, known or not (among them parameters per layer type).
void RequirePlainRope(const Reader& rope) {
  const std::string why =
      "scaled RoPE (yarn, linear, dynamic, llama3, ...) is not supported; with nothing but rope_type \"default\" and "
      "rope_theta the model runs within its original length";
  rope.RequireText("rope_type", "default", why);
  rope.RequireText("type", "default", why);
  for (const auto& [name, value] : rope.object().items()) {
    const bool is_plain = name == "rope_type" || name == "type" || name == "rope_theta" || value.is_null() ||
                          (name == "partial_rotary_factor" && value == 1);
    if (!is_plain) rope.Fail(name, "no such key", Shown(value), why);
  }
}

// Older files hold theta at top level, those of transformers >= 5 in rope_parameters. Places that hold one must agree.
double RopeTheta(const Reader& in) {
  std::optional<double> theta;
  std::string where;
  const auto take = [&](const Reader& reader, const std::string& name) {
    if (reader.Find("rope_theta") == nullptr) return;
    const double found = reader.Positive("rope_theta", kMaxTheta);
    if (theta && *theta != found) {
      in.Fail(name, where + " = " + NumberText(*theta), NumberText(found), "remove the wrong one");
    }
    theta = found;
    where = name;
  };
  take(in, "rope_theta");
  for (const std::string key : {"rope_parameters", "rope_scaling"}) {
    const Json* value = in.Find(key);
    if (value == nullptr) continue;
    if (!value->is_object()) in.Fail(key, "an object or null", in.Found(key));
    const Reader rope(*value, in.path(), key + ".");
    RequirePlainRope(rope);
    take(rope, key + ".rope_theta");
  }
  const Json* factor = in.Find("partial_rotary_factor");
  if (factor != nullptr && *factor != 1) {
    in.Fail("partial_rotary_factor", "1", Shown(*factor), "RoPE over a part of head_dim is not supported");
  }
  if (!theta) {
    in.Fail("rope_theta", "a number, at top level or in rope_parameters", "nothing",
            "take it from the original checkpoint (1000000 in most Qwen3, 5000000 in the 2507 releases); it is never "
            "guessed");
  }
  return *theta;
}

void ReadHeads(const Reader& in, Config& config) {
  config.num_attention_heads = in.Integer("num_attention_heads");
  const std::string heads = "num_attention_heads = " + std::to_string(config.num_attention_heads);
  // Null means "as many as query heads" to transformers, but absence means 32: that is not relied on.
  config.num_key_value_heads =
      in.IsNull("num_key_value_heads") ? config.num_attention_heads : in.Integer("num_key_value_heads");
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    in.Fail("num_key_value_heads", "a divisor of " + heads, in.Found("num_key_value_heads"));
  }

  if (in.Find("head_dim") != nullptr) {
    config.head_dim = in.Integer("head_dim");
  } else if (config.hidden_size % config.num_attention_heads == 0) {
    config.head_dim = config.hidden_size / config.num_attention_heads;
  } else {
    in.Fail("head_dim", "the key, or hidden_size a multiple of " + heads,
            "no head_dim and hidden_size = " + std::to_string(config.hidden_size));
  }
  if (config.head_dim % 2 != 0) {
    in.Fail("head_dim", "an even number, because RoPE turns pairs", std::to_string(config.head_dim));
  }
  const int64_t width = config.num_attention_heads * config.head_dim;
  if (width > kMaxDimension) {
    in.Fail("num_attention_heads * head_dim", "at most " + std::to_string(kMaxDimension), std::to_string(width));
  }
}

}  // namespace

Config ReadConfig(const std::string& model_dir) {
  RequireModelDirectory(model_dir);
  const std::string path = model_dir + "/config.json";
  if (!FileExists(path)) {
    throw Error(path + ": expected the config.json of a Hugging Face checkpoint, found no such file" +
                AdviceOnOtherFormats(model_dir));
  }
  const Json json = ParseJson(ReadTextFile(path, kMaxConfigBytes), path);
  if (!json.is_object()) throw Error(path + ": expected a JSON object, found " + Shown(json) + "; " + kCorrect);
  const Reader in(json, path);

  RefuseOtherModels(in);
  Config config;
  config.num_hidden_layers = in.Integer("num_hidden_layers", kMaxLayers);
  RefuseWindows(in, config.num_hidden_layers);
  config.hidden_size = in.Integer("hidden_size");
  ReadHeads(in, config);
  config.intermediate_size = in.Integer("intermediate_size");
  config.vocab_size = in.Integer("vocab_size");
  config.max_position_embeddings = in.Integer("max_position_embeddings", kMaxPositions);
  config.rms_norm_eps = in.Positive("rms_norm_eps", kMaxEps);
  config.rope_theta = RopeTheta(in);
  config.tie_word_embeddings = in.Boolean("tie_word_embeddings");
  return config;
}

std::string Config::TraceJson() const {
  return Json{{"hidden_size", hidden_size},
              {"num_hidden_layers", num_hidden_layers},
              {"num_attention_heads", num_attention_heads},
              {"num_key_value_heads", num_key_value_heads},
              {"head_dim", head_dim},
              {"intermediate_size", intermediate_size},
              {"vocab_size", vocab_size},
              {"rms_norm_eps", rms_norm_eps},
              {"rope_theta", rope_theta},
              {"tie_word_embeddings", tie_word_embeddings},
              {"max_position_embeddings", max_position_embeddings}}
      .dump();
}

}  // namespace lockstep
