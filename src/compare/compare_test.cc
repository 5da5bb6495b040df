// Compare() on traces on disk, written by the capture header.
#include "lockstep/compare.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "compare/fake_trace.h"

namespace lockstep {
namespace {

constexpr int kHeads = 2, kHeadDim = 4, kWidth = kHeads * kHeadDim;

class CompareTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::temp_directory_path() / ("lockstep_compare_test_" + std::to_string(getpid()));
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string Path(const std::string& name) const { return (directory_ / name).string(); }

  // Two layers, in chunks of `chunk` tokens, with what `change` makes of layer 1's q_rope.
  template <typename Change>
  std::string Write(const std::string& name, int tokens, int chunk, DType dtype, Change change) {
    TraceInfo info;
    info.producer = "test";
    info.storage = dtype;
    info.config_json = R"({"num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 4})";
    info.points = {"layer_0_attn_q_rope", "layer_1_attn_q_rope"};
    info.throw_errors = true;
    Trace trace(Path(name), info);
    for (int begin = 0; begin < tokens; begin += chunk) {
      const auto positions = Range(begin, std::min(tokens, begin + chunk));
      const auto ids = Ids(positions);
      auto step =
          trace.BeginStep(ids.data(), positions.data(), nullptr, static_cast<int64_t>(ids.size()), Phase::kPrefill);
      for (int layer = 0; layer < 2; ++layer) {
        std::vector<float> values = Rows(layer, positions, kWidth);
        if (layer == 1) change(values, begin);
        std::vector<std::byte> bytes(values.size() * DTypeSize(dtype));
        NarrowFromFloat(dtype, values.data(), values.size(), bytes.data());
        step.Record(info.points[static_cast<size_t>(layer)], bytes.data(), dtype,
                    {static_cast<int64_t>(ids.size()), kHeads, kHeadDim});
      }
      step.End();
    }
    trace.Close();
    return Path(name);
  }

  std::filesystem::path directory_;
};

const auto kUnchanged = [](std::vector<float>&, int) {};

TEST_F(CompareTest, ChunkedTracesAreTheSame) {
  const std::string reference = Write("py.trace", 7, 7, DType::kBF16, kUnchanged);
  const std::string candidate = Write("cpp.trace", 7, 2, DType::kBF16, kUnchanged);
  size_t done = 0;
  const CompareResult result = Compare({reference}, {candidate}, {.progress = [&](size_t i, size_t total) {
                                         EXPECT_EQ(i, ++done);
                                         EXPECT_EQ(total, 2u);
                                       }});
  EXPECT_EQ(result.ExitCode(), 0);
  ASSERT_EQ(result.points.size(), 2u);
  EXPECT_TRUE(result.points[1].bit_identical);
  EXPECT_EQ(result.points[1].rows, 7);
  EXPECT_EQ(result.candidate.steps, 4u);
  EXPECT_EQ(result.candidate.storage, DType::kBF16);
  EXPECT_EQ(done, 2u);
}

TEST_F(CompareTest, TheFirstDifferenceIsFound) {
  const std::string reference = Write("py.trace", 7, 7, DType::kF32, kUnchanged);
  const std::string candidate =
      Write("cpp.trace", 7, 7, DType::kF32, [](auto& values, int) { values[5 * kWidth + 6] += 3; });
  const CompareResult result = Compare({reference}, {candidate});
  EXPECT_EQ(result.ExitCode(), 1);
  ASSERT_TRUE(result.first_significant);
  const PointResult& point = result.points[*result.first_significant];
  EXPECT_EQ(point.name, "layer_1_attn_q_rope");
  EXPECT_EQ(point.worst.position, 5);
  EXPECT_EQ(point.worst.head, 1);
  EXPECT_EQ(point.worst.channel, 2);
}

TEST_F(CompareTest, TheUsersTolerance) {
  const std::string reference = Write("py.trace", 3, 3, DType::kF32, kUnchanged);
  const std::string candidate = Write("cpp.trace", 3, 3, DType::kF32, [](auto& values, int) { values[0] += 1e-5f; });
  EXPECT_EQ(Compare({reference}, {candidate}).ExitCode(), 0);
  const CompareResult strict = Compare({reference}, {candidate}, {.atol = 1e-6});
  EXPECT_EQ(strict.ExitCode(), 1);
  EXPECT_TRUE(strict.points[1].user_tolerance_missed);
  EXPECT_FALSE(strict.points[0].user_tolerance_missed);
  EXPECT_EQ(Compare({reference}, {candidate}, {.atol = 1e-4}).ExitCode(), 0);
  EXPECT_THROW(Compare({reference}, {candidate}, {.atol = -1}), Error);
}

TEST_F(CompareTest, BadInput) {
  const std::string trace = Write("py.trace", 3, 3, DType::kF32, kUnchanged);
  EXPECT_THROW(Compare({trace}, {Path("nothing")}), Error);
  EXPECT_THROW(Compare({trace}, {}), Error);
}

}  // namespace
}  // namespace lockstep
