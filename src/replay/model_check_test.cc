#include "replay/model_check.h"

#include <gmock/gmock.h>

#include <cstring>

#include "base/convert.h"
#include "base/fingerprint.h"
#include "checkpoint/test_files.h"

namespace lockstep {
namespace {

using test::Json;
using test::TempDir;
using test::TestTensor;
using test::TinyConfig;
using test::TinyWeights;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

constexpr const char* kQProj = "model.layers.1.self_attn.q_proj.weight";

class ModelCheckTest : public testing::Test {
 protected:
  ModelCheckTest() {
    meta_.config = {{"hidden_size", "12"},        {"num_hidden_layers", "2"},  {"head_dim", "6"},
                    {"rms_norm_eps", "1e-06"},    {"rope_theta", "1e+06"},     {"tie_word_embeddings", "true"},
                    {"vocab_size", "32"},         {"intermediate_size", "20"}, {"my_own_key", "7"},
                    {"num_attention_heads", "4"}, {"num_key_value_heads", "2"}};
  }

  Checkpoint Open(const std::string& dtype, const Json& config = TinyConfig()) {
    test::WriteText(dir_ / "config.json", config.dump());
    test::WriteSafetensors(dir_ / "model.safetensors", TinyWeights(dtype));
    return Checkpoint::Open(dir_.path());
  }

  ModelCheck Check(const Checkpoint& checkpoint) {
    return CheckModel(GroupRuns({TraceView{"cpp.trace", &meta_, &steps_}}), checkpoint);
  }

  // What an engine that stores its weights in `dtype` records.
  void Record(const Checkpoint& checkpoint, DType dtype) {
    for (const Weight& weight : checkpoint.weights()) RecordAs(weight.name, weight, dtype);
    RecordAs("lm_head.weight", checkpoint.Get("lm_head.weight"), dtype);
  }

  void RecordAs(const std::string& name, const Weight& weight, DType dtype) {
    const size_t count = weight.bytes / DTypeSize(weight.dtype);
    std::vector<float> values(count);
    WidenToFloat(weight.dtype, weight.data, count, values.data());
    std::vector<std::byte> stored(count * DTypeSize(dtype));
    NarrowFromFloat(dtype, values.data(), count, stored.data());
    if (dtype == weight.dtype) std::memcpy(stored.data(), weight.data, weight.bytes);  // also what NaN holds
    const int64_t columns = weight.shape.back();
    meta_.weights[name] = {dtype, weight.shape,
                           FingerprintOfMatrix(dtype, stored.data(), static_cast<int64_t>(count) / columns, columns)};
  }

  TempDir dir_;
  TraceMeta meta_;
  std::vector<TraceStep> steps_{TraceStep{.positions = {0}, .sequences = {0}, .input_ids = {1}}};
};

TEST_F(ModelCheckTest, WeightsInEveryPairOfDtypes) {
  for (const char* stored : {"BF16", "F16", "F32"}) {
    const Checkpoint checkpoint = Open(stored);
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      meta_.weights.clear();
      Record(checkpoint, dtype);
      const ModelCheck check = Check(checkpoint);
      EXPECT_EQ(check.weights_compared, 25u);
      EXPECT_THAT(check.weights, IsEmpty()) << stored << " as " << DTypeName(dtype);
      EXPECT_THAT(check.notes, IsEmpty());
    }
  }
}

TEST_F(ModelCheckTest, NamesTheWeightsThatChanged) {
  const Checkpoint checkpoint = Open("BF16");
  Record(checkpoint, DType::kF32);
  meta_.weights[kQProj].hash[3] ^= 1;
  meta_.weights["model.norm.weight"].shape = {6, 2};
  const ModelCheck check = Check(checkpoint);
  ASSERT_THAT(check.weights, SizeIs(2));
  EXPECT_EQ(check.weights[0].name, kQProj);
  EXPECT_THAT(check.weights[0].text, HasSubstr("changed since the trace was made, or another checkpoint: F32 finger"));
  EXPECT_EQ(check.weights[1].text, "shape [6, 2] in the trace, [12] in the checkpoint");
}

TEST_F(ModelCheckTest, WhatCannotBeComparedIsNoted) {
  const Checkpoint checkpoint = Open("BF16");
  Record(checkpoint, DType::kBF16);
  meta_.weights["model.layers.0.self_attn.qkv_proj.weight"] = {DType::kBF16, {48, 12}, "0123456789abcdef"};
  meta_.weights[kQProj].dtype = DType::kF8E4M3;
  const ModelCheck check = Check(checkpoint);
  EXPECT_EQ(check.weights_compared, 24u);
  EXPECT_THAT(check.weights, IsEmpty());
  ASSERT_THAT(check.notes, SizeIs(2));
  EXPECT_THAT(check.notes[0],
              HasSubstr("1 weight(s) of the trace are none of the checkpoint's (model.layers.0.self_a"));
  EXPECT_THAT(check.notes[1], HasSubstr("other dtypes"));
}

TEST_F(ModelCheckTest, AnotherModelIsRefused) {
  const Checkpoint checkpoint = Open("BF16");
  EXPECT_THAT(Check(checkpoint).weights, IsEmpty());
  meta_.config["hidden_size"] = "1024";
  meta_.config["rope_theta"] = "10000";
  const std::string message = test::ErrorOf([&] { Check(checkpoint); });
  EXPECT_THAT(message,
              AllOf(HasSubstr("cpp.trace: made from another model than " + dir_.path()),
                    HasSubstr("hidden_size is 1024 in the trace, 12 in the model; rope_theta is 10000"),
                    HasSubstr("is --model the checkpoint that this trace was made from?"), Not(HasSubstr("head_dim"))));
}

TEST_F(ModelCheckTest, TheFirstLayersOfAModel) {
  const Checkpoint checkpoint = Open("BF16");
  meta_.config["num_hidden_layers"] = "1";
  EXPECT_THAT(Check(checkpoint).weights, IsEmpty());
  for (const char* bad : {"3", "-1", "99999999999999999999", "\"2\""}) {
    meta_.config["num_hidden_layers"] = bad;
    EXPECT_THAT(test::ErrorOf([&] { Check(checkpoint); }), HasSubstr("num_hidden_layers is")) << bad;
  }
}

}  // namespace
}  // namespace lockstep
