#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "checkpoint/test_files.h"
#include "lockstep/checkpoint.h"

namespace lockstep {
namespace {

using test::ErrorOf;
using test::Json;
using test::TempDir;
using test::TinyConfig;
using test::WriteText;
using ::testing::HasSubstr;

using Edit = std::function<void(Json&)>;

Edit Set(const std::string& key, const std::string& json_text) {
  return [=](Json& config) { config[key] = Json::parse(json_text); };
}
Edit Erase(const std::string& key) {
  return [=](Json& config) { config.erase(key); };
}
Edit Both(const Edit& first, const Edit& second) {
  return [=](Json& config) { first(config), second(config); };
}

Config ReadText(const std::string& text) {
  const TempDir dir;
  WriteText(dir / "config.json", text);
  return ReadConfig(dir.path());
}

Config ReadEdited(const Edit& edit) {
  Json config = TinyConfig();
  edit(config);
  return ReadText(config.dump(2));
}

TEST(ReadConfig, ReadsEveryKey) {
  const Config config = ReadText(TinyConfig().dump());
  EXPECT_EQ(config.hidden_size, 12);
  EXPECT_EQ(config.num_hidden_layers, 2);
  EXPECT_EQ(config.num_attention_heads, 4);
  EXPECT_EQ(config.num_key_value_heads, 2);
  EXPECT_EQ(config.head_dim, 6);
  EXPECT_EQ(config.intermediate_size, 20);
  EXPECT_EQ(config.vocab_size, 32);
  EXPECT_EQ(config.max_position_embeddings, 64);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.rope_theta, 1e6);
  EXPECT_TRUE(config.tie_word_embeddings);
}

TEST(ReadConfig, TraceJsonHoldsTheKeysOfTheFormat) {
  const Json json = Json::parse(ReadText(TinyConfig().dump()).TraceJson());
  const Json expected = Json::parse(R"({
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
    "intermediate_size": 20, "vocab_size": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
    "max_position_embeddings": 64
  })");
  EXPECT_EQ(json, expected);
}

TEST(ReadConfig, TraceJsonKeepsDoublesExactly) {
  Config config;
  config.rms_norm_eps = 0.1 + 0.2;
  config.rope_theta = 5e6;
  const Json json = Json::parse(config.TraceJson());
  EXPECT_EQ(json["rms_norm_eps"].get<double>(), 0.1 + 0.2);
  EXPECT_EQ(json["rope_theta"].get<double>(), 5e6);
}

TEST(ReadConfig, HeadDimIsTheKeysWhereThereIsOneElseHiddenOverHeads) {
  EXPECT_EQ(ReadEdited(Set("head_dim", "8")).head_dim, 8);
  const Edit hidden = Set("hidden_size", "16");
  EXPECT_EQ(ReadEdited(Both(hidden, Erase("head_dim"))).head_dim, 4);
  EXPECT_EQ(ReadEdited(Both(hidden, Set("head_dim", "null"))).head_dim, 4);
}

TEST(ReadConfig, ThetaMayStandInEitherPlace) {
  const Edit no_theta = Erase("rope_theta");
  EXPECT_EQ(ReadEdited(Set("rope_theta", "5e6")).rope_theta, 5e6);
  EXPECT_EQ(ReadEdited(Set("rope_scaling", "{}")).rope_theta, 1e6);
  EXPECT_EQ(ReadEdited(Set("rope_scaling", R"({"type": "default"})")).rope_theta, 1e6);
  const Edit parameters = Set("rope_parameters", R"({"rope_type": "default", "rope_theta": 5000000.0})");
  EXPECT_EQ(ReadEdited(Both(no_theta, parameters)).rope_theta, 5e6);
  // Both, agreeing: an integer and a float of the same value are the same.
  EXPECT_EQ(ReadEdited(Set("rope_parameters", R"({"rope_theta": 1e6, "partial_rotary_factor": 1.0})")).rope_theta, 1e6);
}

TEST(ReadConfig, SwitchesMayBeAbsentOrNull) {
  for (const char* key :
       {"tie_word_embeddings", "attention_bias", "use_sliding_window", "hidden_act", "quantization_config"}) {
    EXPECT_NO_THROW(ReadEdited(Erase(key))) << key;
    EXPECT_NO_THROW(ReadEdited(Set(key, "null"))) << key;
  }
  EXPECT_FALSE(ReadEdited(Erase("tie_word_embeddings")).tie_word_embeddings);
}

TEST(ReadConfig, AcceptsWhatTransformersWrites) {
  EXPECT_NO_THROW(ReadEdited(Set("layer_types", R"(["full_attention", "full_attention"])")));
  EXPECT_NO_THROW(ReadEdited(Set("sliding_window", "4096"))) << "has no effect while use_sliding_window is false";
  EXPECT_NO_THROW(ReadEdited(Set("max_window_layers", "1")));
  EXPECT_EQ(ReadEdited(Set("num_key_value_heads", "null")).num_key_value_heads, 4);
}

struct BadConfig {
  const char* name;
  Edit edit;
  std::vector<std::string> wanted;  // all must stand in the message
};

class BadConfigTest : public ::testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigTest, IsRefusedByName) {
  const std::string message = ErrorOf([] { ReadEdited(GetParam().edit); });
  EXPECT_THAT(message, HasSubstr("/config.json: "));
  for (const std::string& part : GetParam().wanted) EXPECT_THAT(message, HasSubstr(part));
}

const BadConfig kBadConfigs[] = {
    {"NoModelType", Erase("model_type"), {"model_type: expected \"qwen3\", found nothing"}},
    {"Moe", Set("model_type", "\"qwen3_moe\""), {"model_type: expected \"qwen3\", found \"qwen3_moe\"", "experts"}},
    {"Qwen2", Set("model_type", "\"qwen2\""), {"model_type", "found \"qwen2\"; only the dense Qwen3"}},
    {"ModelTypeNumber", Set("model_type", "3"), {"model_type: expected \"qwen3\", found 3"}},
    {"Gelu", Set("hidden_act", "\"gelu\""), {"hidden_act: expected \"silu\", found \"gelu\""}},
    {"ActNumber", Set("hidden_act", "1"), {"hidden_act: expected \"silu\", found 1"}},
    {"Bias", Set("attention_bias", "true"), {"attention_bias: expected false, found true", "not supported"}},
    {"BiasText", Set("attention_bias", "\"no\""), {"attention_bias: expected true or false, found \"no\""}},
    {"Quantized", Set("quantization_config", R"({"quant_method": "awq"})"), {"quantization_config", "awq", "bf16"}},
    {"Compressed", Set("compression_config", R"({"format": "int"})"), {"compression_config", "quantized"}},
    {"Window", Set("use_sliding_window", "true"), {"use_sliding_window: expected false, found true"}},
    {"WindowLayer",
     Set("layer_types", R"(["full_attention", "sliding_attention"])"),
     {"layer_types[1]: expected \"full_attention\", found \"sliding_attention\""}},
    {"LayerTypesShort",
     Set("layer_types", R"(["full_attention"])"),
     {"layer_types: expected num_hidden_layers = 2", "found 1"}},
    {"LayerTypesText", Set("layer_types", "\"full_attention\""), {"layer_types: expected a list"}},

    {"NoTheta", Erase("rope_theta"), {"rope_theta: expected a number", "found nothing", "never guessed"}},
    {"NullTheta", Set("rope_theta", "null"), {"rope_theta: expected a number", "found nothing"}},
    {"ParametersWithoutTheta",
     Both(Erase("rope_theta"), Set("rope_parameters", R"({"rope_type": "default"})")),
     {"rope_theta: expected a number"}},
    {"ThetasDisagree",
     Set("rope_parameters", R"({"rope_theta": 10000})"),
     {"rope_parameters.rope_theta: expected rope_theta = 1000000.0, found 10000.0"}},
    {"ZeroTheta", Set("rope_theta", "0"), {"rope_theta: expected a number above 0", "found 0"}},
    {"NegativeTheta", Set("rope_theta", "-1e6"), {"rope_theta: expected a number above 0", "found -1000000.0"}},
    {"HugeTheta", Set("rope_theta", "1e31"), {"rope_theta", "at most 1e+30", "found 1e+31"}},
    {"TextTheta", Set("rope_theta", "\"1e6\""), {"rope_theta", "found \"1e6\""}},
    {"ThetaInside",
     Both(Erase("rope_theta"), Set("rope_parameters", R"({"rope_theta": -1})")),
     {"rope_parameters.rope_theta: expected a number above 0", "found -1"}},
    {"Yarn",
     Set("rope_scaling", R"({"rope_type": "yarn", "factor": 4.0})"),
     {"rope_scaling.rope_type: expected \"default\", found \"yarn\"", "original length"}},
    {"OldYarn", Set("rope_scaling", R"({"type": "yarn", "factor": 4.0})"), {"rope_scaling.type: expected", "yarn"}},
    {"LinearParameters",
     Set("rope_parameters", R"({"rope_type": "linear", "factor": 2, "rope_theta": 1e6})"),
     {"rope_parameters.rope_type", "linear"}},
    {"FactorOfDefault",
     Set("rope_scaling", R"({"rope_type": "default", "factor": 4.0})"),
     {"rope_scaling.factor: expected no such key, found 4.0"}},
    {"RopeOfLayerTypes",
     Set("rope_parameters", R"({"full_attention": {"rope_theta": 1e6}})"),
     {"rope_parameters.full_attention"}},
    {"PartialInside",
     Set("rope_parameters", R"({"rope_theta": 1e6, "partial_rotary_factor": 0.5})"),
     {"rope_parameters.partial_rotary_factor", "0.5"}},
    {"Partial", Set("partial_rotary_factor", "0.5"), {"partial_rotary_factor: expected 1, found 0.5"}},
    {"RopeList", Set("rope_scaling", "[1]"), {"rope_scaling: expected an object or null, found [1]"}},

    {"NoHidden", Erase("hidden_size"), {"hidden_size: expected an integer from 1 to 16777216, found nothing"}},
    {"ZeroHidden", Set("hidden_size", "0"), {"hidden_size", "found 0"}},
    {"NegativeHidden", Set("hidden_size", "-12"), {"hidden_size", "found -12"}},
    {"HugeHidden", Set("hidden_size", "16777217"), {"hidden_size", "found 16777217"}},
    {"WrapsToTwelve", Set("hidden_size", "18446744073709551615"), {"hidden_size", "found 18446744073709551615"}},
    {"FloatHidden", Set("hidden_size", "12.0"), {"hidden_size", "found 12.0"}},
    {"TextHidden", Set("hidden_size", "\"12\""), {"hidden_size", "found \"12\""}},
    {"BoolHidden", Set("hidden_size", "true"), {"hidden_size", "found true"}},
    {"ListHidden", Set("hidden_size", "[12]"), {"hidden_size", "found [12]"}},
    {"NoLayers", Set("num_hidden_layers", "0"), {"num_hidden_layers: expected an integer from 1 to 4096, found 0"}},
    {"ManyLayers", Set("num_hidden_layers", "1000000"), {"num_hidden_layers", "4096", "found 1000000"}},
    {"NoHeads", Erase("num_attention_heads"), {"num_attention_heads", "found nothing"}},
    {"NoKvHeads", Erase("num_key_value_heads"), {"num_key_value_heads: expected an integer", "found nothing"}},
    {"ZeroKvHeads", Set("num_key_value_heads", "0"), {"num_key_value_heads", "found 0"}},
    {"OddGroups",
     Set("num_key_value_heads", "3"),
     {"num_key_value_heads: expected a divisor of num_attention_heads = 4, found 3"}},
    {"MoreKvThanHeads", Set("num_key_value_heads", "8"), {"num_key_value_heads: expected a divisor", "found 8"}},
    {"OddHeadDim", Set("head_dim", "5"), {"head_dim: expected an even number", "found 5"}},
    {"ZeroHeadDim", Set("head_dim", "0"), {"head_dim", "found 0"}},
    {"OddDerived", Erase("head_dim"), {"head_dim: expected an even number", "found 3"}},
    {"NotDerivable",
     Both(Erase("head_dim"), Set("hidden_size", "14")),
     {"head_dim", "multiple of num_attention_heads = 4"}},
    {"WideHeads",
     Both(Set("num_attention_heads", "16777216"), Set("head_dim", "16777216")),
     {"num_attention_heads * head_dim: expected at most 16777216, found 281474976710656"}},
    {"NoIntermediate", Erase("intermediate_size"), {"intermediate_size", "found nothing"}},
    {"NoVocab", Set("vocab_size", "0"), {"vocab_size", "found 0"}},
    {"NoPositions", Erase("max_position_embeddings"), {"max_position_embeddings", "1073741824", "found nothing"}},
    {"NoEps", Erase("rms_norm_eps"), {"rms_norm_eps: expected a number above 0 and at most 1.0, found nothing"}},
    {"ZeroEps", Set("rms_norm_eps", "0.0"), {"rms_norm_eps", "found 0.0"}},
    {"NegativeEps", Set("rms_norm_eps", "-1e-6"), {"rms_norm_eps", "found -1e-06"}},
    {"LargeEps", Set("rms_norm_eps", "2"), {"rms_norm_eps", "found 2"}},
    {"TieNumber", Set("tie_word_embeddings", "1"), {"tie_word_embeddings: expected true or false, found 1"}},
};

INSTANTIATE_TEST_SUITE_P(All, BadConfigTest, ::testing::ValuesIn(kBadConfigs),
                         [](const auto& instance) { return instance.param.name; });

TEST(ReadConfig, RefusesWhatIsNoJsonObject) {
  for (const char* text : {"", "{", "{\"model_type\": \"qwen3\",}", "[]", "null", "\xff\xfe", "{\"rope_theta\": NaN}",
                           "{\"rope_theta\": 1e999}", "{} {}", R"({"vocab_size": 1, "vocab_size": 2})"}) {
    EXPECT_THAT(ErrorOf([&] { ReadText(text); }), HasSubstr("/config.json: ")) << text;
  }
}

TEST(ReadConfig, RefusesDeepNestingWithoutOverflowingTheStack) {
  EXPECT_THAT(ErrorOf([] { ReadText(std::string(1000000, '[')); }), HasSubstr("nested deeper"));
}

TEST(ReadConfig, RefusesEveryTruncation) {
  const std::string text = TinyConfig().dump();
  for (size_t length = 0; length < text.size(); ++length) {
    EXPECT_THROW(ReadText(text.substr(0, length)), Error) << length;
  }
}

TEST(ReadConfig, SaysWhatIsWrongWithTheDirectory) {
  const TempDir dir;
  EXPECT_THAT(ErrorOf([&] { ReadConfig(dir / "nowhere"); }),
              HasSubstr("/nowhere: expected the directory of a Hugging Face checkpoint, found no such directory"));
  EXPECT_THAT(ErrorOf([&] { ReadConfig(""); }), HasSubstr("no such directory"));
  EXPECT_THAT(ErrorOf([&] { ReadConfig(dir.path()); }), HasSubstr("/config.json: expected the config.json of"));

  WriteText(dir / "model.gguf", "GGUF");
  EXPECT_THAT(ErrorOf([&] { ReadConfig(dir.path()); }), HasSubstr("model.gguf: GGUF weights"));
  EXPECT_THAT(ErrorOf([&] { ReadConfig(dir / "model.gguf"); }), HasSubstr("found a file; model.gguf: GGUF weights"));

  WriteText(dir / "config.json", TinyConfig().dump());
  EXPECT_THAT(ErrorOf([&] { ReadConfig(dir / "config.json"); }),
              HasSubstr("found a file; pass its directory, " + dir.path()));
}

TEST(ReadConfig, RefusesADirectoryAsConfig) {
  const TempDir dir;
  std::filesystem::create_directory(dir / "config.json");
  EXPECT_THAT(ErrorOf([&] { ReadConfig(dir.path()); }), HasSubstr("config.json: expected a regular file"));
}

}  // namespace
}  // namespace lockstep
