// Every figure of LocalDetail against a slow direct computation, from the same recomputed values.
#include "replay/detail.h"

#include <gtest/gtest.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include <unistd.h>

#include <filesystem>
#include <random>

#include "compare/fake_trace.h"
#include "replay/judge.h"

namespace lockstep {
namespace {

const std::string kModel = std::string(LOCKSTEP_SOURCE_DIR) + "/models/tiny-qwen3";

struct Call {
  std::vector<int32_t> positions;
  int sequence = 0;
  Phase phase = Phase::kPrefill;
};

// A point of the bundled model captured with errors, beside random inputs.
class FakeCapture {
 public:
  // odd: the first call's results hold a NaN and an infinity.
  FakeCapture(const PointAt& point, const std::vector<Call>& calls, bool odd = false)
      : point_(point), checkpoint_(Checkpoint::Open(kModel)), model_(checkpoint_) {
    trace_.meta.has_arithmetic = true;
    const OpCall call = model_.CallOf(point, trace_.meta.arithmetic);
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (const Call& at : calls) {
      const std::vector<int32_t> ids = Ids(at.positions);
      trace_.AddStep(ids, at.positions, std::vector<int32_t>(ids.size(), at.sequence)).phase = at.phase;
      for (const PointAt& input : call.inputs) {
        std::vector<float> values(ids.size() * static_cast<size_t>(model_.WidthOf(input.id)));
        for (float& value : values) value = normal(random);
        trace_.Add(input.Name(), {static_cast<int64_t>(ids.size()), model_.WidthOf(input.id)}, values);
      }
    }
    AddResult(call, odd);
    runs_ = GroupRuns({trace_.View()});
    captures_ = std::make_unique<Captures>(runs_);
    evaluator_ = std::make_unique<Evaluator>(*captures_, model_, trace_.meta);
  }

  PointErrors Judged(LocalDetail* detail) { return Judge(*evaluator_, evaluator_->CallOf(point_), nullptr, detail); }

  // Signed errors by token and element, NaN where nothing is judged.
  std::vector<std::vector<double>> Errors() {
    std::vector<std::vector<double>> out;
    for (const TokenAt& token : tokens()) {
      const Block seen = evaluator_->Captured(point_, {token}).block;
      const Block expected = evaluator_->Evaluate(evaluator_->CallOf(point_), {token}).block;
      std::vector<double>& row = out.emplace_back();
      for (int64_t c = 0; c < expected.width; ++c) {
        const double x = seen.Row(0)[c], y = expected.Row(0)[c];
        row.push_back(!std::isfinite(y)  ? NAN
                      : std::isfinite(x) ? (x - y) / std::sqrt(expected.Variance(0)[c])
                                         : INFINITY);
      }
    }
    return out;
  }
  const std::vector<TokenAt>& tokens() { return captures_->Of(point_).tokens(); }
  Phase PhaseAt(const TokenAt& token) const { return trace_.steps[static_cast<size_t>(token.step)].phase; }

 private:
  void AddResult(const OpCall& call, bool odd) {
    runs_ = GroupRuns({trace_.View()});
    Captures captures(runs_);
    Evaluator evaluator(captures, model_, trace_.meta);
    std::vector<std::vector<float>> results;
    for (size_t s = 0; s < trace_.steps.size(); ++s) {
      const TraceStep& step = trace_.steps[s];
      std::vector<TokenAt> tokens;
      for (size_t t = 0; t < step.positions.size(); ++t) {
        tokens.push_back({0, static_cast<int32_t>(s), static_cast<int32_t>(t), step.sequences[t], step.positions[t],
                          step.input_ids[t]});
      }
      Block result = evaluator.Evaluate(call, tokens).block;
      for (size_t i = 0; i < result.value.size(); ++i) {
        result.value[i] += (static_cast<double>(i * 37 % 101) - 47) / 10 * std::sqrt(result.variance[i]);
      }
      if (odd && s == 0) result.value[3] = NAN, result.value[7] = INFINITY;
      results.emplace_back(result.value.begin(), result.value.end());
    }
    FakeTrace inputs = std::move(trace_);
    trace_ = {};
    trace_.meta = inputs.meta;
    for (size_t s = 0; s < results.size(); ++s) {
      trace_.steps.push_back(inputs.steps[s]);
      const auto tokens = static_cast<int64_t>(inputs.steps[s].positions.size());
      std::vector<int64_t> shape = {tokens, static_cast<int64_t>(results[s].size()) / tokens};
      if (call.op == Op::kScores) shape = {tokens, call.heads, shape[1] / call.heads};
      trace_.Add(point_.Name(), shape, results[s]);
    }
    inputs_ = std::move(inputs);  // its values are still read
  }

  PointAt point_;
  Checkpoint checkpoint_;
  ReplayModel model_;
  FakeTrace trace_, inputs_;
  TraceRuns runs_;
  std::unique_ptr<Captures> captures_;
  std::unique_ptr<Evaluator> evaluator_;
};

// Of those that are judged.
struct Naive {
  double squares = 0;
  int64_t count = 0;
  void Add(double error) {
    if (!std::isnan(error)) squares += error * error, ++count;
  }
  double Rms() const { return count ? std::sqrt(squares / static_cast<double>(count)) : NAN; }
};

void ExpectSame(double found, double expected) {
  if (std::isnan(expected)) {
    EXPECT_TRUE(std::isnan(found));
  } else if (std::isinf(expected)) {
    EXPECT_EQ(found, expected);
  } else {
    EXPECT_NEAR(found, expected, 1e-6 * expected);
  }
}

// heads: 0: none.
void Check(FakeCapture capture, int64_t heads) {
  LocalDetail detail;
  const PointErrors errors = capture.Judged(&detail);
  const std::vector<std::vector<double>> all = capture.Errors();
  const std::vector<TokenAt>& tokens = capture.tokens();

  Naive phases[2];
  ErrorHistogram histogram;
  for (size_t r = 0; r < all.size(); ++r) {
    for (const double error : all[r]) {
      phases[capture.PhaseAt(tokens[r]) == Phase::kDecode].Add(error);
      if (std::isnan(error)) continue;
      const double bin = std::floor(error / ErrorHistogram::kBinWidth + 0.5) + ErrorHistogram::kBins / 2;
      if (bin < 0) {
        ++histogram.below;
      } else if (bin >= ErrorHistogram::kBins) {
        ++histogram.above;
      } else {
        ++histogram.counts[static_cast<size_t>(bin)];
      }
    }
  }
  ExpectSame(detail.whole.prefill, phases[0].Rms());
  ExpectSame(detail.whole.decode, phases[1].Rms());
  int64_t outside = detail.histogram.below + detail.histogram.above;
  EXPECT_EQ(outside, histogram.below + histogram.above);
  EXPECT_EQ(detail.histogram.counts, histogram.counts);
  for (const int64_t count : detail.histogram.counts) outside += count;
  EXPECT_EQ(outside, errors.summary.elements);

  const ErrorMap& map = detail.map;
  ASSERT_EQ(map.heads, heads > 0);
  ASSERT_LE(map.bands.size(), ErrorMap::kMaxBands);
  size_t rows_seen = 0;
  for (size_t i = 0; i < map.bands.size(); ++i) {
    for (int64_t c = 0; c < map.columns; ++c) {
      double worst = 0;
      for (size_t r = 0; r < all.size(); ++r) {
        const ErrorMap::Band& band = map.bands[i];
        if (tokens[r].sequence != band.sequence) continue;
        if (tokens[r].position < band.first || tokens[r].position > band.last) continue;
        rows_seen += c == 0;
        const auto width = static_cast<int64_t>(all[r].size());
        const int64_t columns = map.per_column * (heads > 0 ? width / heads : 1);
        Naive cell;
        for (int64_t e = c * columns; e < std::min(width, (c + 1) * columns); ++e)
          cell.Add(all[r][static_cast<size_t>(e)]);
        if (cell.count > 0) worst = std::max(worst, cell.Rms());
      }
      ExpectSame(map.values[i * static_cast<size_t>(map.columns) + static_cast<size_t>(c)], worst);
    }
  }
  EXPECT_EQ(rows_seen, all.size());
}

const std::vector<Call> kCalls = {{Range(0, 9)}, {Range(0, 4), 1}, {{9}, 0, Phase::kDecode}, {{4}, 1, Phase::kDecode}};

TEST(LocalDetailTest, AgreesWithTheNaiveTwin) {
  for (const bool odd : {false, true}) {
    Check({{Point::kAttnResidualOutput, 0}, kCalls, odd}, 0);
    Check({{Point::kMlpIntermediate, 1}, kCalls, odd}, 0);
    Check({{Point::kAttnQRope, 0}, kCalls, odd}, 6);
    Check({{Point::kLogits, -1}, kCalls, odd}, 0);
  }
}

TEST(LocalDetailTest, AttentionByHeads) { Check({{Point::kAttnScores, 0}, {{Range(0, 6)}}}, 6); }

TEST(LocalDetailTest, MoreRowsThanBands) {
  Check({{Point::kAttnResidualOutput, 0}, {{Range(0, 250)}, {Range(0, 30), 1}, {Range(250, 300)}}}, 0);
}

TEST(LocalDetailTest, ThreadsDoNotShow) {
#ifdef _OPENMP
  FakeCapture capture({Point::kAttnQRope, 0}, {{Range(0, 300)}});
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  LocalDetail one, many;
  capture.Judged(&one);
  omp_set_num_threads(3);
  capture.Judged(&many);
  omp_set_num_threads(threads);
  EXPECT_EQ(one.map.values, many.map.values);
  EXPECT_EQ(one.histogram.counts, many.histogram.counts);
  EXPECT_EQ(one.whole.prefill, many.whole.prefill);
#endif
}

TEST(LocalDetailTest, SignsAndEdgesOfTheHistogram) {
  ErrorHistogram histogram;
  const std::vector<double> errors = {0,     0.124,  -0.124, 0.126,    -0.126,    8.124,
                                      8.126, -8.124, -8.126, INFINITY, -INFINITY, NAN};
  for (const double error : errors) Count(error, &histogram);
  EXPECT_EQ(histogram.counts[32], 3);
  EXPECT_EQ(histogram.counts[33], 1);
  EXPECT_EQ(histogram.counts[31], 1);
  EXPECT_EQ(histogram.counts[64], 1);
  EXPECT_EQ(histogram.counts[0], 1);
  EXPECT_EQ(histogram.above, 3);
  EXPECT_EQ(histogram.below, 2);
}

TEST(LocalDetailTest, OnlyIfAskedFor) {
  const std::string path =
      std::filesystem::temp_directory_path() / ("lockstep_detail_test_" + std::to_string(getpid()));
  const std::vector<int32_t> ids = {1, 2}, positions = {0, 1};
  {
    TraceInfo info;
    info.producer = "test";
    Trace trace(path, info);
    auto step = trace.BeginStep(ids.data(), positions.data(), nullptr, 2, Phase::kPrefill);
    const std::vector<float> x = Rows(1, positions, 192), y = Rows(2, positions, 192);
    std::vector<float> sum = x;
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += y[i];
    step.Record("layer_0_input_hidden_states", x.data(), DType::kF32, {2, 192});
    step.Record("layer_0_attn_o_proj", y.data(), DType::kF32, {2, 192});
    step.Record("layer_0_attn_residual_output", sum.data(), DType::kF32, {2, 192});
    step.End();
  }
  ReplayOptions options;
  options.points = "attn_residual_output";
  const LocalError without = Replay({path}, kModel, options).points.at(0);
  options.details = true;
  const LocalError with = Replay({path}, kModel, options).points.at(0);
  std::filesystem::remove_all(path);
  EXPECT_EQ(without.detail, nullptr);
  ASSERT_NE(with.detail, nullptr);
  EXPECT_EQ(with.detail->map.bands.size(), 2u);
  EXPECT_EQ(with.detail->map.columns, 3);
  EXPECT_EQ(with.detail->map.per_column, 64);
  EXPECT_DOUBLE_EQ(with.detail->whole.prefill, with.whole);
  EXPECT_GT(without.limits.row, 0);
  EXPECT_EQ(without.limits.max, with.limits.max);
  EXPECT_EQ(without.whole, with.whole);
}

}  // namespace
}  // namespace lockstep
