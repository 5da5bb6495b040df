// Record and check over traces that the tests write.
#include <gmock/gmock.h>

#include <cmath>
#include <set>

#include "base/fingerprint.h"
#include "base/json.h"
#include "lockstep/golden.h"
#include "lockstep/report.h"
#include "trace/test_trace.h"

namespace lockstep {
namespace {

using testing::Contains;
using testing::HasSubstr;

constexpr int kWidth = 64;

float ValueAt(int point, int sequence, int position, int channel) {
  const uint64_t key = ((uint64_t(point) * 31 + sequence) * 4099 + position) * 70001 + channel;
  return static_cast<float>(static_cast<double>(SplitMix64(key)) * 0x1p-63 - 1);
}

using Change = std::function<void(const std::string& point, int sequence, int position, float* row)>;

class CheckTest : public TraceTest {
 protected:
  const std::vector<std::string> names_ = {"input_embeddings", "layer_0_layer_output", "layer_1_layer_output"};

  // Two sequences of that many tokens, in steps of at most `chunk` positions of both.
  std::string Write(const std::string& name, int tokens, int chunk, const Change& change = nullptr,
                    const std::set<std::string>& without = {}, DType storage = DType::kF32) {
    TraceInfo info;
    info.producer = "test";
    info.config_json = R"({"hidden_size":64,"num_hidden_layers":2})";
    info.storage = storage;
    const std::string path = root_ + "/" + name;
    Trace trace(path, info);
    for (int begin = 0; begin < tokens; begin += chunk) {
      std::vector<int32_t> ids, positions, sequences;
      for (int sequence : {1, 0}) {
        for (int p = begin; p < std::min(tokens, begin + chunk); ++p) {
          ids.push_back(1000 * sequence + p);
          positions.push_back(p);
          sequences.push_back(sequence);
        }
      }
      Step step = trace.BeginStep(ids.data(), positions.data(), sequences.data(), int64_t(ids.size()), Phase::kPrefill);
      for (size_t point = 0; point < names_.size(); ++point) {
        if (without.contains(names_[point])) continue;
        std::vector<float> values;
        for (size_t t = 0; t < ids.size(); ++t) {
          std::vector<float> row;
          for (int c = 0; c < kWidth; ++c) row.push_back(ValueAt(int(point), sequences[t], positions[t], c));
          if (change) change(names_[point], sequences[t], positions[t], row.data());
          values.insert(values.end(), row.begin(), row.end());
        }
        step.Record(names_[point], values.data(), DType::kF32, {int64_t(ids.size()), kWidth});
      }
      step.End();
    }
    trace.Close();
    return path;
  }

  CheckResult CheckAgainst(const std::string& golden, const std::string& trace, const CheckOptions& options = {},
                           const RecordOptions& record = {}) {
    WriteFile(root_ + "/g.json", GoldenText(Record({golden}, record)));
    return Check(root_ + "/g.json", {trace}, options);
  }
};

TEST_F(CheckTest, OtherStepsAreTheSame) {
  const CheckResult result = CheckAgainst(Write("a", 100, 100), Write("b", 100, 7), {.exact = true});
  EXPECT_EQ(result.ExitCode(), 0);
  EXPECT_EQ(result.bit_identical, 3u);
  EXPECT_EQ(result.points[0].rows, 200);
  EXPECT_EQ(GoldenText(Record({root_ + "/a"})), GoldenText(Record({root_ + "/b"})));
}

TEST_F(CheckTest, NamesPointSequenceAndPosition) {
  const Change negate = [](const std::string& point, int sequence, int position, float* row) {
    if (point != "layer_0_layer_output" || sequence != 1 || position != 9) return;
    for (int c = 0; c < kWidth; ++c) row[c] *= -1;
  };
  const CheckResult result = CheckAgainst(Write("a", 16, 16), Write("b", 16, 5, negate));
  EXPECT_EQ(result.ExitCode(), 1);
  ASSERT_EQ(result.first_drifted, 1u);
  EXPECT_EQ(result.drifted, 1u);
  const CheckedPoint& point = result.points[1];
  EXPECT_EQ(point.worst.first.sequence, 1);
  EXPECT_EQ(point.worst.first.position, 9);
  EXPECT_EQ(point.worst.last.position, 9);
  EXPECT_EQ(point.identical_blocks + 1, point.blocks);
  EXPECT_THAT(TextReport(result), HasSubstr("worst rows: sequence 1, position 9"));
}

// The estimate against the truth, over many points of view: within four of its standard errors.
TEST_F(CheckTest, EstimatesTheRelativeL2) {
  double squares = 0, norm = 0;
  const Change noise = [&](const std::string& point, int sequence, int position, float* row) {
    for (int c = 0; c < kWidth; ++c) {
      const float before = row[c];
      row[c] += 1e-3f * ValueAt(77, sequence, position, c);
      if (point != "input_embeddings") continue;
      squares += std::pow(static_cast<double>(row[c]) - before, 2);
      norm += static_cast<double>(before) * before;
    }
  };
  const CheckResult result = CheckAgainst(Write("a", 200, 64), Write("b", 200, 64, noise), {.rtol = 0.1});
  EXPECT_EQ(result.ExitCode(), 0);
  const CheckedPoint& point = result.points[0];
  const double truth = std::sqrt(squares / norm);
  EXPECT_GT(point.standard_error, 0.02 * truth);
  EXPECT_LT(point.standard_error, 0.2 * truth);
  EXPECT_NEAR(point.relative_l2, truth, 4 * point.standard_error);
  EXPECT_EQ(CheckAgainst(root_ + "/a", root_ + "/b", {.rtol = truth / 10}).ExitCode(), 1);
}

TEST_F(CheckTest, RoundingIsWithinTheBoundAndNotExact) {
  const Change ulp = [](const std::string&, int, int, float* row) { row[3] = std::nextafter(row[3], 2.0f); };
  const std::string a = Write("a", 10, 10), b = Write("b", 10, 10, ulp);
  const CheckResult result = CheckAgainst(a, b);
  EXPECT_EQ(result.ExitCode(), 0);
  EXPECT_EQ(result.bit_identical, 0u);
  EXPECT_EQ(result.points[1].bound, 16 * 0x1p-16);
  EXPECT_THAT(TextReport(result), HasSubstr("within rounding"));
  EXPECT_EQ(CheckAgainst(a, b, {.exact = true}).ExitCode(), 1);
}

TEST_F(CheckTest, ANaNIsNotRounding) {
  const Change nan = [](const std::string& point, int, int position, float* row) {
    if (point == "layer_1_layer_output" && position == 3) row[0] = std::nanf("");
  };
  const CheckResult result = CheckAgainst(Write("a", 10, 10), Write("b", 10, 10, nan), {.rtol = 1e9});
  ASSERT_EQ(result.first_drifted, 2u);
  EXPECT_THAT(result.points[2].reasons, Contains(HasSubstr("2 NaN")));
}

TEST_F(CheckTest, WhatIsMissingIsNamed) {
  const std::string a = Write("a", 10, 10);
  const CheckResult points = CheckAgainst(a, Write("b", 10, 10, nullptr, {"layer_0_layer_output"}));
  ASSERT_EQ(points.failures.size(), 1u);
  EXPECT_EQ(points.failures[0].point, "layer_0_layer_output");
  EXPECT_EQ(points.ExitCode(), 1);

  const CheckResult rows = CheckAgainst(a, Write("c", 8, 8));
  ASSERT_EQ(rows.failures.size(), 3u);
  EXPECT_THAT(rows.failures[0].text, HasSubstr("4 of 20 rows are missing, the first of sequence 0, position 8"));
  EXPECT_EQ(rows.points[0].rows, 16);
  // More is no fault.
  EXPECT_EQ(CheckAgainst(root_ + "/c", a).ExitCode(), 0);
}

TEST_F(CheckTest, ChosenRowsAndLayers) {
  const std::string a = Write("a", 40, 9);
  const Golden golden = Record({a}, {.points = "*", .layers = "1", .rows = "last:2,0"});
  ASSERT_EQ(golden.points.size(), 2u);
  EXPECT_EQ(golden.points[1].name, "layer_1_layer_output");
  EXPECT_THAT(golden.points[1].rows, testing::ElementsAre(0, 38, 39, 40, 78, 79));
  EXPECT_EQ(golden.points[1].blocks.size(), 6u);
  EXPECT_THAT(ErrorOf([&] { Record({a}, {.points = "nothing"}); }), HasSubstr("none of the 3 points"));
  EXPECT_THAT(ErrorOf([&] { Record({a}, {.rows = "99"}); }), HasSubstr("rows \"99\""));
}

TEST_F(CheckTest, OtherTokensCannotBeTold) {
  const std::string a = Write("a", 10, 10);
  Golden golden = Record({a});
  golden.path = "g.json";
  golden.tokens[4].id = 5;
  EXPECT_THAT(ErrorOf([&] { Check(golden, {a}); }), HasSubstr("different tokens from position 4"));
  golden = Record({a});
  golden.meta.config["hidden_size"] = "65";
  EXPECT_THAT(ErrorOf([&] { Check(golden, {a}); }), HasSubstr("hidden_size"));
}

TEST_F(CheckTest, AnotherArithmeticIsTold) {
  const std::string a = Write("a", 10, 10);
  const CheckResult result = CheckAgainst(a, Write("b", 10, 10, nullptr, {}, DType::kBF16));
  EXPECT_EQ(result.bit_identical, 3u);
  EXPECT_EQ(result.ExitCode(), 1);
  EXPECT_THAT(result.arithmetic, HasSubstr("storage BF16"));
}

// Every figure of the JSON is that of the result.
TEST_F(CheckTest, ReportsAgree) {
  const Change noise = [](const std::string&, int, int, float* row) { row[3] += 0.5f; };
  const CheckResult result = CheckAgainst(Write("a", 10, 10), Write("b", 10, 10, noise));
  const Json json = ParseJson(JsonReport(result), "report");
  EXPECT_EQ(json["schema"], "lockstep-check/1");
  EXPECT_EQ(json["exit_code"], result.ExitCode());
  EXPECT_EQ(json["first_drifted"], "input_embeddings");
  EXPECT_EQ(json["points"][1]["relative_l2"], result.points[1].relative_l2);
  EXPECT_EQ(json["points"][1]["worst"]["first_position"], result.points[1].worst.first.position);
  const std::string text = TextReport(result, {.width = 80});
  EXPECT_THAT(text, HasSubstr("DRIFTED (3 points drifted, the first input_embeddings)"));
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != text.npos; begin = end + 1) {
    const bool path = text.compare(begin, 7, "golden ") == 0 || text.compare(begin, 6, "trace ") == 0;
    EXPECT_TRUE(path || end - begin <= 80u) << text.substr(begin, end - begin);
  }
}

}  // namespace
}  // namespace lockstep
