// What capture.hpp writes, read by TraceReader.
#include "lockstep/capture.hpp"

#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <thread>

#include "trace/test_trace.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using testing::StartsWith;

TraceInfo Info() {
  TraceInfo info;
  info.producer = "test";
  return info;
}

TEST_F(TraceTest, SwitchedOffDoesNothing) {
  Trace trace;
  EXPECT_FALSE(trace);
  EXPECT_FALSE(trace.wants("a"));
  Step step = trace.BeginStep(nullptr, nullptr, nullptr, 5, Phase::kPrefill);
  EXPECT_FALSE(step);
  EXPECT_FALSE(step.wants("a"));
  step.Record("a", nullptr, DType::kF32, {1, 2});
  step.RecordRows("a", nullptr, DType::kF32, {1, 2}, {0});
  step.End();
  trace.SetWeight("w", DType::kF32, {1}, "");
  trace.Close();
  EXPECT_EQ(trace.error(), "");
}

TEST_F(TraceTest, KeepsEverythingThatIsKnown) {
  TraceInfo info = Info();
  info.producer = "a \"quoted\"\n\x01 näme \xFF";
  info.producer_version = "1.2";
  info.config_json =
      R"({"rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "x": {"b": [1.50], "a": null}})";
  info.storage = DType::kBF16;
  info.cache = DType::kF16;
  info.overrides_json = R"({"*_layer_output": {"storage": "F32"}})";
  info.points = {"a", "b"};
  info.not_observable = {"*_attn_q_normed"};
  info.select_steps = "0-9";
  info.extra_json = R"({"mine": [1, {"a": "b"}]})";
  info.rank = 3;
  Trace trace(path_ + "//", info);
  EXPECT_TRUE(trace);
  trace.SetWeight("model.norm.weight", DType::kBF16, {4, 2}, "0123456789abcdef");
  trace.SetWeight("bad", DType::kBF16, {4, 2}, "0123456789ABCDEF");
  trace.Close();
  EXPECT_FALSE(trace);
  EXPECT_THAT(trace.error(), HasSubstr("weight bad: expected a hash of 16 hex digits"));

  const TraceReader reader = TraceReader::Open(path_ + "/");
  EXPECT_EQ(reader.path(), path_);
  const TraceMeta& meta = reader.meta();
  EXPECT_EQ(meta.producer, "a \"quoted\"\n\x01 näme ?");
  EXPECT_EQ(meta.producer_version, "1.2");
  EXPECT_EQ(meta.model_type, "qwen3");
  const std::map<std::string, std::string> config = {{"rms_norm_eps", "1e-06"},
                                                     {"rope_theta", "1e+06"},
                                                     {"tie_word_embeddings", "true"},
                                                     {"x", R"({"a":null,"b":[1.5]})"}};
  EXPECT_EQ(meta.config, config);
  EXPECT_TRUE(meta.has_arithmetic);
  EXPECT_EQ(meta.arithmetic.storage, DType::kBF16);
  EXPECT_EQ(meta.arithmetic.operands, DType::kBF16);
  EXPECT_EQ(meta.arithmetic.cache, DType::kF16);
  EXPECT_EQ(meta.ArithmeticOf("layer_3_layer_output").storage, DType::kF32);
  EXPECT_EQ(meta.ArithmeticOf("layer_3_layer_output").cache, DType::kF16);
  EXPECT_EQ(meta.ArithmeticOf("layer_3_attn_o_proj"), meta.arithmetic);
  EXPECT_EQ(meta.arithmetic.accumulate, DType::kF32);
  EXPECT_THAT(meta.points, ElementsAre("a", "b"));
  EXPECT_THAT(meta.not_observable, ElementsAre("*_attn_q_normed"));
  EXPECT_EQ(meta.select_steps, "0-9");
  ASSERT_EQ(meta.weights.size(), 1u);
  EXPECT_EQ(meta.weights.at("model.norm.weight").dtype, DType::kBF16);
  EXPECT_THAT(meta.weights.at("model.norm.weight").shape, ElementsAre(4, 2));
  EXPECT_EQ(meta.weights.at("model.norm.weight").hash, "0123456789abcdef");
  EXPECT_THAT(meta.errors, SizeIs(1));
  EXPECT_EQ(meta.rank, 3);
  EXPECT_TRUE(meta.closed);
  EXPECT_THAT(reader.steps(), IsEmpty());
  EXPECT_THAT(reader.warnings(), IsEmpty());
  EXPECT_THAT(ReadFile(path_ + "/trace.json"), HasSubstr(R"("mine":[1, {"a": "b"}])"));
}

TEST_F(TraceTest, HoldsStepsInTheirOrder) {
  {
    Trace trace(path_, Info());
    const std::vector<int32_t> ids = {7, 8, 9};
    auto step = trace.BeginStep(ids.data(), Count(3).data(), nullptr, 3, Phase::kPrefill);
    const std::vector<float> x = Values(6);
    step.Record("input_embeddings", x.data(), DType::kF32, {3, 2});
    step.Record("mine", x.data(), DType::kU8, {3});
    step.End();
    const int32_t id = 5, position = 3, sequence = 0;
    trace.BeginStep(&id, &position, &sequence, 1, Phase::kDecode)
        .Record("input_embeddings", x.data() + 1, DType::kF32, {1, 2});
  }
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_TRUE(reader.meta().closed);
  ASSERT_THAT(reader.steps(), SizeIs(2));
  const TraceStep& first = reader.steps()[0];
  EXPECT_EQ(first.phase, Phase::kPrefill);
  EXPECT_THAT(first.positions, ElementsAre(0, 1, 2));
  EXPECT_THAT(first.sequences, ElementsAre(0, 0, 0));
  EXPECT_THAT(first.input_ids, ElementsAre(7, 8, 9));
  EXPECT_THAT(Names(first), ElementsAre("input_embeddings", "mine"));
  const TraceTensor* embeddings = first.Find("input_embeddings");
  EXPECT_EQ(Contents(embeddings), Values(6));
  EXPECT_THAT(embeddings->shape, ElementsAre(3, 2));
  EXPECT_THAT(embeddings->axes, ElementsAre("token", "hidden"));
  EXPECT_THAT(embeddings->rows, ElementsAre(0, 1, 2));
  EXPECT_THAT(embeddings->keys, IsEmpty());
  EXPECT_EQ(embeddings->file, path_ + "/step-000000.safetensors");
  EXPECT_THAT(first.Find("mine")->axes, IsEmpty());
  EXPECT_EQ(first.Find("nothing"), nullptr);
  EXPECT_EQ(first.Find("mine", 1), nullptr);
  EXPECT_EQ(reader.steps()[1].phase, Phase::kDecode);
  EXPECT_THAT(reader.Sequences(), ElementsAre(testing::Pair(0, ElementsAre(7, 8, 9, 5))));
}

TEST_F(TraceTest, TakesSequencesFromTheLatestStep) {
  {
    Trace trace(path_, Info());
    const std::vector<int32_t> ids = {1, 2, 3, 4}, positions = {0, 1, 3, 0}, sequences = {0, 0, 5, -1};
    trace.BeginStep(ids.data(), positions.data(), sequences.data(), 4, Phase::kPrefill);
    const int32_t id = 9, position = 1, sequence = 0;
    trace.BeginStep(&id, &position, &sequence, 1, Phase::kDecode);
    trace.BeginStep(nullptr, &position, &sequence, 0, Phase::kDecode);  // no tokens at all
    const int32_t last = 2;
    trace.BeginStep(nullptr, &last, &sequence, 1, Phase::kDecode);  // embeddings as input
  }
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_THAT(reader.Sequences(),
              ElementsAre(testing::Pair(0, ElementsAre(1, 9, -1)), testing::Pair(5, ElementsAre(-1, -1, -1, 3))));
  EXPECT_THAT(reader.steps()[2].positions, IsEmpty());
  EXPECT_THAT(reader.steps()[3].input_ids, IsEmpty());
}

// The slow twin of Record's packing.
std::string Packed(const char* from, size_t element, const std::vector<int64_t>& shape,
                   const std::vector<int64_t>& strides, size_t axis = 0) {
  if (axis == shape.size()) return std::string(from, element);
  std::string out;
  for (int64_t i = 0; i < shape[axis]; ++i) {
    out += Packed(from + i * strides[axis] * static_cast<int64_t>(element), element, shape, strides, axis + 1);
  }
  return out;
}

TEST_F(TraceTest, PacksStridedTensors) {
  struct Case {
    std::vector<int64_t> shape, strides;
    int64_t offset = 0;
  };
  const std::vector<Case> cases = {
      {{4, 3, 5}, {15, 5, 1}},      // packed
      {{4, 3, 5}, {5, 20, 1}},      // [heads, tokens, d]
      {{4, 3, 5}, {1, 4, 12}},      // reversed order
      {{4, 3, 5}, {15, 5, -1}, 4},  // backwards
      {{4, 3, 5}, {0, 5, 1}},       // one row for all
      {{4, 3, 5}, {30, 10, 2}},     // every second element
      {{4, 3, 5}, {40, 5, 1}},      // rows of a wider buffer
      {{4, 1, 5}, {5, 999, 1}},     // strides of extents of one do not matter
      {{4, 1, 1}, {3, 0, 0}},          {{4}, {7}},
      {{4, 130, 700}, {700, 2800, 1}},  // more than one buffer
      {{4, 130, 700}, {1, 2800, 4}},   {{4, 300000}, {1, 4}},
      {{4, 300000}, {300001, 1}},
  };
  const std::vector<double> memory = [] {
    std::vector<double> out(1'200'100);
    for (size_t i = 0; i < out.size(); ++i) out[i] = std::sin(static_cast<double>(i));
    return out;
  }();
  const auto* bytes = reinterpret_cast<const char*>(memory.data());
  for (const DType dtype : {DType::kU8, DType::kBF16, DType::kF32, DType::kF64}) {
    for (const char* rows : {"", "0,2-3"}) {
      TraceInfo info = Info();
      info.select_rows = rows;
      {
        Trace trace(path_, info);
        auto step = trace.BeginStep(nullptr, Count(4).data(), nullptr, 4, Phase::kPrefill);
        for (size_t i = 0; i < cases.size(); ++i) {
          step.Record("t" + std::to_string(i), bytes + cases[i].offset * static_cast<int64_t>(DTypeSize(dtype)), dtype,
                      cases[i].shape, cases[i].strides);
        }
        step.End();
        ASSERT_EQ(trace.error(), "");
      }
      const TraceReader reader = TraceReader::Open(path_);
      for (size_t i = 0; i < cases.size(); ++i) {
        const Case& c = cases[i];
        const size_t element = DTypeSize(dtype);
        std::string expected = Packed(bytes + c.offset * static_cast<int64_t>(element), element, c.shape, c.strides);
        const size_t row = expected.size() / 4;
        if (*rows) expected.erase(row, row);
        const TraceTensor* tensor = reader.steps()[0].Find("t" + std::to_string(i));
        ASSERT_NE(tensor, nullptr);
        EXPECT_TRUE(std::string(reinterpret_cast<const char*>(tensor->data), tensor->bytes) == expected)
            << DTypeName(dtype) << " case " << i << " rows " << rows;
      }
    }
  }
}

TEST_F(TraceTest, HoldsSomeRowsOnly) {
  const std::vector<float> y = Values(6);
  {
    Trace trace(path_, Info());
    auto step = trace.BeginStep(nullptr, Count(4).data(), nullptr, 4, Phase::kPrefill);
    step.RecordRows("logits", y.data(), DType::kF32, {2, 3}, {3, 1});
    step.RecordRows("none", nullptr, DType::kF32, {0, 3}, {});
  }
  const TraceReader reader = TraceReader::Open(path_);
  const TraceStep& step = reader.steps()[0];
  EXPECT_THAT(Names(step), ElementsAre("logits", "none"));
  EXPECT_THAT(step.Find("logits")->rows, ElementsAre(3, 1));
  EXPECT_EQ(Contents(step.Find("logits")), y);
  EXPECT_THAT(step.Find("none")->rows, IsEmpty());
}

TEST_F(TraceTest, SelectsRows) {
  const std::vector<float> x = Values(10);
  TraceInfo info = Info();
  info.select_rows = "last:2";
  {
    Trace trace(path_, info);
    auto step = trace.BeginStep(nullptr, Count(5, 100).data(), nullptr, 5, Phase::kPrefill);
    step.Record("a", x.data(), DType::kF32, {5, 2});
    step.RecordRows("logits", x.data(), DType::kF32, {2, 5}, {0, 4});
    step.RecordKeys("layer_0_attn_scores", x.data(), DType::kF32, {5, 1, 2}, Count(10));
    trace.BeginStep(nullptr, Count(1).data(), nullptr, 1, Phase::kDecode).Record("a", x.data(), DType::kF32, {1, 2});
  }
  const TraceReader reader = TraceReader::Open(path_);
  const TraceStep& step = reader.steps()[0];
  EXPECT_THAT(step.positions, SizeIs(5));
  EXPECT_THAT(Names(step), ElementsAre("a", "logits")) << "scores were not asked for";
  EXPECT_THAT(step.Find("a")->rows, ElementsAre(3, 4));
  EXPECT_EQ(Contents(step.Find("a")), Values(4, 6));
  EXPECT_THAT(step.Find("logits")->rows, ElementsAre(4));
  EXPECT_EQ(Contents(step.Find("logits")), Values(5, 5));
  EXPECT_THAT(reader.steps()[1].Find("a")->rows, ElementsAre(0));
  EXPECT_EQ(reader.meta().select_rows, "last:2");
}

TEST_F(TraceTest, SelectsRowsAlongTheTokenAxisThatWasDeclared) {
  const std::vector<float> x = Values(3 * 3 * 2);
  TraceInfo info = Info();
  info.select_rows = "1-2";
  info.tensors = {{"*"}, {"*_attn_q_rope", {"q_head", "token", "head_dim"}, "interleaved", "q_head", -1, 2, false}};
  {
    Trace trace(path_, info);
    auto step = trace.BeginStep(nullptr, Count(3).data(), nullptr, 3, Phase::kPrefill);  // as many tokens as heads
    step.Record("layer_0_attn_q_rope", x.data(), DType::kF32, {3, 3, 2});
    EXPECT_EQ(trace.error(), "");
  }
  const TraceReader reader = TraceReader::Open(path_);
  const TraceTensor* q = reader.steps()[0].Find("layer_0_attn_q_rope");
  EXPECT_THAT(q->shape, ElementsAre(3, 2, 2));
  EXPECT_THAT(q->axes, ElementsAre("q_head", "token", "head_dim"));
  EXPECT_EQ(q->token_axis, 1);
  EXPECT_THAT(q->rows, ElementsAre(1, 2));
  EXPECT_THAT(Contents(q), ElementsAre(2, 3, 4, 5, 8, 9, 10, 11, 14, 15, 16, 17));
  EXPECT_EQ(q->layout, "interleaved");
  ASSERT_TRUE(q->shard);
  EXPECT_EQ(q->shard->axis, "q_head");
  EXPECT_EQ(q->shard->index, 0);
  EXPECT_EQ(q->shard->count, 2);
}

TEST_F(TraceTest, HoldsKeys) {
  const std::vector<float> x = Values(2 * 3 * 2);
  TraceInfo info = Info();
  info.select_points = "attn_scores";
  {
    Trace trace(path_, info);
    auto step = trace.BeginStep(nullptr, Count(2, 8).data(), nullptr, 2, Phase::kPrefill);
    EXPECT_TRUE(step.wants("layer_0_attn_scores"));
    EXPECT_FALSE(step.wants("logits"));
    EXPECT_FALSE(trace.wants("logits"));
    step.RecordKeys("layer_0_attn_scores", x.data(), DType::kF32, {2, 3, 2}, {7, 8, 8, -1});
    step.RecordKeys("layer_1_attn_scores", x.data(), DType::kF32, {2, 3, 2}, {7, 8, 8});
    step.Record("logits", x.data(), DType::kF32, {2, 6});
    EXPECT_THAT(trace.error(), HasSubstr("step 0: layer_1_attn_scores: expected keys for each row"));
  }
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_THAT(Names(reader.steps()[0]), ElementsAre("layer_0_attn_scores"));
  EXPECT_THAT(reader.steps()[0].Find("layer_0_attn_scores")->keys, ElementsAre(7, 8, 8, -1));
}

TEST_F(TraceTest, SelectsKeysWithTheirRows) {
  const std::vector<float> x = Values(2 * 3 * 2);
  TraceInfo info = Info();
  info.select_points = "attn_scores";
  info.select_rows = "last:1";
  {
    Trace trace(path_, info);
    trace.BeginStep(nullptr, Count(2, 8).data(), nullptr, 2, Phase::kPrefill)
        .RecordKeys("layer_0_attn_scores", x.data(), DType::kF32, {2, 3, 2}, {7, 8, 8, 9});
  }
  const TraceReader reader = TraceReader::Open(path_);
  const TraceTensor* scores = reader.steps()[0].Find("layer_0_attn_scores");
  EXPECT_THAT(scores->keys, ElementsAre(8, 9));
  EXPECT_EQ(Contents(scores), Values(6, 6));
}

TEST_F(TraceTest, SelectsSteps) {
  const std::vector<float> x = Values(2);
  TraceInfo info = Info();
  info.select_steps = "1";
  {
    Trace trace(path_, info);
    for (int i = 0; i < 3; ++i) {
      auto step = trace.BeginStep(Count(1).data(), Count(1, i).data(), nullptr, 1, Phase::kDecode);
      EXPECT_EQ(static_cast<bool>(step), i == 1);
      EXPECT_EQ(step.wants("a"), i == 1);
      step.Record("a", x.data(), DType::kF32, {1, 2});
    }
  }
  const TraceReader reader = TraceReader::Open(path_);
  ASSERT_THAT(reader.steps(), SizeIs(3));
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_THAT(reader.steps()[i].tensors, SizeIs(i == 1 ? 1 : 0));
    EXPECT_THAT(reader.steps()[i].input_ids, ElementsAre(0));
  }
}

TEST_F(TraceTest, TakesSelectionsFromTheEnvironment) {
  setenv("LOCKSTEP_POINTS", "a*", 1);
  setenv("LOCKSTEP_STEPS", "5", 1);
  TraceInfo info = Info();
  info.select_steps = "7";
  Trace trace(path_, info);
  unsetenv("LOCKSTEP_POINTS");
  unsetenv("LOCKSTEP_STEPS");
  EXPECT_TRUE(trace.wants("abc"));
  EXPECT_FALSE(trace.wants("b"));
  trace.Close();
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_EQ(reader.meta().select_points, "a*");
  EXPECT_EQ(reader.meta().select_steps, "7");
}

TEST_F(TraceTest, HoldsSeveralRanks) {
  const std::vector<float> x = Values(12);
  TraceInfo info = Info();
  info.tensors = {{"sliced", {"token", "hidden"}, "", "hidden", -1, 2, false}, {"summed", {}, "", "", -1, 1, true}};
  {
    Trace trace(path_, info);
    for (int i = 0; i < 2; ++i) {
      for (int rank = 0; rank < 2; ++rank) {
        auto step = trace.BeginStep(Count(3).data(), Count(3).data(), nullptr, 3, Phase::kPrefill, rank);
        step.Record("sliced", x.data() + rank * 6, DType::kF32, {3, 2});
        step.Record("summed", x.data() + rank, DType::kF32, {3, 2});
      }
    }
    trace.BeginStep(nullptr, Count(3).data(), nullptr, 3, Phase::kPrefill, 0);
    EXPECT_EQ(trace.error(), "");
    trace.BeginStep(nullptr, Count(3).data(), nullptr, 3, Phase::kDecode, 1);
    EXPECT_THAT(trace.error(), HasSubstr("step 2: rank 1 calls it"));
  }
  EXPECT_TRUE(std::filesystem::exists(path_ + "/step-000001.rank1.safetensors"));
  const TraceReader reader = TraceReader::Open(path_);
  ASSERT_THAT(reader.steps(), SizeIs(3));
  const TraceStep& step = reader.steps()[1];
  ASSERT_THAT(step.tensors, SizeIs(4));
  EXPECT_EQ(Contents(step.Find("sliced", 0)), Values(6));
  EXPECT_EQ(Contents(step.Find("sliced", 1)), Values(6, 6));
  EXPECT_EQ(step.Find("sliced", 0)->shard->index, 0);
  EXPECT_EQ(step.Find("sliced", 1)->shard->index, 1);
  EXPECT_TRUE(step.Find("summed", 1)->partial);
  EXPECT_FALSE(step.Find("summed", 1)->shard);
}

TEST_F(TraceTest, ContinuesInFurtherFiles) {
  constexpr int kTensors = 3000;
  const auto name = [](int i) { return "tensor_" + std::string(static_cast<size_t>(i % 90), 'x') + std::to_string(i); };
  {
    Trace trace(path_, Info());
    auto step = trace.BeginStep(nullptr, Count(2).data(), nullptr, 2, Phase::kPrefill);
    for (int i = 0; i < kTensors; ++i) {
      const float values[2] = {static_cast<float>(i), static_cast<float>(-i)};
      const int32_t row = 1;
      if (i % 7 == 0)
        step.RecordRows(name(i), values, DType::kF32, {1, 2}, {row});
      else
        step.Record(name(i), values, DType::kF32, {2, 1});
    }
    EXPECT_EQ(trace.error(), "");
  }
  EXPECT_TRUE(std::filesystem::exists(path_ + "/step-000000.1.safetensors"));
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_THAT(reader.warnings(), IsEmpty());
  const TraceStep& step = reader.steps()[0];
  EXPECT_GT(step.files.size(), 3u);
  ASSERT_THAT(step.tensors, SizeIs(kTensors));
  for (int i = 0; i < kTensors; ++i) {
    const TraceTensor& tensor = step.tensors[static_cast<size_t>(i)];
    ASSERT_EQ(tensor.name, name(i));
    ASSERT_THAT(Contents(&tensor), ElementsAre(i, -i));
    ASSERT_EQ(tensor.rows.size(), i % 7 == 0 ? 1u : 2u);
  }
}

TEST_F(TraceTest, PromisedPointsFitInOneFile) {
  TraceInfo info = Info();
  for (int layer = 0; layer < 64; ++layer) {
    for (int i = 0; i < 19; ++i)
      info.points.push_back("layer_" + std::to_string(layer) + "_attn_residual_output" + std::to_string(i));
  }
  const std::vector<uint16_t> x(4096);
  for (const char* rows : {"", "last:2"}) {
    info.select_rows = rows;
    {
      Trace trace(path_, info);
      auto step = trace.BeginStep(Count(16).data(), Count(16).data(), nullptr, 16, Phase::kPrefill);
      for (const std::string& name : info.points) step.Record(name, x.data(), DType::kBF16, {16, 16, 16});
    }
    const TraceReader reader = TraceReader::Open(path_);
    EXPECT_THAT(reader.steps()[0].files, SizeIs(1));
    EXPECT_THAT(reader.steps()[0].tensors, SizeIs(64 * 19));
  }
}

TEST_F(TraceTest, IsPlainSafetensorsWhoseHeaderEntriesCrossNoPage) {
  {
    Trace trace(path_, Info());
    auto step = trace.BeginStep(nullptr, Count(1).data(), nullptr, 1, Phase::kPrefill);
    const float value = 1;
    for (int i = 0; i < 300; ++i) step.Record("some_name_" + std::to_string(i), &value, DType::kF32, {1, 1});
  }
  const std::string file = ReadFile(path_ + "/step-000000.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  EXPECT_EQ((8 + length) % 4096, 0u);
  EXPECT_THAT(file.substr(8), StartsWith(R"({"__metadata__":{"format":"lockstep-step"},"positions":{)"));
  EXPECT_EQ(file[8 + length - 1], '}');
  for (size_t at = file.find(",\"some"); at < 8 + length; at = file.find(",\"some", at + 1)) {
    EXPECT_EQ(at / 4096, file.find('}', at) / 4096);
  }
}

// ---- Mistakes of the engine ----

TEST_F(TraceTest, NamesWhatIsRecordedTwice) {
  const float x[2] = {1, 2};
  {
    Trace trace(path_, Info());
    auto step = trace.BeginStep(nullptr, Count(1).data(), nullptr, 1, Phase::kPrefill);
    step.Record("a", x, DType::kF32, {1, 1});
    step.Record("a", x + 1, DType::kF32, {1, 1});
    step.Record("positions", x, DType::kF32, {1, 1});
    EXPECT_EQ(trace.error(), "step 0: a: recorded twice; a name can be recorded once a step");
    step.Record("b", x, DType::kF32, {1, 1});
  }
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_THAT(reader.meta().errors,
              ElementsAre(HasSubstr("a: recorded twice"), HasSubstr("positions: recorded twice")));
  EXPECT_EQ(Contents(reader.steps()[0].Find("a")), std::vector<float>{1});
  EXPECT_NE(reader.steps()[0].Find("b"), nullptr);
}

TEST_F(TraceTest, NamesMistakesAndGoesOn) {
  const float x[4] = {};
  Trace trace(path_, Info());
  auto step = trace.BeginStep(nullptr, Count(2).data(), nullptr, 2, Phase::kPrefill);
  step.Record("null", nullptr, DType::kF32, {2, 1});
  step.Record("three", x, DType::kF32, {3, 1});
  step.Record("scalar", x, DType::kF32, {});
  step.Record("negative", x, DType::kF32, {2, -1});
  step.Record("large", x, DType::kF32, {2, int64_t{1} << 40, int64_t{1} << 40});
  step.Record("strides", x, DType::kF32, {2, 1}, {1});
  step.Record("hollow", x, DType::kF32, {2, 0});
  step.RecordRows("rows", x, DType::kF32, {1, 1}, {2});
  step.RecordRows("count", x, DType::kF32, {2, 1}, {0});
  step.RecordRows("again", x, DType::kF32, {2, 1}, {0, 0});
  step.Record("", x, DType::kF32, {2, 1});
  step.Record("rows:x", x, DType::kF32, {2, 1});
  step.Record("__metadata__", x, DType::kF32, {2, 1});
  step.Record("utf\xFF", x, DType::kF32, {2, 1});
  step.Record(std::string(5000, 'n'), x, DType::kF32, {2, 1});
  step.Record("good", x, DType::kF32, {2, 1});
  step.End();
  step.Record("late", x, DType::kF32, {2, 1});
  trace.BeginStep(nullptr, nullptr, nullptr, 1, Phase::kDecode);
  trace.BeginStep(nullptr, Count(1).data(), nullptr, -1, Phase::kDecode);
  trace.Close();
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_THAT(
      reader.meta().errors,
      ElementsAre(HasSubstr("null: no data"), HasSubstr("three: expected 2 tokens along axis 0, found shape [3,1]"),
                  HasSubstr("scalar: expected 2 tokens"), HasSubstr("negative: negative extent"),
                  HasSubstr("large: shape"), HasSubstr("1 strides for a shape of 2 axes"),
                  HasSubstr("hollow: rows without elements"), HasSubstr("row 0 belongs to token 2"),
                  HasSubstr("count: expected 1 rows"), HasSubstr("again: token 0 has two rows"),
                  HasSubstr("needs a name"), HasSubstr("rows:x: this name is reserved"), HasSubstr("reserved"),
                  HasSubstr("not UTF-8"), HasSubstr("5000 bytes is too long"),
                  HasSubstr("late: recorded after the step had ended"), HasSubstr("positions are obligatory"),
                  HasSubstr("expected 0 tokens or more, found -1")));
  ASSERT_THAT(reader.steps(), SizeIs(1));
  EXPECT_THAT(Names(reader.steps()[0]), ElementsAre("good"));
}

TEST_F(TraceTest, ThrowsWhereAskedTo) {
  TraceInfo info = Info();
  info.throw_errors = true;
  Trace trace(path_, info);
  auto step = trace.BeginStep(nullptr, Count(1).data(), nullptr, 1, Phase::kPrefill);
  EXPECT_THROW(step.Record("a", nullptr, DType::kF32, {1, 1}), std::runtime_error);
  EXPECT_THROW(trace.BeginStep(nullptr, nullptr, nullptr, 1, Phase::kPrefill), std::runtime_error);
  EXPECT_THROW(Trace(path_, info), std::runtime_error) << "the first one holds the lock";
  trace.Close();
  EXPECT_THROW(step.Record("a", nullptr, DType::kF32, {1, 1}), std::runtime_error);
}

TEST_F(TraceTest, PrintsTheFirstErrorOnce) {
  testing::internal::CaptureStderr();
  {
    Trace trace(path_, Info());
    auto step = trace.BeginStep(nullptr, Count(1).data(), nullptr, 1, Phase::kPrefill);
    for (int i = 0; i < 200; ++i) step.Record("bad" + std::to_string(i), nullptr, DType::kF32, {1, 1});
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "lockstep: step 0: bad0: no data (a null pointer)\n");
  EXPECT_THAT(TraceReader::Open(path_).meta().errors, SizeIs(100));
}

TEST_F(TraceTest, RefusesBadInfo) {
  const auto error = [&](const std::function<void(TraceInfo*)>& change) {
    TraceInfo info = Info();
    change(&info);
    const Trace trace(path_, info);
    EXPECT_FALSE(trace);
    EXPECT_FALSE(std::filesystem::exists(path_));
    return trace.error();
  };
  for (const char* bad : {"{",
                          "[]",
                          "1",
                          "{}x",
                          "{\"a\":}",
                          "{\"a\":1,}",
                          "{a:1}",
                          "{\"a\":01}",
                          "{\"a\":1.}",
                          "{\"a\":.5}",
                          "{\"a\":1e}",
                          "{\"a\":-}",
                          "{\"a\":+1}",
                          "{\"a\":1e999}",
                          "{\"a\":NaN}",
                          "{\"a\":tru}",
                          "{\"a\":\"\n\"}",
                          "{\"a\":\"\\x\"}",
                          "{\"a\":\"\\ud800\"}",
                          "{\"a\":\"\\udc00\"}",
                          "{\"a\":\"\\u12g4\"}",
                          "{\"a\":\"\xC0\x80\"}",
                          "{\"a\":\"\xED\xA0\x80\"}",
                          "{\"a\":1,\"a\":2}",
                          "{\"a\":[1,]}",
                          "{\"a\":[1 2]}",
                          "{\"a\":'b'}",
                          "{\"a\":\"b}"}) {
    EXPECT_THAT(error([&](TraceInfo* info) { info->config_json = bad; }),
                HasSubstr("TraceInfo::config_json: not a valid JSON object"))
        << bad;
  }
  const std::string deep = std::string("{\"a\":") + std::string(100000, '[') + std::string(100000, ']') + "}";
  EXPECT_THAT(error([&](TraceInfo* info) { info->config_json = deep; }), HasSubstr("expected less nesting"));
  EXPECT_THAT(error([](TraceInfo* info) { info->overrides_json = "x"; }), HasSubstr("TraceInfo::overrides_json"));
  EXPECT_THAT(error([](TraceInfo* info) { info->extra_json = "\"a\":1"; }), HasSubstr("TraceInfo::extra_json"));
  EXPECT_THAT(error([](TraceInfo* info) { info->extra_json = "{\"tensors\":{}}"; }),
              HasSubstr("\"tensors\" has a field of its own"));
  EXPECT_THAT(error([](TraceInfo* info) { info->select_rows = "last"; }), HasSubstr("selection of rows \"last\""));
  EXPECT_THAT(Trace("", Info()).error(), HasSubstr("needs a path"));
  EXPECT_THAT(Trace(root_ + "/no/such", Info()).error(), HasSubstr("cannot be created"));
  WriteFile(path_, "");
  EXPECT_THAT(Trace(path_, Info()).error(), HasSubstr("cannot be opened as a directory"));
}

// What the header lets through, the reader has to take.
TEST_F(TraceTest, AcceptsEveryKindOfJson) {
  TraceInfo info = Info();
  info.config_json =
      " \t\n\r{ \"a\" : [ 0 , -0.5e+10 , 1E-2, true,false , null, \"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e4\\ud83d\\ude00 "
      "äß€😀\", { } , [ ] ] } ";
  Trace(path_, info).Close();
  EXPECT_EQ(TraceReader::Open(path_).meta().config.size(), 1u);
}

// ---- The directory ----

TEST_F(TraceTest, ReplacesATrace) {
  const float x = 1;
  for (const int steps : {3, 1}) {
    Trace trace(path_, Info());
    for (int i = 0; i < steps; ++i) {
      trace.BeginStep(nullptr, Count(1).data(), nullptr, 1, Phase::kPrefill).Record("a", &x, DType::kF32, {1});
    }
    EXPECT_EQ(trace.error(), "");
    WriteFile(path_ + "/step-000007.safetensors.tmp", "left behind");
    WriteFile(path_ + "/notes.txt", "mine");
  }
  EXPECT_THAT(TraceReader::Open(path_).steps(), SizeIs(1));
  EXPECT_FALSE(std::filesystem::exists(path_ + "/step-000001.safetensors"));
  EXPECT_EQ(ReadFile(path_ + "/notes.txt"), "mine");
  Trace(path_, Info()).Close();
  EXPECT_FALSE(std::filesystem::exists(path_ + "/step-000007.safetensors.tmp"));
}

TEST_F(TraceTest, LeavesOtherDirectoriesAlone) {
  std::filesystem::create_directory(path_);
  WriteFile(path_ + "/trace.json.tmp", "{");
  EXPECT_EQ(Trace(path_, Info()).error(), "") << "what a writer that was killed at once leaves";
  std::filesystem::remove_all(path_);
  for (const auto& [name, content] :
       std::vector<std::pair<std::string, std::string>>{{"notes.txt", "mine"},
                                                        {"trace.json", "{\"format\": \"other\"}"},
                                                        {"trace.json", "{"},
                                                        {"step-000000.safetensors", ""}}) {
    std::filesystem::create_directory(path_);
    WriteFile(path_ + "/" + name, content);
    const Trace trace(path_, Info());
    EXPECT_FALSE(trace);
    EXPECT_THAT(trace.error(), HasSubstr("choose another path"));
    EXPECT_EQ(ReadFile(path_ + "/" + name), content);
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(path_), {}), 1);
    std::filesystem::remove_all(path_);
  }
}

TEST_F(TraceTest, IsLockedWhileItIsWrittenOrRead) {
  {
    Trace trace(path_, Info());
    EXPECT_THAT(OpenError(path_), HasSubstr("still being written"));
    EXPECT_THAT(Trace(path_, Info()).error(), HasSubstr("another program is writing or reading"));
    EXPECT_THAT(ErrorOf([&] { RepairTrace(path_); }), HasSubstr("open in another program"));
    EXPECT_EQ(trace.error(), "");
    trace.Close();
    EXPECT_EQ(OpenError(path_), "");
  }
  const TraceReader first = TraceReader::Open(path_);
  const TraceReader second = TraceReader::Open(path_);
  EXPECT_THAT(Trace(path_, Info()).error(), HasSubstr("another program is writing or reading"));
  EXPECT_TRUE(first.meta().closed);
}

TEST_F(TraceTest, AForkedChildDoesNotHoldTheLock) {
  Trace trace(path_, Info());
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    char c;
    close(ends[1]);
    _exit(read(ends[0], &c, 1) == 0 ? 0 : 1);
  }
  trace.Close();
  EXPECT_EQ(OpenError(path_), "");
  close(ends[0]);
  close(ends[1]);
  waitpid(child, nullptr, 0);
}

TEST_F(TraceTest, MovesAndOutlives) {
  const float x = 1;
  Step step;
  {
    Trace trace;
    trace = Trace(path_, Info());
    Trace moved = std::move(trace);
    EXPECT_FALSE(trace);  // NOLINT: moved from is switched off
    step = moved.BeginStep(nullptr, Count(1).data(), nullptr, 1, Phase::kPrefill);
    step.Record("a", &x, DType::kF32, {1});
  }
  step.Record("b", &x, DType::kF32, {1});
  step.End();
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_THAT(Names(reader.steps()[0]), ElementsAre("a"));
}

TEST_F(TraceTest, TakesManyThreads) {
  constexpr int kSteps = 8, kThreads = 4, kTensors = 60;
  {
    Trace trace(path_, Info());
    std::vector<std::thread> threads;
    std::vector<Step> steps;
    for (int i = 0; i < kSteps; ++i)
      steps.push_back(trace.BeginStep(nullptr, Count(2).data(), nullptr, 2, Phase::kPrefill));
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < kTensors; ++i) {
          for (int s = 0; s < kSteps; ++s) {
            const std::vector<float> x = Values(2, static_cast<float>(1000 * s + 100 * t + i));
            steps[static_cast<size_t>(s)].Record("t" + std::to_string(t) + "_" + std::to_string(i), x.data(),
                                                 DType::kF32, {2});
          }
          // Each thread also has steps of its own, on a rank of its own.
          trace.BeginStep(nullptr, Count(2).data(), nullptr, 2, Phase::kPrefill, t + 1);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(trace.error(), "");
  }
  const TraceReader reader = TraceReader::Open(path_);
  ASSERT_THAT(reader.steps(), SizeIs(kTensors));
  for (int s = 0; s < kSteps; ++s) {
    const TraceStep& step = reader.steps()[static_cast<size_t>(s)];
    ASSERT_THAT(step.tensors, SizeIs(kThreads * kTensors));
    for (int t = 0; t < kThreads; ++t) {
      for (int i = 0; i < kTensors; ++i) {
        ASSERT_EQ(Contents(step.Find("t" + std::to_string(t) + "_" + std::to_string(i))),
                  Values(2, static_cast<float>(1000 * s + 100 * t + i)));
      }
    }
  }
}

// ---- A full disk ----

class FullDiskTest : public TraceTest {
 protected:
  void SetUp() override {
    if (mount("none", root_.c_str(), "tmpfs", 0, "size=256k") != 0)
      GTEST_SKIP() << "needs the right to mount a small tmpfs";
    mounted_ = true;
  }
  ~FullDiskTest() override {
    if (mounted_) umount2(root_.c_str(), MNT_DETACH);
  }
  bool mounted_ = false;
};

TEST_F(FullDiskTest, EndsTheTraceAndKeepsWhatWasWhole) {
  const std::vector<float> x = Values(10'000);
  {
    Trace trace(path_, Info());
    auto step = trace.BeginStep(nullptr, Count(1).data(), nullptr, 1, Phase::kPrefill);
    for (int i = 0; i < 10; ++i) step.Record("t" + std::to_string(i), x.data(), DType::kF32, {1, 10'000});
    EXPECT_THAT(trace.error(), StartsWith(path_ + "/step-000000.safetensors: "));
    EXPECT_THAT(trace.error(), HasSubstr(" of 40000 bytes could not be written"));
    EXPECT_THAT(trace.error(), HasSubstr("No space left"));
    EXPECT_FALSE(trace);
    EXPECT_FALSE(step.wants("u"));
    EXPECT_FALSE(trace.BeginStep(nullptr, Count(1).data(), nullptr, 1, Phase::kPrefill));
  }
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_THAT(reader.meta().errors, ElementsAre(HasSubstr("No space left")));
  EXPECT_TRUE(reader.meta().closed);
  EXPECT_THAT(reader.warnings(), IsEmpty()) << "the unfinished tensor was cut off";
  const TraceStep& step = reader.steps()[0];
  EXPECT_THAT(step.tensors.size(), testing::AllOf(testing::Gt(1u), testing::Lt(6u)));
  for (const TraceTensor& tensor : step.tensors) EXPECT_EQ(Contents(&tensor), x);
}

TEST_F(FullDiskTest, MayComeBetweenSteps) {
  {
    Trace trace(path_, Info());
    for (int i = 0; i < 20; ++i) trace.BeginStep(nullptr, Count(1).data(), nullptr, 1, Phase::kPrefill);
    EXPECT_THAT(trace.error(), HasSubstr("No space left"));
  }
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_THAT(reader.steps().size(), testing::AllOf(testing::Gt(0u), testing::Lt(20u)));
  for (const auto& entry : std::filesystem::directory_iterator(path_)) EXPECT_NE(entry.path().extension(), ".tmp");
}

}  // namespace
}  // namespace lockstep
