// The forward pass against itself: however a text is cut into calls, whoever looks on, and whatever failed before, the
// rows are the same. That they are PyTorch's is for the tests of the whole program to say.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <stdexcept>
#include <thread>

#include "base/convert.h"
#include "base/fingerprint.h"
#include "checkpoint/test_files.h"
#include "lockstep/engine.h"

namespace lockstep {
namespace {

using test::ErrorOf;
using test::TempDir;
using test::TestTensor;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;
using enum Point;

const std::string kTinyQwen3 = LOCKSTEP_SOURCE_DIR "/models/tiny-qwen3";
constexpr DType kStorages[] = {DType::kF32, DType::kBF16, DType::kF16};

// The shapes of TinyConfig with random weights that keep all activations near 1.
void WriteRandomModel(const std::string& dir, DType dtype = DType::kBF16, uint32_t seed = 3) {
  const std::vector<TestTensor> tensors = test::TinyWeights(DTypeName(dtype));
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::string data;
  for (const TestTensor& tensor : tensors) {
    std::vector<float> values(test::BytesOf(tensor) / DTypeSize(dtype));
    const bool is_norm = tensor.shape.size() == 1;
    const float scale = is_norm ? 0.2F : 1.2F / std::sqrt(static_cast<float>(tensor.shape.back()));
    for (float& value : values) value = (is_norm ? 1.0F : 0.0F) + scale * normal(random);
    std::string bytes(values.size() * DTypeSize(dtype), '\0');
    NarrowFromFloat(dtype, values.data(), values.size(), reinterpret_cast<std::byte*>(bytes.data()));
    data += bytes;
  }
  test::WriteText(dir + "/config.json", test::TinyConfig().dump());
  test::WriteText(dir + "/model.safetensors", test::SafetensorsText(test::HeaderOf(tensors).dump(), data));
}

class RandomModel {
 public:
  explicit RandomModel(DType checkpoint_dtype = DType::kBF16) { WriteRandomModel(dir_.path(), checkpoint_dtype); }
  Model Load(const ModelOptions& options = {}) const { return Model::Load(dir_.path(), options); }
  const std::string& path() const { return dir_.path(); }

 private:
  TempDir dir_;
};

std::vector<int32_t> Tokens(const Model& model, size_t count, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens)
    token = static_cast<int32_t>(random() % static_cast<uint64_t>(model.config().vocab_size));
  return tokens;
}

// Forward over tokens of sequence 0.
Logits Feed(Session& session, std::span<const int32_t> tokens, Tap* tap = nullptr, LogitsRows rows = LogitsRows::kAll) {
  const std::vector<int32_t> zeros(tokens.size());
  return session.Forward({.tokens = tokens, .sequences = zeros, .logits_rows = rows}, tap);
}

std::vector<float> RunAlone(const Model& model, std::span<const int32_t> tokens, Tap* tap = nullptr) {
  Session session(model, 1, static_cast<int64_t>(tokens.size()));
  return Feed(session, tokens, tap).values;
}

std::byte* RowOf(const TapTensor& tensor, size_t r) {
  return static_cast<std::byte*>(tensor.data) + r * static_cast<size_t>(tensor.strides[0]) * DTypeSize(tensor.dtype);
}

using Row = std::pair<int32_t, int32_t>;  // sequence, position
using Table = std::map<Row, std::vector<float>>;

// Everything that passes, by name and row; attention matrices cut to the keys that the row may see.
class Recorder : public Tap {
 public:
  bool Wants(Point point, int layer) override { return wants(point, layer); }
  void OnBegin(const Batch& batch, std::span<const int32_t> positions) override {
    ++begins;
    sequences_.assign(batch.sequences.begin(), batch.sequences.end());
    positions_.assign(positions.begin(), positions.end());
  }
  void OnTensor(const TapTensor& tensor) override {
    const std::string name = PointName(tensor.point, tensor.layer);
    order.push_back(name);
    if (on_tensor) on_tensor(tensor);
    const auto rows = static_cast<size_t>(tensor.shape[0]);
    ASSERT_EQ(rows, tensor.rows.size());
    int64_t width = 1;  // rows are dense, and may lie apart
    for (size_t axis = tensor.shape.size(); axis-- > 1; width *= tensor.shape[axis])
      ASSERT_EQ(tensor.strides[axis], width);
    ASSERT_GE(tensor.strides[0], width);
    for (size_t r = 0; r < rows; ++r) {
      const auto token = static_cast<size_t>(tensor.rows[r]);
      std::vector<float> row(static_cast<size_t>(width));
      WidenToFloat(tensor.dtype, RowOf(tensor, r), row.size(), row.data());
      if (SpecOf(tensor.point).on_request) row = Seen(tensor, row, positions_[token]);
      tables[name][{sequences_[token], positions_[token]}] = std::move(row);
    }
  }
  void OnEnd(std::span<const int32_t> rows, std::span<const int32_t> chosen) override {
    ++ends;
    last.assign(rows.begin(), rows.end());
    next.assign(chosen.begin(), chosen.end());
  }

  std::function<bool(Point, int)> wants = [](Point, int) { return true; };
  std::function<void(const TapTensor&)> on_tensor;
  int begins = 0, ends = 0;
  std::vector<std::string> order;
  std::map<std::string, Table> tables;
  std::vector<int32_t> last, next;

 private:
  static std::vector<float> Seen(const TapTensor& tensor, const std::vector<float>& row, int32_t position) {
    std::vector<float> seen;
    const float masked = tensor.point == kAttnScores ? -std::numeric_limits<float>::infinity() : 0;
    for (size_t i = 0; i < row.size(); ++i) {
      if (static_cast<int64_t>(i) % tensor.shape[2] <= position) {
        seen.push_back(row[i]);
      } else {
        EXPECT_EQ(row[i], masked);
      }
    }
    return seen;
  }

  std::vector<int32_t> sequences_, positions_;
};

std::vector<std::string> AllNames(const Model& model) {
  return AllPointNames(static_cast<int>(model.config().num_hidden_layers), true);
}

// ---- Cutting a text into calls ----

double Rms(const std::vector<float>& row) {
  double squares = 0;
  for (const float value : row) squares += double{value} * value;
  return std::sqrt(squares / static_cast<double>(row.size()));
}

void ExpectClose(const std::map<std::string, Table>& actual, const std::map<std::string, Table>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, table] : expected) {
    ASSERT_TRUE(actual.contains(name)) << name;
    ASSERT_EQ(actual.at(name).size(), table.size()) << name;
    for (const auto& [at, row] : table) {
      ASSERT_TRUE(actual.at(name).contains(at)) << name << " " << at.first << ", " << at.second;
      const std::vector<float>& other = actual.at(name).at(at);
      ASSERT_EQ(other.size(), row.size()) << name;
      const double tolerance = 1e-4 * std::max(1.0, Rms(row));
      for (size_t i = 0; i < row.size(); ++i) {
        ASSERT_NEAR(other[i], row[i], tolerance) << name << " " << at.first << ", " << at.second << " element " << i;
      }
    }
  }
}

// Calls over several sequences: (sequence, number of tokens) in the order of the batch.
using Plan = std::vector<std::vector<std::pair<int32_t, size_t>>>;

std::map<std::string, Table> RunPlan(const Model& model, const std::vector<std::vector<int32_t>>& texts,
                                     const Plan& plan) {
  Session session(model, static_cast<int>(texts.size()), 40);
  Recorder recorder;
  std::vector<size_t> done(texts.size());
  for (const auto& call : plan) {
    std::vector<int32_t> tokens, sequences;
    for (const auto& [sequence, count] : call) {
      const auto s = static_cast<size_t>(sequence);
      for (size_t i = 0; i < count; ++i) {
        tokens.push_back(texts[s][done[s]++]);
        sequences.push_back(sequence);
      }
    }
    session.Forward({.tokens = tokens, .sequences = sequences, .logits_rows = LogitsRows::kAll}, &recorder);
  }
  for (size_t s = 0; s < texts.size(); ++s)
    EXPECT_EQ(session.Length(static_cast<int>(s)), static_cast<int64_t>(done[s]));
  return recorder.tables;
}

void ExpectSameHoweverCut(const Model& model) {
  const std::vector<std::vector<int32_t>> texts = {Tokens(model, 13, 1), Tokens(model, 7, 2), Tokens(model, 18, 3)};
  const auto one_shot = RunPlan(model, texts, {{{0, 13}}, {{1, 7}}, {{2, 18}}});
  ASSERT_EQ(one_shot.size(), AllNames(model).size());
  for (const auto& [name, table] : one_shot) EXPECT_EQ(table.size(), 13U + 7 + 18) << name;

  const std::vector<std::pair<const char*, Plan>> plans = {
      {"chunks", {{{0, 5}}, {{0, 1}}, {{0, 7}}, {{1, 3}}, {{1, 4}}, {{2, 17}}, {{2, 1}}}},
      {"ragged batch", {{{2, 18}, {0, 13}, {1, 7}}}},
      {"ragged batches", {{{1, 2}, {2, 9}}, {{0, 12}}, {{2, 1}, {0, 1}, {1, 1}}, {{1, 3}, {2, 7}}, {{2, 1}, {1, 1}}}},
  };
  for (const auto& [what, plan] : plans) {
    SCOPED_TRACE(what);
    ExpectClose(RunPlan(model, texts, plan), one_shot);
  }
  SCOPED_TRACE("prefill and decode");
  Plan decode = {{{0, 4}, {1, 2}, {2, 9}}};
  for (int i = 0; i < 5; ++i) decode.push_back({{0, 1}, {1, 1}, {2, 1}});
  for (int i = 0; i < 4; ++i) decode.push_back({{0, 1}, {2, 1}});
  ExpectClose(RunPlan(model, texts, decode), one_shot);
}

TEST(Session, RowsAreTheSameHoweverTheTextIsCut) { ExpectSameHoweverCut(RandomModel().Load()); }
TEST(Session, RowsOfTinyQwen3AreTheSameHoweverTheTextIsCut) { ExpectSameHoweverCut(Model::Load(kTinyQwen3)); }

TEST(Session, LastRowsAreThoseOfAllRows) {
  const Model model = RandomModel().Load();
  const std::vector<int32_t> tokens = Tokens(model, 8), sequences = {1, 1, 1, 0, 2, 2, 2, 2};
  Session all_session(model, 3, 8), last_session(model, 3, 8);
  Recorder all_recorder, last_recorder;
  const Logits all =
      all_session.Forward({.tokens = tokens, .sequences = sequences, .logits_rows = LogitsRows::kAll}, &all_recorder);
  const Logits last = last_session.Forward({.tokens = tokens, .sequences = sequences}, &last_recorder);
  EXPECT_THAT(all.rows, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(last.rows, ElementsAre(2, 3, 7));
  EXPECT_EQ(last.vocab, model.config().vocab_size);
  std::vector<int32_t> next;
  for (size_t r = 0; r < 3; ++r) {
    const std::span<const float> row = last.Row(r), same = all.Row(static_cast<size_t>(last.rows[r]));
    double largest = 0;
    for (size_t i = 0; i < row.size(); ++i) {
      EXPECT_NEAR(row[i], same[i], 1e-4);
      largest = i == 0 ? row[i] : std::max<double>(largest, row[i]);
    }
    next.push_back(last.Greedy(r));
    EXPECT_EQ(row[static_cast<size_t>(next.back())], largest);
  }
  for (const Recorder& recorder : {all_recorder, last_recorder}) {
    EXPECT_EQ(recorder.begins, 1);
    EXPECT_EQ(recorder.ends, 1);
    EXPECT_THAT(recorder.last, ElementsAre(2, 3, 7));
    EXPECT_EQ(recorder.next, next);
  }
  EXPECT_THAT(last_recorder.tables.at("logits"), SizeIs(3));
}

TEST(Logits, GreedyIsTheFirstOfTheLargest) {
  const Logits logits{{0, 1}, 4, {1, 3, 3, 2, -5, -7, -6, -5}};
  EXPECT_EQ(logits.Greedy(0), 1);
  EXPECT_EQ(logits.Greedy(1), 0);
}

// ---- Taps ----

class StorageTest : public testing::TestWithParam<DType> {
 protected:
  Model LoadTiny() const { return Model::Load(kTinyQwen3, {.dtype = GetParam()}); }
};
INSTANTIATE_TEST_SUITE_P(, StorageTest, testing::ValuesIn(kStorages),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

TEST_P(StorageTest, LookingOnChangesNoBit) {
  const Model model = LoadTiny();
  const std::vector<int32_t> tokens = Tokens(model, 21);
  const auto run = [&](Tap* tap) {
    Session session(model, 1, 21);
    std::vector<float> values = Feed(session, std::span(tokens).first(16), tap).values;
    for (size_t t = 16; t < 21; ++t) {
      const Logits decode = Feed(session, std::span(tokens).subspan(t, 1), tap);
      values.insert(values.end(), decode.values.begin(), decode.values.end());
    }
    return values;
  };
  const std::vector<float> bare = run(nullptr);
  EXPECT_THAT(bare, Each(testing::Truly([](float value) { return std::isfinite(value); })));

  Recorder everything, nothing, no_attention, only_probs;
  nothing.wants = [](Point, int) { return false; };
  no_attention.wants = [](Point point, int) { return !SpecOf(point).on_request; };
  only_probs.wants = [](Point point, int layer) { return point == kAttnProbs && layer == 2; };
  for (Recorder* recorder : {&everything, &nothing, &no_attention, &only_probs}) EXPECT_EQ(run(recorder), bare);
  EXPECT_EQ(everything.tables.size(), AllNames(model).size());
  EXPECT_TRUE(nothing.tables.empty());
  EXPECT_THAT(only_probs.tables, ElementsAre(testing::Key("layer_2_attn_probs")));

  const TempDir dir;
  for (const std::string points : {"", "*,attn_scores,attn_probs"}) {
    TraceTap trace(model, dir / "t.trace", {.points = points});
    EXPECT_EQ(run(&trace), bare) << points;
    trace.Close();
  }
}

TEST_P(StorageTest, TheSameInputGivesTheSameBits) {
  const Model model = LoadTiny(), again = LoadTiny();
  const std::vector<int32_t> tokens = Tokens(model, 33);
  const std::vector<float> first = RunAlone(model, tokens);
  EXPECT_EQ(RunAlone(model, tokens), first);
  EXPECT_EQ(RunAlone(again, tokens), first);
}

TEST_P(StorageTest, ThreadsChunksAndBatchesChangeNoBit) {
  const Model model = Model::Load(kTinyQwen3, {.dtype = GetParam()});
  const std::vector<int32_t> tokens = Tokens(model, 70), other = Tokens(model, 33, 2);
  const std::vector<float> expected = RunAlone(model, tokens);
  const int threads = omp_get_max_threads();
  for (const int count : {1, 2, 3, 4}) {
    omp_set_num_threads(count);
    EXPECT_EQ(RunAlone(model, tokens), expected) << count << " threads";
  }
  omp_set_num_threads(threads);

  Session session(model, 2, 70);
  const auto vocab = model.config().vocab_size;
  std::vector<float> chunked = Feed(session, std::span(tokens).first(17)).values;
  for (const size_t t : {17, 18}) {
    const std::vector<float> row = Feed(session, std::span(tokens).subspan(t, 1)).values;
    chunked.insert(chunked.end(), row.begin(), row.end());
  }
  std::vector<int32_t> both(other), sequences(other.size(), 1);
  both.insert(both.end(), tokens.begin() + 19, tokens.end());
  sequences.resize(both.size(), 0);
  const Logits batch = session.Forward({.tokens = both, .sequences = sequences, .logits_rows = LogitsRows::kAll});
  chunked.insert(chunked.end(), batch.values.begin() + static_cast<int64_t>(other.size()) * vocab, batch.values.end());
  EXPECT_EQ(chunked, expected);
}

TEST_P(StorageTest, IdentitiesOfThePoints) {
  const Model model = LoadTiny();
  const std::vector<int32_t> tokens = Tokens(model, 9);
  Recorder recorder;
  RunAlone(model, tokens, &recorder);
  EXPECT_EQ(recorder.tables["layer_0_input_hidden_states"], recorder.tables["input_embeddings"]);
  for (int layer = 0; layer < 5; ++layer) {
    if (layer > 0) {
      EXPECT_EQ(recorder.tables[PointName(kInputHiddenStates, layer)],
                recorder.tables[PointName(kLayerOutput, layer - 1)]);
    }
    for (const auto& [rope, normed] : {std::pair{kAttnQRope, kAttnQNormed}, std::pair{kAttnKRope, kAttnKNormed}}) {
      const Table &after = recorder.tables[PointName(rope, layer)], &before = recorder.tables[PointName(normed, layer)];
      EXPECT_EQ(after.at({0, 0}), before.at({0, 0}));
      EXPECT_NE(after.at({0, 1}), before.at({0, 1}));
    }
  }
  // Embeddings are exact copies of the checkpoint's rows, rounded to the storage dtype.
  const Weight& embedding = model.checkpoint()->Get("model.embed_tokens.weight");
  const auto width = static_cast<size_t>(model.config().hidden_size);
  for (size_t t = 0; t < tokens.size(); ++t) {
    std::vector<float> row(width);
    const size_t at = static_cast<size_t>(tokens[t]) * width * DTypeSize(embedding.dtype);
    WidenToFloat(embedding.dtype, embedding.data + at, width, row.data());
    std::vector<std::byte> stored(width * DTypeSize(GetParam()));
    NarrowFromFloat(GetParam(), row.data(), width, stored.data());
    WidenToFloat(GetParam(), stored.data(), width, row.data());
    EXPECT_EQ(recorder.tables["input_embeddings"].at({0, static_cast<int32_t>(t)}), row);
  }
}

TEST(Tap, SeesEachPointOnceInTheOrderOfTheTable) {
  const Model model = RandomModel().Load();
  Recorder recorder;
  RunAlone(model, Tokens(model, 5), &recorder);
  EXPECT_EQ(recorder.order, AllNames(model));
}

TEST(Tap, TensorsHaveTheAxesOfTheTable) {
  const Model model = RandomModel().Load();
  const Config& c = model.config();
  Recorder recorder;
  recorder.on_tensor = [&](const TapTensor& tensor) {
    const std::map<Axis, int64_t> extents = {{Axis::kToken, 5},
                                             {Axis::kHidden, c.hidden_size},
                                             {Axis::kQHead, c.num_attention_heads},
                                             {Axis::kKvHead, c.num_key_value_heads},
                                             {Axis::kHeadDim, c.head_dim},
                                             {Axis::kKey, 5},
                                             {Axis::kIntermediate, c.intermediate_size},
                                             {Axis::kVocab, c.vocab_size}};
    std::vector<int64_t> expected;
    for (const Axis axis : SpecOf(tensor.point).axes) expected.push_back(extents.at(axis));
    EXPECT_EQ(tensor.shape, expected) << PointName(tensor.point, tensor.layer);
    EXPECT_EQ(tensor.dtype, DType::kF32);
  };
  RunAlone(model, Tokens(model, 5), &recorder);
}

// Elements [begin, begin + count) of one row.
void Negate(const TapTensor& tensor, size_t row, size_t begin, size_t count) {
  std::vector<float> values(count);
  std::byte* data = RowOf(tensor, row) + begin * DTypeSize(tensor.dtype);
  WidenToFloat(tensor.dtype, data, count, values.data());
  for (float& value : values) value = -value;
  NarrowFromFloat(tensor.dtype, values.data(), count, data);
}

// At every point in turn: nothing before it changes, and the logits do.
TEST_P(StorageTest, ReplacingATensorChangesWhatFollowsAndNothingBefore) {
  const RandomModel files;
  const Model model = files.Load({.dtype = GetParam()});
  const std::vector<int32_t> tokens = Tokens(model, 6);
  Recorder before;
  const std::vector<float> logits = RunAlone(model, tokens, &before);
  const std::vector<std::string> names = AllNames(model);
  for (size_t replaced = 0; replaced < names.size(); ++replaced) {
    Recorder after;
    after.on_tensor = [&](const TapTensor& tensor) {
      if (PointName(tensor.point, tensor.layer) != names[replaced]) return;
      size_t count = 1;
      for (const int64_t extent : tensor.shape) count *= static_cast<size_t>(extent);
      const auto rows = static_cast<size_t>(tensor.shape[0]);
      if (!SpecOf(tensor.point).on_request) {
        for (size_t r = 0; r < rows; ++r) Negate(tensor, r, 0, count / rows);
        return;
      }
      auto* values = static_cast<float*>(tensor.data);  // masks must stay masks for the recorder
      for (size_t i = 0; i < count; ++i) values[i] *= values[i] > -1e30F ? -1.0F : 1.0F;
    };
    EXPECT_NE(RunAlone(model, tokens, &after), logits) << names[replaced];
    for (size_t i = 0; i < replaced; ++i)
      EXPECT_EQ(after.tables[names[i]], before.tables[names[i]]) << names[replaced] << ", " << names[i];
    EXPECT_NE(after.tables[names[replaced]], before.tables[names[replaced]]);
  }
}

TEST(Tap, ReplacedHeadOfOneTokenChangesThatHeadOfThatToken) {
  const Model model = RandomModel().Load();
  const auto d = static_cast<size_t>(model.config().head_dim),
             heads = static_cast<size_t>(model.config().num_attention_heads);
  constexpr size_t kToken = 3, kHead = 2;
  const std::vector<int32_t> tokens = Tokens(model, 6);
  Recorder before, after;
  RunAlone(model, tokens, &before);
  after.on_tensor = [&](const TapTensor& tensor) {
    if (tensor.point == kAttnQRope && tensor.layer == 0) Negate(tensor, kToken, kHead * d, d);
  };
  RunAlone(model, tokens, &after);
  const Table &a = before.tables["layer_0_attn_context"], &b = after.tables["layer_0_attn_context"];
  for (size_t token = 0; token < 6; ++token) {
    for (size_t i = 0; i < heads * d; ++i) {
      const Row row{0, static_cast<int32_t>(token)};
      if (token == kToken && i / d == kHead) {
        EXPECT_NE(a.at(row)[i], b.at(row)[i]);
      } else {
        EXPECT_EQ(a.at(row)[i], b.at(row)[i]) << token << " " << i;
      }
    }
  }
  EXPECT_EQ(before.tables["logits"].at({0, kToken - 1}), after.tables["logits"].at({0, kToken - 1}));
  EXPECT_NE(before.tables["logits"].at({0, kToken + 1}), after.tables["logits"].at({0, kToken + 1}));
}

TEST(Tap, ReplacedKeysAndValuesAreWhatTheCacheKeeps) {
  const Model model = RandomModel().Load();
  const std::vector<int32_t> tokens = Tokens(model, 6);
  for (const Point point : {kAttnKRope, kAttnVProjRaw}) {
    std::vector<std::vector<float>> decoded;
    for (const bool replace : {false, true}) {
      Session session(model, 1, 6);
      Recorder recorder;
      recorder.on_tensor = [&](const TapTensor& tensor) {
        if (replace && tensor.point == point && tensor.layer == 0) Negate(tensor, 0, 0, 4);
      };
      Feed(session, std::span(tokens).first(5), &recorder);
      Recorder later;
      Feed(session, std::span(tokens).last(1), &later);
      decoded.push_back(later.tables["layer_0_attn_context"].at({0, 5}));
    }
    EXPECT_NE(decoded[0], decoded[1]) << PointName(point, 0);
  }
}

TEST(Tap, ReplacedLogitsAreReturnedAndChooseTheNextToken) {
  const Model model = RandomModel().Load();
  Recorder recorder;
  recorder.on_tensor = [](const TapTensor& tensor) {
    if (tensor.point == kLogits) static_cast<float*>(tensor.data)[17] = 1e9F;
  };
  Session session(model, 1, 3);
  const Logits logits = Feed(session, Tokens(model, 3), &recorder, LogitsRows::kLast);
  EXPECT_EQ(logits.Row(0)[17], 1e9F);
  EXPECT_THAT(recorder.next, ElementsAre(17));
}

// ---- Bad input ----

class BadInputTest : public testing::Test {
 protected:
  // The error of a batch; afterwards the session goes on as if it had not been.
  std::string ErrorOfBatch(const std::vector<int32_t>& tokens, const std::vector<int32_t>& sequences,
                           const std::vector<float>& embeddings = {}, Tap* tap = nullptr) {
    Session session(model_, 2, 8), undisturbed(model_, 2, 8);
    const std::vector<int32_t> first = Tokens(model_, 5), then = Tokens(model_, 3, 2);
    Feed(session, first);
    Feed(undisturbed, first);
    const std::string error =
        ErrorOf([&] { session.Forward({.tokens = tokens, .sequences = sequences, .embeddings = embeddings}, tap); });
    EXPECT_EQ(session.Length(0), 5);
    EXPECT_EQ(session.Length(1), 0);
    EXPECT_EQ(Feed(session, then).values, Feed(undisturbed, then).values);
    return error;
  }

  const Model model_ = RandomModel().Load();
  const int32_t vocab_ = static_cast<int32_t>(model_.config().vocab_size);
};

TEST_F(BadInputTest, IsNamed) {
  EXPECT_THAT(ErrorOfBatch({}, {}), HasSubstr("empty batch"));
  EXPECT_THAT(ErrorOfBatch({1, 2}, {0}), HasSubstr("2 tokens, but 1 sequence"));
  EXPECT_THAT(ErrorOfBatch({1, -1}, {0, 0}), HasSubstr("token 1: expected an id from 0 to 31, found -1"));
  EXPECT_THAT(ErrorOfBatch({vocab_}, {0}), HasSubstr("found 32"));
  EXPECT_THAT(ErrorOfBatch({std::numeric_limits<int32_t>::max()}, {0}), HasSubstr("found 2147483647"));
  EXPECT_THAT(ErrorOfBatch({1}, {2}), HasSubstr("expected a sequence from 0 to 1, found 2"));
  EXPECT_THAT(ErrorOfBatch({1}, {-1}), HasSubstr("found -1"));
  EXPECT_THAT(ErrorOfBatch({1, 2, 3}, {0, 1, 0}), HasSubstr("sequence 0 stands twice"));
  EXPECT_THAT(ErrorOfBatch({1, 2, 3, 4}, {0, 0, 0, 0}), HasSubstr("would have 9 tokens; its cache has room for 8"));
  EXPECT_THAT(ErrorOfBatch({1, 2, 3, 4, 5}, {1, 0, 0, 0, 0}), HasSubstr("sequence 0 would have 9 tokens"));
  EXPECT_THAT(ErrorOfBatch({1, 2}, {0, 0}, std::vector<float>(12)),
              HasSubstr("expected 2 rows of 12 values, found 12"));
  EXPECT_THAT(ErrorOfBatch({1, 2}, {0, 0}, std::vector<float>(25)), HasSubstr("found 25"));
  EXPECT_THAT(ErrorOfBatch({-1}, {2}, std::vector<float>(12)), HasSubstr("found 2"));
}

TEST_F(BadInputTest, ATapThatThrowsLeavesTheCacheAsItWas) {
  for (const std::string& name : AllNames(model_)) {
    Recorder recorder;
    recorder.on_tensor = [&](const TapTensor& tensor) {
      if (PointName(tensor.point, tensor.layer) == name) throw Error("stop at " + name);
    };
    EXPECT_EQ(ErrorOfBatch({4, 5}, {0, 0}, {}, &recorder), "stop at " + name);
  }
}

TEST_F(BadInputTest, AFullCacheTakesNoMore) {
  Session session(model_, 1, 4);
  const std::vector<int32_t> tokens = Tokens(model_, 4);
  const std::vector<float> values = Feed(session, tokens).values;
  EXPECT_EQ(session.Length(0), 4);
  EXPECT_THAT(ErrorOf([&] { Feed(session, std::span(tokens).first(1)); }),
              HasSubstr("5 tokens; its cache has room for 4"));
  EXPECT_EQ(values, RunAlone(model_, tokens));
}

TEST_F(BadInputTest, SessionsThatCanNotBe) {
  EXPECT_THAT(ErrorOf([&] { Session(model_, 1, 65); }), HasSubstr("max_position_embeddings, 64"));
  EXPECT_NO_THROW(Session(model_, 1, 64));
  EXPECT_THAT(ErrorOf([&] { Session(model_, 0, 4); }), HasSubstr("at least one"));
  EXPECT_THAT(ErrorOf([&] { Session(model_, -1, 4); }), HasSubstr("at least one"));
  EXPECT_THAT(ErrorOf([&] { Session(model_, 1, 0); }), HasSubstr("at least one"));
  EXPECT_THAT(ErrorOf([&] { Session(model_, 1, std::numeric_limits<int64_t>::max()); }),
              HasSubstr("max_position_embeddings"));
}

TEST(ModelLoad, RefusesWhatItCanNotDo) {
  const RandomModel files;
  EXPECT_THAT(ErrorOf([&] { files.Load({.dtype = DType::kF64}); }),
              HasSubstr("F64 is not supported; expected f32, bf16 or f16"));
  EXPECT_THAT(ErrorOf([&] { files.Load({.num_layers = 3}); }), HasSubstr("1 to 2"));
  EXPECT_THAT(ErrorOf([&] { files.Load({.num_layers = 0}); }), HasSubstr("1 to 2"));
  EXPECT_THAT(ErrorOf([&] { files.Load({.num_layers = -2}); }), HasSubstr("1 to 2"));
  EXPECT_THAT(ErrorOf([&] { Model::Load(files.path() + "/no-such"); }), HasSubstr("no-such"));
}

// ---- Models and sessions ----

TEST(ModelLoad, TakesOnlyTheFirstLayers) {
  const RandomModel files;
  const Model whole = files.Load(), first = files.Load({.num_layers = 1});
  EXPECT_EQ(first.config().num_hidden_layers, 1);
  const std::vector<int32_t> tokens = Tokens(whole, 5);
  Recorder a, b;
  const std::vector<float> of_whole = RunAlone(whole, tokens, &a), of_first = RunAlone(first, tokens, &b);
  EXPECT_EQ(b.order, AllPointNames(1, true));
  for (const std::string& name : b.order) {
    EXPECT_EQ(a.tables[name] == b.tables[name], name != "final_norm_output" && name != "logits") << name;
  }
  EXPECT_NE(of_whole, of_first);
}

TEST(ModelLoad, TakesEveryDtypeOfTheCheckpoint) {
  const std::vector<int32_t> tokens = {3, 1, 4, 1, 5};
  const RandomModel f32(DType::kF32), bf16(DType::kBF16);
  // The same random values, rounded to bf16 on disk or on loading.
  EXPECT_EQ(RunAlone(f32.Load({.dtype = DType::kBF16}), tokens), RunAlone(bf16.Load({.dtype = DType::kBF16}), tokens));
  EXPECT_NE(RunAlone(f32.Load(), tokens), RunAlone(bf16.Load(), tokens));
}

TEST_P(StorageTest, FingerprintsAreThoseOfTheRoundedWeights) {
  const Model model = LoadTiny();
  std::map<std::string, Model::Fingerprint> found;
  for (const Model::Fingerprint& fingerprint : model.Fingerprints()) {
    EXPECT_TRUE(found.emplace(fingerprint.name, fingerprint).second) << fingerprint.name;
  }
  std::vector<Weight> weights = model.checkpoint()->weights();
  Weight head = model.checkpoint()->Get("lm_head.weight");
  head.name = "lm_head.weight";  // tied: the embedding's, recorded under both names
  weights.push_back(head);
  EXPECT_EQ(found.size(), weights.size());
  for (const Weight& weight : weights) {
    const size_t count = weight.bytes / DTypeSize(weight.dtype);
    std::vector<float> values(count);
    WidenToFloat(weight.dtype, weight.data, count, values.data());
    std::vector<std::byte> stored(count * DTypeSize(GetParam()));
    NarrowFromFloat(GetParam(), values.data(), count, stored.data());
    const int64_t rows = weight.shape.size() == 1 ? 1 : weight.shape[0];
    ASSERT_TRUE(found.contains(weight.name)) << weight.name;
    EXPECT_EQ(found[weight.name].hash, FingerprintOfMatrix(GetParam(), stored.data(), rows, weight.shape.back()))
        << weight.name;
    EXPECT_EQ(found[weight.name].shape, weight.shape) << weight.name;
  }
}

TEST_P(StorageTest, SessionsInTwoThreadsGiveWhatEachGivesAlone) {
  const Model model = LoadTiny();
  const std::vector<int32_t> texts[2] = {Tokens(model, 40, 1), Tokens(model, 40, 2)};
  const std::vector<float> alone[2] = {RunAlone(model, texts[0]), RunAlone(model, texts[1])};
  int different[2] = {0, 0};
  const auto work = [&](size_t t) {
    for (int i = 0; i < 4; ++i) different[t] += RunAlone(model, texts[t]) != alone[t];
  };
  std::thread thread(work, 0);
  work(1);
  thread.join();
  EXPECT_EQ(different[0], 0);
  EXPECT_EQ(different[1], 0);
}

TEST(Session, MovesWithItsCache) {
  RandomModel files;
  Model model = files.Load();
  const std::vector<int32_t> tokens = Tokens(model, 6);
  Session first(model, 1, 6);
  Feed(first, std::span(tokens).first(4));
  Session second = std::move(first);
  Session whole(model, 1, 6);
  Feed(whole, std::span(tokens).first(4));
  EXPECT_EQ(Feed(second, std::span(tokens).last(2)).values, Feed(whole, std::span(tokens).last(2)).values);
}

// ---- Embeddings as input ----

TEST_P(StorageTest, EmbeddingsTakeTheTokensPlace) {
  const Model model = LoadTiny();
  const std::vector<int32_t> tokens = Tokens(model, 7), none(7, -1), zeros(7);
  Recorder recorder;
  const std::vector<float> expected = RunAlone(model, tokens, &recorder);
  std::vector<float> embeddings;
  for (const auto& [at, row] : recorder.tables["input_embeddings"])
    embeddings.insert(embeddings.end(), row.begin(), row.end());
  Session session(model, 1, 7);
  const Batch batch{.tokens = none, .sequences = zeros, .embeddings = embeddings, .logits_rows = LogitsRows::kAll};
  EXPECT_EQ(session.Forward(batch).values, expected);
}

TEST_P(StorageTest, EdgeCasesGiveFiniteLogits) {
  const Model model = LoadTiny();
  const std::vector<int32_t> none(7, -1), zeros(7);
  for (const char* source : {"zeros", "tiny", "huge"}) {
    const std::vector<int64_t> lengths = {7};
    const std::vector<float> embeddings = InputEmbeddings(source, model.config().hidden_size, lengths).at(0);
    Session session(model, 1, 7);
    const Logits logits = session.Forward({.tokens = none, .sequences = zeros, .embeddings = embeddings});
    EXPECT_THAT(logits.values, Each(testing::Truly([](float value) { return std::isfinite(value); }))) << source;
  }
}

TEST(InputEmbeddings, EdgeCasesFollowTheFormula) {
  const std::vector<int64_t> lengths = {3, 1};
  for (const auto& [source, scale] : {std::pair{"zeros", 0.0}, std::pair{"tiny", 0x1p-20}, std::pair{"huge", 0x1p13}}) {
    const auto blocks = InputEmbeddings(source, 5, lengths);
    ASSERT_THAT(blocks, ElementsAre(SizeIs(15), SizeIs(5)));
    for (const std::vector<float>& block : blocks) {
      for (size_t i = 0; i < block.size(); ++i) {
        EXPECT_EQ(block[i], scale * (static_cast<double>(SplitMix64(i) >> 40) * 0x1p-23 - 1)) << source << " " << i;
      }
    }
  }
  EXPECT_EQ(SplitMix64(0), 0xE220A8397B1DCDAFu);  // the published first value
}

// A .npy file: magic, version, length of the header, header, data.
std::string NpyText(const std::string& header, const std::string& data, char version = 1) {
  const size_t length = header.size() + 1;
  std::string text = "\x93NUMPY";
  text += version;
  text += '\0';
  for (size_t byte = 0; byte < (version == 1 ? 2U : 4U); ++byte) text += static_cast<char>(length >> (8 * byte) & 0xFF);
  return text + header + "\n" + data;
}

std::string NpyHeader(const std::string& descr, const std::string& shape, const std::string& order = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
}

template <typename T>
std::string BytesOf(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

class NpyTest : public testing::Test {
 protected:
  std::vector<std::vector<float>> Read(const std::string& text, const std::vector<int64_t>& lengths = {}) {
    test::WriteText(dir_ / "x.npy", text);
    return InputEmbeddings(dir_ / "x.npy", 3, lengths);
  }
  std::string ErrorOfFile(const std::string& text, const std::vector<int64_t>& lengths = {}) {
    const std::string error = ErrorOf([&] { Read(text, lengths); });
    EXPECT_THAT(error, HasSubstr("x.npy: "));
    return error;
  }
  const TempDir dir_;
  const std::vector<float> values_ = {1, -2, 0.5, 4, 5, 6};
};

TEST_F(NpyTest, ReadsEveryFloatAndVersion) {
  const std::vector<double> doubles(values_.begin(), values_.end());
  std::vector<uint16_t> halves;
  for (const float value : values_) halves.push_back(FromFloat<F16>(value).bits);
  for (const char version : {1, 2, 3}) {
    EXPECT_THAT(Read(NpyText(NpyHeader("<f4", "(2, 3)"), BytesOf(values_), version)), ElementsAre(values_));
    EXPECT_THAT(Read(NpyText(NpyHeader("<f8", "(2, 3)"), BytesOf(doubles), version)), ElementsAre(values_));
    EXPECT_THAT(Read(NpyText(NpyHeader("<f2", "(2, 3)"), BytesOf(halves), version)), ElementsAre(values_));
  }
  const std::vector<float> first = {1, -2, 0.5}, second = {4, 5, 6};
  EXPECT_THAT(Read(NpyText(NpyHeader("<f4", "(2, 1, 3)"), BytesOf(values_))), ElementsAre(first, second));
  EXPECT_THAT(Read(NpyText(NpyHeader("<f4", "(1, 2, 3)"), BytesOf(values_)), {2}), ElementsAre(values_));
}

TEST_F(NpyTest, RefusesWhatIsNotOne) {
  const std::string data = BytesOf(values_), good = NpyText(NpyHeader("<f4", "(2, 3)"), data);
  for (const std::string& text : {std::string(), std::string("\x93NUMPY"), std::string("PK\x03\x04 not a .npy file"),
                                  NpyText("", "", 4), good.substr(0, 11)}) {
    EXPECT_THAT(ErrorOfFile(text), HasSubstr("expected a .npy file"));
  }
  std::string zero_version = good;
  zero_version[6] = 0;
  EXPECT_THAT(ErrorOfFile(zero_version), HasSubstr("expected a .npy file"));
  EXPECT_THAT(ErrorOfFile(good.substr(0, 40)), HasSubstr("truncated"));
  std::string endless = NpyText(NpyHeader("<f4", "(2, 3)"), data, 2);
  endless.replace(8, 4, "\xFF\xFF\xFF\xFF");
  EXPECT_THAT(ErrorOfFile(endless), HasSubstr("header of 4294967295 bytes"));
  EXPECT_THAT(ErrorOfFile(good.substr(0, good.size() - 1)), HasSubstr("does not fit its 23 bytes"));
  EXPECT_THAT(ErrorOfFile(good + "x"), HasSubstr("does not fit its 25 bytes"));
  for (size_t length = 0; length < good.size(); ++length) ErrorOfFile(good.substr(0, length));
}

TEST_F(NpyTest, RefusesWhatItCanNotRead) {
  const std::string data = BytesOf(values_);
  for (const char* descr : {">f4", "|O", "<i4", "<f16", "<c8", "", "f4"}) {
    EXPECT_THAT(ErrorOfFile(NpyText(NpyHeader(descr, "(2, 3)"), data)),
                HasSubstr("expected little-endian f16, f32 or f64"))
        << descr;
  }
  EXPECT_THAT(ErrorOfFile(NpyText(NpyHeader("<f4", "(2, 3)", "True"), data)), HasSubstr("expected C order"));
  EXPECT_THAT(ErrorOfFile(NpyText("{'descr': '<f4', 'shape': (2, 3)}", data)), HasSubstr("expected C order"));
  EXPECT_THAT(ErrorOfFile(NpyText("{'descr': '<f4', 'fortran_order': False}", data)), HasSubstr("no shape"));
  EXPECT_THAT(ErrorOfFile(NpyText(NpyHeader("<f4", "(-2, 3)"), data)), HasSubstr("no shape"));
  EXPECT_THAT(ErrorOfFile(NpyText(NpyHeader("<f4", "(9999999999999999, 3)"), data)), HasSubstr("impossible"));
  EXPECT_THAT(ErrorOfFile(NpyText(NpyHeader("<f4", "(999999999999999, 999999999999999, 3)"), data)),
              HasSubstr("does not fit"));
  EXPECT_THAT(ErrorOfFile(NpyText(std::string(60000, '('), data)), Not(HasSubstr("truncated")));
  ErrorOfFile(NpyText("{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::string(60000, ' '), data));
  ErrorOfFile(NpyText("{'descr': '<f4', 'fortran_order':" + std::string(4000, ' ') + "True", data));
}

TEST_F(NpyTest, RefusesShapesThatDoNotFitTheModelOrThePrompts) {
  const std::string data = BytesOf(values_);
  for (const char* shape : {"(6,)", "(3, 2)", "(1, 1, 2, 3)", "(2, 3, 1)"}) {
    EXPECT_THAT(ErrorOfFile(NpyText(NpyHeader("<f4", shape), data)),
                HasSubstr("expected embeddings of shape [tokens, 3]"))
        << shape;
  }
  EXPECT_THAT(ErrorOfFile(NpyText(NpyHeader("<f4", "()"), data.substr(0, 4))), HasSubstr("expected embeddings"));
  EXPECT_THAT(ErrorOfFile(NpyText(NpyHeader("<f4", "(0, 3)"), "")), HasSubstr("expected embeddings"));
  EXPECT_THAT(ErrorOfFile(NpyText(NpyHeader("<f4", "(2, 3)"), data), {1}),
              HasSubstr("holds 2 tokens a sequence, but a prompt has 1"));
  EXPECT_THAT(ErrorOfFile(NpyText(NpyHeader("<f4", "(2, 3)"), data), {2, 2}), HasSubstr("holds 1 sequences"));
}

TEST_F(NpyTest, RefusesWhatIsNotAFile) {
  EXPECT_THAT(ErrorOf([&] { InputEmbeddings(dir_ / "none.npy", 3, {}); }), HasSubstr("cannot be opened"));
  EXPECT_THAT(ErrorOf([&] { InputEmbeddings(dir_.path(), 3, {}); }), HasSubstr(dir_.path()));
}

}  // namespace
}  // namespace lockstep
