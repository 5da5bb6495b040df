#include <gmock/gmock.h>

#include <filesystem>

#include "compare/fake_trace.h"
#include "lockstep/report.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

constexpr int kWidth = 96;
constexpr int kHeads = 4;

// One candidate, recorded twice: into a trace and live.
class LiveTest : public testing::Test {
 protected:
  LiveTest() {
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
  }
  ~LiveTest() override { std::filesystem::remove_all(directory_); }

  std::string Path(const char* name) const { return directory_ + "/" + name; }

  TraceInfo Info() const {
    TraceInfo info;
    info.producer = "test";
    info.storage = dtype_;
    info.config_json = R"({"num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 24})";
    info.select_rows = rows_;
    info.throw_errors = true;
    for (int layer = 0; layer < 3; ++layer) {
      info.points.push_back("layer_" + std::to_string(layer) + "_attn_q_rope");
      info.points.push_back("layer_" + std::to_string(layer) + "_layer_output");
    }
    return info;
  }

  struct Token {
    int sequence, position;
  };
  using Steps = std::vector<std::vector<Token>>;

  // Values of a tensor: [tokens, kWidth], rows `stride` elements apart.
  std::vector<std::byte> Values(const std::vector<Token>& tokens, int layer, double noise, size_t stride) const {
    std::vector<float> values(tokens.size() * stride, 77.0f);
    for (size_t t = 0; t < tokens.size(); ++t) {
      for (int c = 0; c < kWidth; ++c) {
        float& value = values[t * stride + static_cast<size_t>(c)];
        value = ValueAt(layer, tokens[t].sequence, tokens[t].position, c);
        value += static_cast<float>(noise) * ValueAt(layer + 100, tokens[t].sequence, tokens[t].position, c);
        if (layer == stale_layer_) value = ValueAt(0, tokens[t].sequence, tokens[t].position, c);
        if (layer == 1 && tokens[t].position == nan_position_ && c == 5) value = std::nanf("");
      }
    }
    std::vector<std::byte> bytes(values.size() * DTypeSize(dtype_));
    NarrowFromFloat(dtype_, values.data(), values.size(), bytes.data());
    return bytes;
  }

  template <typename Record>
  void RunStep(const std::vector<Token>& tokens, double noise, size_t stride, Record record) const {
    const auto count = static_cast<int64_t>(tokens.size()), row = static_cast<int64_t>(stride);
    for (int layer = 0; layer < 3; ++layer) {
      const std::string prefix = "layer_" + std::to_string(layer) + "_";
      const std::vector<std::byte> values = Values(tokens, layer, noise, stride);
      const std::vector<int64_t> heads = {count, kHeads, kWidth / kHeads}, strides = {row, kWidth / kHeads, 1};
      record(prefix + "attn_q_rope", values.data(), heads, strides);
      if (layer != missing_layer_) record(prefix + "layer_output", values.data(), {count, kWidth}, {row, 1});
    }
    const std::vector<std::byte> logits = Values(tokens, 3, noise, stride);
    record("logits", logits.data(), {count, kWidth}, {row, 1});
  }

  template <typename Begin>
  static void WithTokens(const std::vector<Token>& tokens, Begin begin) {
    std::vector<int32_t> ids, positions, sequences;
    for (const Token& token : tokens) {
      ids.push_back(100 * (token.sequence + 1) + token.position);
      positions.push_back(token.position);
      sequences.push_back(token.sequence);
    }
    begin(ids, positions, sequences);
  }

  void Write(const std::string& path, const Steps& steps, double noise, size_t stride = kWidth) const {
    Trace trace(path, Info());
    trace.SetWeight("w", dtype_, {2, 2}, noise == 0 ? "0123456789abcdef" : weight_);
    for (const std::vector<Token>& tokens : steps) {
      WithTokens(tokens, [&](const auto& ids, const auto& positions, const auto& sequences) {
        Step step = trace.BeginStep(ids.data(), positions.data(), sequences.data(), static_cast<int64_t>(tokens.size()),
                                    Phase::kPrefill);
        RunStep(tokens, noise, stride,
                [&](const std::string& name, const void* data, const std::vector<int64_t>& shape,
                    const std::vector<int64_t>& strides) { step.Record(name, data, dtype_, shape, strides); });
        step.Record("next_token", ids.data(), DType::kI32, {static_cast<int64_t>(ids.size())});
        step.End();
      });
    }
    trace.Close();
  }

  CompareResult Live(const Steps& steps, double noise, size_t stride, const CompareOptions& options) {
    LiveComparison live({Path("ref")}, Path("cand"), Info(), options);
    live.SetWeight("w", dtype_, {2, 2}, noise == 0 ? "0123456789abcdef" : weight_);
    for (const std::vector<Token>& tokens : steps) {
      WithTokens(tokens, [&](const auto& ids, const auto& positions, const auto& sequences) {
        live.BeginStep(ids, positions, sequences, Phase::kPrefill);
        RunStep(tokens, noise, stride,
                [&](const std::string& name, const void* data, const std::vector<int64_t>& shape,
                    const std::vector<int64_t>& strides) {
                  differing_ += live.Record(name, data, dtype_, shape, strides);
                });
        live.Record("next_token", ids.data(), DType::kI32, {static_cast<int64_t>(ids.size())});
        live.EndStep();
      });
    }
    return live.Finish();
  }

  // The same figures; of the values around the worst those of its step.
  static void CheckDetail(const PointResult& live, const PointResult& from_disk) {
    ASSERT_TRUE(live.detail && from_disk.detail);
    const ErrorMap &a = live.detail->map, &b = from_disk.detail->map;
    EXPECT_EQ(a.values, b.values);
    EXPECT_EQ(a.bands.size(), b.bands.size());
    EXPECT_EQ(live.detail->relative_l2.prefill, from_disk.detail->relative_l2.prefill);
    const ValueWindow& window = live.detail->window;
    EXPECT_THAT(from_disk.detail->window.positions, testing::IsSupersetOf(window.positions));
    EXPECT_EQ(window.channels, from_disk.detail->window.channels);
    size_t found = 0;
    for (size_t i = 0; i < window.candidate.size(); ++i) {
      if (window.positions[i / window.channels.size()] != live.worst.position) continue;
      if (window.channels[i % window.channels.size()] != live.worst.channel) continue;
      ++found;
      EXPECT_EQ(window.candidate[i], static_cast<float>(live.worst_candidate));
      EXPECT_EQ(window.reference[i], static_cast<float>(live.worst_reference));
    }
    EXPECT_EQ(found, 1u);
  }

  // Both ways give the same report, to the last digit.
  CompareResult Check(const Steps& reference, const Steps& candidate, double noise, size_t stride = kWidth + 32,
                      const CompareOptions& options = {}) {
    const auto stale = std::exchange(stale_layer_, -1), missing = std::exchange(missing_layer_, -1);
    const int nan_position = std::exchange(nan_position_, -1);
    const std::string rows = std::exchange(rows_, "");
    Write(Path("ref"), reference, 0);
    stale_layer_ = stale, missing_layer_ = missing, nan_position_ = nan_position, rows_ = rows;
    Write(Path("cand"), candidate, noise, stride);
    CompareOptions with_details = options;
    with_details.details = true;
    const CompareResult from_disk = Compare({Path("ref")}, {Path("cand")}, with_details);
    CompareResult live = Live(candidate, noise, stride, with_details);
    for (size_t i = 0; i < std::min(live.points.size(), from_disk.points.size()); ++i) {
      CheckDetail(live.points[i], from_disk.points[i]);
    }
    EXPECT_EQ(JsonReport(live), JsonReport(from_disk));
    EXPECT_EQ(TextReport(live), TextReport(from_disk));
    return live;
  }

  static std::vector<Token> Tokens(int sequence, int begin, int end) {
    std::vector<Token> tokens;
    for (int i = begin; i < end; ++i) tokens.push_back({sequence, i});
    return tokens;
  }
  static std::vector<Token> Both(std::vector<Token> a, const std::vector<Token>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  }

  std::string directory_ =
      testing::TempDir() + "lockstep-live-" + testing::UnitTest::GetInstance()->current_test_info()->name();
  DType dtype_ = DType::kBF16;
  int stale_layer_ = -1, missing_layer_ = -1, nan_position_ = -1;
  int differing_ = 0;
  std::string rows_;
  std::string weight_ = "0123456789abcdef";
};

TEST_F(LiveTest, OneShot) {
  const CompareResult result = Check({Tokens(0, 0, 900)}, {Tokens(0, 0, 900)}, 1e-3);
  EXPECT_EQ(result.ExitCode(), 0);
  EXPECT_EQ(differing_, 0);
  EXPECT_EQ(result.points.size(), 7u);
  EXPECT_EQ(result.tokens.rows.size(), 900u);
  EXPECT_EQ(result.next_tokens.compared, 900);
}

TEST_F(LiveTest, F32WithATolerance) {
  dtype_ = DType::kF32;
  const CompareResult result =
      Check({Tokens(0, 0, 50)}, {Tokens(0, 0, 50)}, 0.5, kWidth, {.rtol = 1e-3, .layers = "1-2"});
  EXPECT_EQ(result.ExitCode(), 1);
  EXPECT_EQ(differing_, 5);
}

TEST_F(LiveTest, ChunksDecodeAndABatch) {
  const Steps reference = {Both(Tokens(0, 0, 700), Tokens(1, 0, 40)), Both(Tokens(0, 700, 701), Tokens(1, 40, 41)),
                           Tokens(0, 701, 702)};
  const Steps candidate = {Both(Tokens(0, 0, 300), Tokens(1, 0, 40)), Tokens(0, 300, 700), Tokens(1, 40, 41),
                           Both(Tokens(0, 700, 702), {})};
  EXPECT_EQ(Check(reference, candidate, 1e-3).points.front().rows, 743);
  EXPECT_EQ(Check(candidate, reference, 1e-3).pairs.size(), 2u);
}

TEST_F(LiveTest, SelectedRows) {
  rows_ = "last:3";
  EXPECT_EQ(Check({Tokens(0, 0, 64)}, {Tokens(0, 0, 32), Tokens(0, 32, 64)}, 1e-3).points.front().rows, 6);
}

TEST_F(LiveTest, FaultsOfAllKinds) {
  stale_layer_ = 2, missing_layer_ = 1, nan_position_ = 7;
  weight_ = "fedcba9876543210";
  const CompareResult result = Check({Tokens(0, 0, 64)}, {Tokens(0, 0, 32), Tokens(0, 32, 64)}, 1e-3);
  std::vector<FailureKind> kinds;
  for (const Failure& failure : result.failures) kinds.push_back(failure.kind);
  EXPECT_THAT(kinds, testing::Contains(FailureKind::kMissing));
  EXPECT_THAT(result.weights, testing::SizeIs(1));
  EXPECT_EQ(result.points[2].non_finite_mismatches, 1);
  EXPECT_EQ(differing_, 1 + 2 * 2);  // the chunk with the NaN; both points of the stale layer in both chunks
}

// A stale reference: the values of the candidate are gone, their distances are not.
TEST_F(LiveTest, AStaleReference) {
  const Steps steps = {Tokens(0, 0, 16)};
  stale_layer_ = 2;
  Write(Path("ref"), steps, 0);
  stale_layer_ = -1;
  Write(Path("cand"), steps, 1e-3);
  EXPECT_EQ(JsonReport(Live(steps, 1e-3, kWidth, {})), JsonReport(Compare({Path("ref")}, {Path("cand")})));
}

TEST_F(LiveTest, RefusesWhatItCannotCompare) {
  Write(Path("ref"), {Tokens(0, 0, 4)}, 0);
  const auto message = [](auto action) {
    try {
      action();
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  LiveComparison live({Path("ref")}, "live", Info());
  const std::vector<int32_t> ids = {100, 101}, positions = {0, 1}, sequences = {0, 0}, other = {100, 7},
                             second = {1, 1};
  EXPECT_THAT(message([&] { live.Record("logits", ids.data(), DType::kI32, {2}); }), HasSubstr("outside of a step"));
  EXPECT_THAT(message([&] { live.BeginStep(other, positions, sequences, Phase::kPrefill); }),
              HasSubstr("position 1: token id 101 in the reference, 7 in the candidate"));
  LiveComparison again({Path("ref")}, "live", Info());
  EXPECT_THAT(message([&] { again.BeginStep(ids, positions, second, Phase::kPrefill); }), HasSubstr("has only 1 seq"));
  LiveComparison twice({Path("ref")}, "live", Info());
  twice.BeginStep(ids, positions, sequences, Phase::kPrefill);
  EXPECT_THAT(message([&] { twice.Record("layer_0_layer_output", ids.data(), DType::kF32, {3, 4}); }),
              HasSubstr("expected a row for each of 2 tokens, found shape [3, 4]"));
  EXPECT_THAT(message([&] { twice.Finish(); }), HasSubstr("still open"));
  twice.EndStep();
  EXPECT_THAT(message([&] { twice.BeginStep(ids, positions, sequences, Phase::kPrefill); }), HasSubstr("run twice"));
}

}  // namespace
}  // namespace lockstep
