#include "lockstep/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>

#include "checkpoint/test_files.h"

namespace lockstep {
namespace {

using test::DataOf;
using test::ErrorOf;
using test::HeaderOf;
using test::Json;
using test::SafetensorsText;
using test::TempDir;
using test::TestTensor;
using test::TinyConfig;
using test::TinyWeights;
using test::WriteSafetensors;
using test::WriteText;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

constexpr const char* kQProj = "model.layers.1.self_attn.q_proj.weight";

class CheckpointTest : public ::testing::Test {
 protected:
  void Write(const Json& config, const std::vector<TestTensor>& weights) {
    WriteText(dir_ / "config.json", config.dump());
    WriteSafetensors(dir_ / "model.safetensors", weights);
  }

  Checkpoint Open(int num_layers = -1) const { return Checkpoint::Open(dir_.path(), num_layers); }

  std::string OpenError(int num_layers = -1) const {
    return ErrorOf([&] { Open(num_layers); });
  }

  TempDir dir_;
};

TestTensor& Find(std::vector<TestTensor>& weights, const std::string& name) {
  return *std::find_if(weights.begin(), weights.end(), [&](const auto& weight) { return weight.name == name; });
}

void Remove(std::vector<TestTensor>& weights, const std::string& name) {
  std::erase_if(weights, [&](const auto& weight) { return weight.name == name; });
}

Json Untied() {
  Json config = TinyConfig();
  config["tie_word_embeddings"] = false;
  return config;
}

// Names, shapes, dtypes and bytes are those that were written, in that order.
void ExpectHolds(const Checkpoint& checkpoint, const std::vector<TestTensor>& written) {
  ASSERT_EQ(checkpoint.weights().size(), written.size());
  for (size_t i = 0; i < written.size(); ++i) {
    const Weight& weight = checkpoint.weights()[i];
    EXPECT_EQ(weight.name, written[i].name);
    EXPECT_EQ(weight.shape, written[i].shape) << weight.name;
    EXPECT_EQ(DTypeName(weight.dtype), written[i].dtype) << weight.name;
    const std::string data = DataOf({written[i]});
    ASSERT_EQ(weight.bytes, data.size()) << weight.name;
    EXPECT_EQ(std::memcmp(weight.data, data.data(), data.size()), 0) << weight.name;
    EXPECT_EQ(&checkpoint.Get(weight.name), &weight);
  }
}

// ---- Good checkpoints

TEST_F(CheckpointTest, OpensTiedInEveryDType) {
  for (const char* dtype : {"BF16", "F16", "F32"}) {
    Write(TinyConfig(), TinyWeights(dtype));
    const Checkpoint checkpoint = Open();
    ExpectHolds(checkpoint, TinyWeights(dtype));
    EXPECT_EQ(checkpoint.path(), dir_.path());
    EXPECT_EQ(checkpoint.config().head_dim, 6);
    EXPECT_THAT(checkpoint.unused(), IsEmpty());
    EXPECT_EQ(&checkpoint.Get("lm_head.weight"), &checkpoint.Get("model.embed_tokens.weight"));
  }
}

TEST_F(CheckpointTest, OpensUntied) {
  std::vector<TestTensor> weights = TinyWeights();
  weights.push_back({"lm_head.weight", "BF16", {32, 12}, 99});
  Write(Untied(), weights);
  const Checkpoint checkpoint = Open();
  ExpectHolds(checkpoint, weights);
  EXPECT_NE(&checkpoint.Get("lm_head.weight"), &checkpoint.Get("model.embed_tokens.weight"));
}

TEST_F(CheckpointTest, OrderIsTheModelsWhateverTheFilesIs) {
  std::vector<TestTensor> weights = TinyWeights();
  std::reverse(weights.begin(), weights.end());
  Write(TinyConfig(), weights);
  ExpectHolds(Open(), TinyWeights());
}

TEST_F(CheckpointTest, DTypesMayBeMixed) {
  std::vector<TestTensor> weights = TinyWeights();
  Find(weights, "model.norm.weight").dtype = "F32";
  Find(weights, kQProj).dtype = "F16";
  Write(TinyConfig(), weights);
  ExpectHolds(Open(), weights);
}

TEST_F(CheckpointTest, ConfigsOfOtherAgesOpenToo) {
  Json config = TinyConfig();
  config.erase("rope_theta");
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  Write(config, TinyWeights());
  EXPECT_EQ(Open().config().rope_theta, 1e6);
}

TEST_F(CheckpointTest, HeadDimOfConfigWithoutTheKeyIsHiddenOverHeads) {
  Json config = TinyConfig();
  config.erase("head_dim");
  config["num_attention_heads"] = 2;
  config["num_key_value_heads"] = 2;
  std::vector<TestTensor> weights = TinyWeights();
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    Find(weights, layer + "self_attn.q_proj.weight").shape = {12, 12};
    Find(weights, layer + "self_attn.o_proj.weight").shape = {12, 12};
  }
  Write(config, weights);
  ExpectHolds(Open(), weights);

  // The model had another head_dim: the error says where 6 comes from.
  Find(weights, "model.layers.0.self_attn.q_proj.weight").shape = {16, 12};
  Write(config, weights);
  EXPECT_THAT(OpenError(), HasSubstr("is head_dim = 6 right? Without that key"));
}

TEST_F(CheckpointTest, SurvivesMoves) {
  Write(TinyConfig(), TinyWeights());
  Checkpoint first = Open();
  Checkpoint second = std::move(first);
  ExpectHolds(second, TinyWeights());
  Checkpoint third = Open();
  third = std::move(second);
  ExpectHolds(third, TinyWeights());
}

TEST_F(CheckpointTest, UnalignedDataIsFine) {
  const std::vector<TestTensor> weights = TinyWeights();
  WriteText(dir_ / "config.json", TinyConfig().dump());
  const std::string header = HeaderOf(weights).dump();
  for (size_t blanks = 0; blanks < 4; ++blanks) {
    WriteText(dir_ / "model.safetensors", SafetensorsText(header + std::string(blanks, ' '), DataOf(weights)));
    ExpectHolds(Open(), weights);
  }
}

TEST_F(CheckpointTest, OpensTheBundledModel) {
  const std::string model = std::string(LOCKSTEP_SOURCE_DIR) + "/models/tiny-qwen3";
  if (!std::filesystem::exists(model + "/model.safetensors")) GTEST_SKIP() << model << " is not there";
  const Checkpoint checkpoint = Checkpoint::Open(model);
  const Config& config = checkpoint.config();
  EXPECT_NE(config.head_dim * config.num_attention_heads, config.hidden_size);
  EXPECT_LT(config.num_key_value_heads, config.num_attention_heads);
  EXPECT_EQ(config.rope_theta, 1e6);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_GE(config.max_position_embeddings, 4096);
  EXPECT_EQ(checkpoint.weights().size(), static_cast<size_t>(2 + 11 * config.num_hidden_layers));
  EXPECT_THAT(checkpoint.unused(), IsEmpty());
}

// ---- Unused weights and left-out layers

TEST_F(CheckpointTest, NamesUnusedWeights) {
  std::vector<TestTensor> weights = TinyWeights();
  weights.push_back({"model.layers.1.self_attn.rotary_emb.inv_freq", "F32", {3}});
  weights.push_back({"model.layers.2.input_layernorm.weight", "BF16", {12}});  // config.json has two layers
  weights.push_back({"model.layers.01.input_layernorm.weight", "BF16", {12}});
  weights.push_back({"score.weight", "I8", {2}});  // its dtype does not matter
  Write(TinyConfig(), weights);
  EXPECT_THAT(Open().unused(),
              ElementsAre("model.layers.1.self_attn.rotary_emb.inv_freq", "model.layers.2.input_layernorm.weight",
                          "model.layers.01.input_layernorm.weight", "score.weight"));
}

TEST_F(CheckpointTest, HeadOfATiedModelIsUnusedAndMentionedWhenItDiffers) {
  std::vector<TestTensor> weights = TinyWeights();
  const uint8_t fill = Find(weights, "model.embed_tokens.weight").fill;
  const struct {
    TestTensor head;
    bool is_copy;
  } cases[] = {
      {{"lm_head.weight", "BF16", {32, 12}, fill}, true},
      {{"lm_head.weight", "BF16", {32, 12}, static_cast<uint8_t>(fill + 1)}, false},
      {{"lm_head.weight", "F16", {32, 12}, fill}, false},
      {{"lm_head.weight", "BF16", {12, 32}, fill}, false},
      {{"lm_head.weight", "BF16", {31, 12}, fill}, false},
  };
  for (const auto& [head, is_copy] : cases) {
    weights.push_back(head);
    Write(TinyConfig(), weights);
    weights.pop_back();
    const Checkpoint checkpoint = Open();
    EXPECT_EQ(&checkpoint.Get("lm_head.weight"), &checkpoint.Get("model.embed_tokens.weight"));
    if (is_copy) {
      EXPECT_THAT(checkpoint.unused(), ElementsAre("lm_head.weight"));
    } else {
      EXPECT_THAT(checkpoint.unused(),
                  ElementsAre(StartsWith("lm_head.weight (differs from model.embed_tokens.weight")));
    }
    EXPECT_EQ(checkpoint.unused().size(), 1u) << "asked again";
  }
}

TEST_F(CheckpointTest, LimitOfLayersLeavesTheOthersOut) {
  std::vector<TestTensor> weights = TinyWeights();
  weights.push_back({"model.layers.1.strange", "BF16", {1}});
  Write(TinyConfig(), weights);
  const Checkpoint checkpoint = Open(1);
  EXPECT_EQ(checkpoint.config().num_hidden_layers, 1);
  EXPECT_EQ(checkpoint.weights().size(), 1u + 11u + 1u);
  EXPECT_EQ(checkpoint.weights().back().name, "model.norm.weight");
  EXPECT_THAT(checkpoint.unused(), ElementsAre("model.layers.1.strange"));
  EXPECT_EQ(Open(2).weights().size(), 24u);
}

TEST_F(CheckpointTest, LimitOfLayersDoesNotNeedTheOthers) {
  std::vector<TestTensor> weights = TinyWeights();
  Remove(weights, kQProj);
  Write(TinyConfig(), weights);
  EXPECT_NO_THROW(Open(1));
  EXPECT_THAT(OpenError(), HasSubstr(kQProj));
}

TEST_F(CheckpointTest, LimitOfLayersHasLimits) {
  Write(TinyConfig(), TinyWeights());
  for (const int layers : {0, 3, -2, std::numeric_limits<int>::max()}) {
    EXPECT_THAT(OpenError(layers),
                AllOf(HasSubstr("number of layers: expected 1 to 2"), HasSubstr("found " + std::to_string(layers))));
  }
}

// ---- Bad weights

TEST_F(CheckpointTest, EveryMissingWeightIsNamed) {
  for (const TestTensor& weight : TinyWeights()) {
    std::vector<TestTensor> weights = TinyWeights();
    Remove(weights, weight.name);
    Write(TinyConfig(), weights);
    EXPECT_THAT(OpenError(), AllOf(HasSubstr(": " + weight.name + ": expected ["),
                                   HasSubstr("found no weight of this name"), Not(HasSubstr("more weights"))));
  }
}

TEST_F(CheckpointTest, EveryWrongShapeIsNamed) {
  for (const TestTensor& weight : TinyWeights()) {
    std::vector<TestTensor> weights = TinyWeights();
    Find(weights, weight.name).shape.front() += 1;
    Write(TinyConfig(), weights);
    EXPECT_THAT(OpenError(), AllOf(HasSubstr(": " + weight.name + ": expected ["), HasSubstr("config.json")));
  }
}

TEST_F(CheckpointTest, TransposedWeightIsRecognized) {
  std::vector<TestTensor> weights = TinyWeights();
  Find(weights, kQProj).shape = {12, 24};
  Write(TinyConfig(), weights);
  EXPECT_THAT(
      OpenError(),
      HasSubstr("model.layers.1.self_attn.q_proj.weight: expected [24, 12], found [12, 24]; transposed export?"));
}

TEST_F(CheckpointTest, OtherRankIsNotATransposition) {
  std::vector<TestTensor> weights = TinyWeights();
  Find(weights, "model.norm.weight").shape = {1, 12};
  Write(TinyConfig(), weights);
  EXPECT_THAT(OpenError(),
              AllOf(HasSubstr("model.norm.weight: expected [12], found [1, 12]"), Not(HasSubstr("transposed"))));
}

TEST_F(CheckpointTest, OtherDTypesAreRefusedByName) {
  for (const char* dtype : {"I8", "F64", "I16"}) {
    std::vector<TestTensor> weights = TinyWeights();
    Find(weights, kQProj).dtype = dtype;
    Write(TinyConfig(), weights);
    EXPECT_THAT(OpenError(), HasSubstr(std::string(kQProj) + ": expected F32, BF16 or F16, found " + dtype));
  }
}

TEST_F(CheckpointTest, GivesTheFirstFaultAndCountsTheOthers) {
  std::vector<TestTensor> weights = TinyWeights();
  Find(weights, "model.layers.0.mlp.up_proj.weight").shape = {12, 20};
  Find(weights, "model.layers.1.mlp.up_proj.weight").dtype = "F64";
  Remove(weights, "model.norm.weight");
  Write(TinyConfig(), weights);
  EXPECT_THAT(OpenError(), AllOf(HasSubstr(": model.layers.0.mlp.up_proj.weight: expected"),
                                 HasSubstr("(and 2 more weights are missing or wrong)")));
}

TEST_F(CheckpointTest, OtherPrefixIsNotAcceptedButShown) {
  const struct {
    const char* prefix;
    size_t cut;
  } cases[] = {{"", 6}, {"model.", 0}, {"transformer.", 6}, {"model.language_model.", 6}};
  for (const auto& [prefix, cut] : cases) {
    std::vector<TestTensor> weights = TinyWeights();
    for (TestTensor& weight : weights) weight.name = prefix + weight.name.substr(cut);
    Write(TinyConfig(), weights);
    EXPECT_THAT(
        OpenError(),
        AllOf(HasSubstr("model.embed_tokens.weight: expected [32, 12], found no weight of this name"),
              HasSubstr("similar names are there: " + weights.front().name), HasSubstr("(and 23 more weights")));
  }
}

TEST_F(CheckpointTest, NearNamesComeNearestFirst) {
  std::vector<TestTensor> weights = TinyWeights();
  Find(weights, "model.layers.0.self_attn.q_proj.weight").name = "model.layers.0.self_attn.qkv_proj.weight";
  weights.push_back({"model.layers.0.self_attn.q_proj.qweight", "BF16", {1}});
  weights.push_back({"entirely.else", "BF16", {1}});
  Write(TinyConfig(), weights);
  EXPECT_THAT(
      OpenError(),
      HasSubstr("are there: model.layers.0.self_attn.q_proj.qweight, model.layers.0.self_attn.qkv_proj.weight;"));
}

TEST_F(CheckpointTest, MissingHeadOfAnUntiedModelSuggestsTying) {
  Write(Untied(), TinyWeights());
  EXPECT_THAT(OpenError(),
              AllOf(HasSubstr("lm_head.weight: expected [32, 12]"), HasSubstr("\"tie_word_embeddings\": true")));
}

TEST_F(CheckpointTest, EmptyFileOfWeightsNamesTheFirst) {
  Write(TinyConfig(), {});
  EXPECT_THAT(OpenError(), AllOf(HasSubstr("model.embed_tokens.weight"), HasSubstr("incomplete download")));
}

// ---- Bad sets of files

TEST_F(CheckpointTest, SaysWhatIsThereInsteadOfSafetensors) {
  WriteText(dir_ / "config.json", TinyConfig().dump());
  EXPECT_THAT(OpenError(), HasSubstr("expected model.safetensors or model.safetensors.index.json, found neither"));

  const struct {
    const char* file;
    const char* wanted;
  } cases[] = {
      // Each is preferred to those before it.
      {"pytorch_model.bin", "; pytorch_model.bin: convert it with transformers"},
      {"qwen3-q4.gguf", "; qwen3-q4.gguf: GGUF weights are"},
      {"weights.safetensors", "; weights.safetensors: rename it"},
      {"model-00001-of-00002.safetensors",
       "; model-00001-of-00002.safetensors: its model.safetensors.index.json is missing"},
      {"adapter_model.safetensors", "; adapter_model.safetensors: it is an adapter"},
  };
  for (const auto& [file, wanted] : cases) {
    WriteText(dir_ / file, "");
    EXPECT_THAT(OpenError(), AllOf(HasSubstr("found neither"), HasSubstr(wanted)));
  }
}

TEST_F(CheckpointTest, NoDirectoryOrAFile) {
  EXPECT_THAT(ErrorOf([&] { Checkpoint::Open(dir_ / "nowhere"); }), HasSubstr("no such directory"));
  Write(TinyConfig(), TinyWeights());
  EXPECT_THAT(ErrorOf([&] { Checkpoint::Open(dir_ / "model.safetensors"); }),
              HasSubstr("pass its directory, " + dir_.path()));
}

class DamagedFileTest : public CheckpointTest {
 protected:
  DamagedFileTest() { Write(TinyConfig(), weights_); }

  // Opens with the header text as it is.
  std::string ErrorWithHeader(const std::string& header) const {
    WriteText(file_, SafetensorsText(header, DataOf(weights_)));
    return OpenError();
  }
  std::string ErrorWithEntry(const std::string& key, const Json& value) const {
    Json header = HeaderOf(weights_);
    header[kQProj][key] = value;
    return ErrorWithHeader(header.dump());
  }

  const std::vector<TestTensor> weights_ = TinyWeights();
  const std::string file_ = dir_ / "model.safetensors";
};

TEST_F(DamagedFileTest, EveryTruncationIsRefused) {
  const std::string text = SafetensorsText(HeaderOf(weights_).dump(), DataOf(weights_));
  for (size_t length = 0; length < text.size(); length += length < 64 ? 1 : 97) {
    WriteText(file_, text.substr(0, length));
    EXPECT_THAT(OpenError(), HasSubstr(file_)) << length;
  }
}

TEST_F(DamagedFileTest, HeaderLongerThanTheFile) {
  for (const uint64_t length : {uint64_t{1} << 20, uint64_t{1} << 40, std::numeric_limits<uint64_t>::max()}) {
    std::string text(reinterpret_cast<const char*>(&length), sizeof(length));
    WriteText(file_, text + "{}");
    EXPECT_THAT(OpenError(), HasSubstr(file_ + ": header of " + std::to_string(length) + " bytes does not fit"));
  }
}

TEST_F(DamagedFileTest, BadHeaders) {
  EXPECT_THAT(ErrorWithHeader("[]"), HasSubstr(file_ + ": expected a JSON object"));
  EXPECT_THAT(ErrorWithHeader("{\"a\""), HasSubstr(file_ + ": header"));
  EXPECT_THAT(ErrorWithHeader(std::string(100000, '[')), HasSubstr("nested deeper"));
}

TEST_F(DamagedFileTest, BadEntriesAreNamed) {
  constexpr uint64_t kHalf = uint64_t{1} << 63;
  const struct {
    const char* key;
    Json value;
  } cases[] = {
      {"data_offsets", {0, 576}},                         // overlaps
      {"data_offsets", {1u << 30, (1u << 30) + 576}},     // beyond the end
      {"data_offsets", {576, 0}},                         // backwards
      {"data_offsets", {-1, 575}},                        //
      {"data_offsets", {kHalf, kHalf + 576}},             //
      {"data_offsets", "0"},                              //
      {"shape", {24, 13}},                                // not the size of its data
      {"shape", {uint64_t{1} << 32, uint64_t{1} << 32}},  // overflows to 0
      {"shape", {(uint64_t{1} << 62) + 6, 24, 4}},        // overflows to 576
      {"shape", {-24, -12}},                              //
      {"shape", {24.0, 12}},                              //
      {"shape", nullptr},                                 //
      {"dtype", "Q4"},                                    //
      {"dtype", 16},                                      //
  };
  for (const auto& [key, value] : cases) {
    EXPECT_THAT(ErrorWithEntry(key, value), HasSubstr(file_ + ": tensor ")) << key << " " << value;
  }
}

TEST_F(DamagedFileTest, BytesThatBelongToNothing) {
  WriteText(file_, SafetensorsText(HeaderOf(weights_).dump(), DataOf(weights_) + "tail"));
  EXPECT_THAT(OpenError(), HasSubstr("4 bytes after the last tensor"));
}

TEST_F(DamagedFileTest, DirectoryInPlaceOfTheFile) {
  std::filesystem::remove(file_);
  std::filesystem::create_directory(file_);
  EXPECT_THAT(OpenError(), HasSubstr(file_ + ": expected a regular file"));
}

// ---- Shards

class ShardedTest : public CheckpointTest {
 protected:
  ShardedTest() {
    const std::vector<TestTensor> weights = TinyWeights();
    for (size_t i = 0; i < weights.size(); ++i) Put(weights[i], i % 2 == 0 ? kFirst : kSecond);
  }

  void Put(const TestTensor& weight, const std::string& file) {
    shards_[file].push_back(weight);
    map_[weight.name] = file;
  }

  void Write() {
    WriteText(dir_ / "config.json", TinyConfig().dump());
    for (const auto& [file, weights] : shards_) WriteSafetensors(dir_ / file, weights);
    WriteIndex(Json{{"metadata", {{"total_size", 1}}}, {"weight_map", map_}}.dump());
  }
  void WriteIndex(const std::string& text) { WriteText(dir_ / "model.safetensors.index.json", text); }

  static constexpr const char* kFirst = "model-00001-of-00002.safetensors";
  static constexpr const char* kSecond = "model-00002-of-00002.safetensors";
  std::map<std::string, std::vector<TestTensor>> shards_;
  Json map_ = Json::object();
};

TEST_F(ShardedTest, Opens) {
  Write();
  const Checkpoint checkpoint = Open();
  ExpectHolds(checkpoint, TinyWeights());
  EXPECT_THAT(checkpoint.unused(), IsEmpty());
}

TEST_F(ShardedTest, TheSingleFileIsPreferred) {
  Write();
  WriteSafetensors(dir_ / "model.safetensors", TinyWeights("F32"));
  ExpectHolds(Open(), TinyWeights("F32"));
}

TEST_F(ShardedTest, MissingShardIsNamed) {
  Write();
  std::filesystem::remove(dir_ / kSecond);
  EXPECT_THAT(OpenError(), HasSubstr(dir_ / kSecond + ": expected a shard"));
}

TEST_F(ShardedTest, WeightThatItsShardLacksIsNamed) {
  std::erase_if(shards_[kFirst], [](const auto& weight) { return weight.name == "model.embed_tokens.weight"; });
  Write();
  EXPECT_THAT(OpenError(), HasSubstr("model.embed_tokens.weight: expected in " + dir_ / kFirst +
                                     ", as model.safetensors.index.json says, found in no shard"));
}

TEST_F(ShardedTest, WeightInAnotherShardIsNamed) {
  map_["model.embed_tokens.weight"] = kSecond;
  Write();
  EXPECT_THAT(OpenError(), HasSubstr("model.embed_tokens.weight: expected in " + dir_ / kSecond +
                                     ", as model.safetensors.index.json says, found in " + dir_ / kFirst));
}

TEST_F(ShardedTest, WeightInTwoShardsIsNamed) {
  shards_[kSecond].push_back(shards_[kFirst].front());
  Write();
  EXPECT_THAT(OpenError(), AllOf(HasSubstr("model.embed_tokens.weight: expected in one shard"), HasSubstr(kFirst),
                                 HasSubstr(kSecond)));
}

TEST_F(ShardedTest, WeightOfNoShardIsMissing) {
  std::erase_if(shards_[kFirst], [](const auto& weight) { return weight.name == "model.embed_tokens.weight"; });
  map_.erase("model.embed_tokens.weight");
  Write();
  EXPECT_THAT(OpenError(), HasSubstr("model.embed_tokens.weight: expected [32, 12], found no weight of this name"));
}

TEST_F(ShardedTest, FileNamesStayInTheDirectory) {
  // The files exist, so that only the check of the name can refuse them.
  const TempDir elsewhere;
  WriteSafetensors(elsewhere / "w.safetensors", {{"model.embed_tokens.weight", "BF16", {32, 12}}});
  const std::string beside = "../" + std::filesystem::path(elsewhere.path()).filename().string() + "/w.safetensors";
  for (const std::string& name :
       {elsewhere / "w.safetensors", beside, std::string(".."), std::string("."), std::string(),
        "./" + std::string(kFirst), std::string(kFirst) + std::string(1, '\0')}) {
    map_["model.embed_tokens.weight"] = name;
    Write();
    EXPECT_THAT(OpenError(),
                HasSubstr("weight_map of model.embed_tokens.weight: expected the name of a file in the same directory"))
        << name;
  }
}

TEST_F(ShardedTest, BadIndexIsRefused) {
  Write();
  for (const char* text :
       {"", "[]", "{}", R"({"weight_map": []})", R"({"weight_map": {}})", R"({"weight_map": {"a": 1}})",
        R"({"weight_map": {"a": "b", "a": "c"}})", "{\"weight_map\": {"}) {
    WriteIndex(text);
    EXPECT_THAT(OpenError(), HasSubstr("model.safetensors.index.json: ")) << text;
  }
}

TEST_F(ShardedTest, DamagedShardIsNamed) {
  Write();
  WriteText(dir_ / kSecond, "short");
  EXPECT_THAT(OpenError(), HasSubstr(dir_ / kSecond));
}

// ---- Cost

// Resident pages of mapped files.
int64_t MappedPages() {
  std::ifstream in("/proc/self/statm");
  int64_t size = 0, resident = 0, shared = 0;
  in >> size >> resident >> shared;
  return shared;
}

int64_t PageFaults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt + usage.ru_majflt;
}

class LargeFileTest : public CheckpointTest {
 protected:
  static constexpr int64_t kVocab = int64_t{1} << 22;  // 4 Mi rows of 12 bf16: 96 MiB, and the same for lm_head

  LargeFileTest() {
    Json config = TinyConfig();
    config["vocab_size"] = kVocab;
    WriteText(dir_ / "config.json", config.dump());
    std::vector<TestTensor> weights = TinyWeights();
    weights.front().shape = {kVocab, 12};
    weights.push_back({"lm_head.weight", "BF16", {kVocab, 12}});
    const std::string text = SafetensorsText(HeaderOf(weights).dump(), "");
    size_t bytes = text.size();
    for (const TestTensor& weight : weights) bytes += BytesOf(weight);
    // A hole: it takes no disk, and all weights are zero.
    WriteText(dir_ / "model.safetensors", text);
    std::filesystem::resize_file(dir_ / "model.safetensors", bytes);
  }
};

TEST_F(LargeFileTest, OpenReadsOnlyTheHeaders) {
  const int64_t pages = MappedPages();
  const int64_t faults = PageFaults();
  const Checkpoint checkpoint = Open();
  EXPECT_LT(MappedPages() - pages, 1000) << "the file has 49 152 pages";
  EXPECT_LT(PageFaults() - faults, 1000);
  EXPECT_THAT(checkpoint.unused(), ElementsAre("lm_head.weight"));
  EXPECT_LT(MappedPages() - pages, 1000) << "the comparison of the heads gives its pages back";
}

TEST_F(LargeFileTest, ReleaseGivesPagesBackAndTheyStayReadable) {
  const Checkpoint checkpoint = Open();
  const Weight& embedding = checkpoint.Get("model.embed_tokens.weight");
  const auto sum = [&] {
    int64_t total = 0;
    for (size_t i = 0; i < embedding.bytes; i += 512) total += static_cast<int64_t>(embedding.data[i]);
    return total;
  };
  const int64_t before = MappedPages();
  EXPECT_EQ(sum(), 0);
  EXPECT_GT(MappedPages() - before, 20000) << "24 576 pages were read";
  checkpoint.Release(embedding);
  EXPECT_LT(MappedPages() - before, 1000);
  EXPECT_EQ(sum(), 0);
}

}  // namespace
}  // namespace lockstep
