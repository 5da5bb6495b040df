// The page, from results made by hand: what it is told, how hostile names get into it, how large it becomes.
#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "lockstep/points.h"
#include "lockstep/report.h"
#include "report/html/assets.h"
#include "report/html/cells.h"
#include "report/html/payload.h"
#include "report/html/verdict.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

PointResult MakePoint(const std::string& name, int layer = -1) {
  PointResult point;
  point.name = name;
  point.layer = layer;
  point.point = std::string(WithoutLayer(name));
  point.row_shape = {16, 128};
  point.rows = 2;
  point.elements = 4096;
  return point;
}

Judged MakeJudged(std::vector<PointResult> points) {
  Judged judged;
  judged.compare.points = std::move(points);
  judged.compare.reference.traces = {"py.trace"};
  judged.compare.candidate.traces = {"cpp.trace"};
  return judged;
}

// What stands between the tags of the data.
std::string DataOf(const std::string& page) {
  const std::string open = "<script type=\"application/json\" id=\"data\">";
  const size_t begin = page.find(open) + open.size();
  return page.substr(begin, page.find("</script>", begin) - begin);
}

size_t CountOf(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(HtmlReportTest, HoldsTheObjectOfTheJsonReport) {
  const Judged judged = MakeJudged({MakePoint("layer_0_attn_q_rope", 0)});
  const auto data = nlohmann::json::parse(DataOf(HtmlReport(judged, {.command_line = "lockstep compare a b"})));
  EXPECT_EQ(data["report"], nlohmann::json::parse(JsonReport(judged)));
  EXPECT_EQ(data["command"], "lockstep compare a b");
  EXPECT_EQ(data["texts"], nullptr);
}

TEST(HtmlReportTest, OfALoneReplayToo) {
  Diagnosis diagnosis;
  diagnosis.replay.traces = {"cpp.trace"};
  const auto data = nlohmann::json::parse(DataOf(HtmlReport(diagnosis)));
  EXPECT_EQ(data["report"], nlohmann::json::parse(JsonReport(diagnosis)));
}

TEST(HtmlReportTest, HostileNamesCannotLeaveTheData) {
  const std::string hostile = "</script><script>alert(1)</script>{{script}}<!--&\xE2\x80\xA8\xE2\x80\xAE\x01\xFF\"'";
  Judged judged = MakeJudged({MakePoint(hostile)});
  judged.compare.notes = {hostile};
  judged.compare.failures = {{FailureKind::kMissing, Side::kCandidate, hostile, hostile}};
  judged.compare.candidate.traces = {hostile};
  const std::string page =
      HtmlReport(judged, {.command_line = hostile, .token_text = [&](int32_t) { return hostile; }});
  EXPECT_EQ(CountOf(page, "<script"), 2) << "the data and the page's own";
  EXPECT_EQ(CountOf(page, "</script>"), 2);
  const std::string data = DataOf(page);
  EXPECT_EQ(data.find_first_of("<>&"), std::string::npos);
  for (const char c : data) ASSERT_TRUE(c >= ' ' && c < 0x7F) << static_cast<int>(c);
  const std::string name = nlohmann::json::parse(data)["report"]["points"][0]["name"];
  EXPECT_THAT(name, StartsWith("</script><script>alert(1)</script>{{script}}<!--&"));
}

// The hashes are those of what the browser sees, and nothing else may run or be loaded.
TEST(HtmlReportTest, PolicyNamesStyleAndScript) {
  const std::string page = HtmlReport(MakeJudged({}));
  EXPECT_THAT(page, HasSubstr("default-src 'none'; style-src '" + std::string(kStyleHash) + "'; script-src '" +
                              std::string(kScriptHash) + "'"));
  EXPECT_THAT(page, HasSubstr("<style>" + std::string(kStyle) + "</style>"));
  EXPECT_THAT(page, HasSubstr("<script>" + std::string(kScript) + "</script>"));
  EXPECT_THAT(page, Not(HasSubstr("{{")));
  EXPECT_EQ(kScriptHash.size(), std::string("sha256-").size() + 44);
}

TEST(HtmlReportTest, TextsOfTokens) {
  Judged judged = MakeJudged({MakePoint("logits")});
  judged.compare.pairs = {{0, 0, 2, {{0, 7}, {1, -1}}, 1}};
  const Json payload = PagePayload(judged, {.token_text = [](int32_t id) { return "text " + std::to_string(id); }});
  EXPECT_EQ(payload["texts"].dump(), R"([[7,"text 7"]])");
  EXPECT_EQ(payload["sequences"][0]["ids"].dump(), "[7,-1]");
  EXPECT_EQ(payload["sequences"][0]["first_decode"], 1);
}

ErrorMap MakeMap(size_t bands, int64_t columns, float value) {
  ErrorMap map;
  map.columns = columns;
  map.per_column = 2;
  for (size_t i = 0; i < bands; ++i) map.bands.push_back({0, static_cast<int>(i), static_cast<int>(i)});
  map.values.assign(bands * static_cast<size_t>(columns), value);
  return map;
}

TEST(CellsTest, LevelsAreEqualStepsOfTheLogarithm) {
  ErrorMap map = MakeMap(1, 6, 0);
  map.values = {0, 1e-4f, 1e-3f, 1, kInfinity, kNaN};
  const Json json = MapJson(map, 1);
  EXPECT_EQ(json["cells"], std::string({kLevelDigits[0], kLevelDigits[1], kLevelDigits[16], kLevelDigits[62],
                                        kLevelDigits[63], kLevelDigits[63]}));
  EXPECT_FLOAT_EQ(json["low"].get<float>(), 1e-4f);
  EXPECT_EQ(json["high"], 1);
}

TEST(CellsTest, FoldedBandsShowTheWorstAndKeepSequencesApart) {
  ErrorMap map = MakeMap(5, 1, 1);
  map.bands[3].sequence = map.bands[4].sequence = 1;
  map.values = {1, 4, 2, 8, kNaN};
  const Json json = MapJson(map, 2);
  EXPECT_EQ(json["bands"].dump(), "[[0,0,1],[0,2,2],[1,3,4]]");
  EXPECT_EQ(json["cells"], std::string({kLevelDigits[62], kLevelDigits[1], kLevelDigits[63]}));
}

TEST(CellsTest, MapsThatAreNotWhatTheySayAreLeftOut) {
  ErrorMap map = MakeMap(3, 2, 1);
  map.values.pop_back();
  EXPECT_EQ(MapJson(map, 1), nullptr);
  EXPECT_EQ(MapJson(ErrorMap(), 1), nullptr);
}

TEST(CellsTest, FoldKeepsTheBudget) {
  const ErrorMap map = MakeMap(96, 64, 1);
  EXPECT_EQ(FoldOf(std::vector<const ErrorMap*>{&map}, 96 * 64), 1);
  EXPECT_EQ(FoldOf(std::vector<const ErrorMap*>{&map, &map}, 96 * 64), 2);
  EXPECT_EQ(FoldOf(std::vector<const ErrorMap*>{&map}, 1), ErrorMap::kMaxBands);
  EXPECT_EQ(FoldOf({}, 0), 1);
}

TEST(CellsTest, FloatsAreExact) {
  EXPECT_EQ(FloatsText({}), "");
  EXPECT_EQ(FloatsText(std::vector<float>{1.0f}), "AACAPw==");
  EXPECT_EQ(FloatsText(std::vector<float>{1.0f, -kInfinity, 0.0f}), "AACAPwAAgP8AAAAA");
}

TEST(VerdictTest, Sentences) {
  EXPECT_EQ(VerdictSentence(MakeJudged({})), "Nothing differs, but no point is in common.");
  Judged judged = MakeJudged({MakePoint("logits")});
  EXPECT_EQ(VerdictSentence(judged), "All 1 point agree within their bounds.");
  judged.compare.points[0].reasons = {"SIGNIFICANT DIFF"};
  EXPECT_EQ(VerdictSentence(judged), "1 point beyond tolerance, the first logits.");
  Finding finding;
  finding.point = "attn_q_rope";
  finding.layers = {0, 1, 2};
  judged.candidate.emplace();
  judged.candidate->replay.first_faulty = 0;
  judged.candidate->replay.points.push_back({.name = "layer_0_attn_q_rope", .verdict = OpVerdict::kFaulty});
  judged.candidate->findings = {finding};
  EXPECT_THAT(VerdictSentence(judged), StartsWith("attn_q_rope of layers 0–2 of the candidate is wrong, unexplained"));
  judged.candidate->findings[0].cause = {"rope-interleaved", "rotates\x1b pairs", "", 1};
  EXPECT_THAT(VerdictSentence(judged), StartsWith("attn_q_rope of layers 0–2 of the candidate rotates\\x1b pairs; 1 "));
}

std::shared_ptr<const LocalDetail> NoisyDetail(size_t columns) {
  auto detail = std::make_shared<LocalDetail>();
  detail->map = MakeMap(96, static_cast<int64_t>(columns), 1);
  for (size_t i = 0; i < detail->map.values.size(); ++i) detail->map.values[i] = 1 + 0.01f * static_cast<float>(i % 37);
  detail->histogram.counts.fill(123456);
  return detail;
}

// 28 layers, 512 tokens and 4 steps: every map as large as it gets, every figure as long.
TEST(HtmlReportTest, StaysBelowSixMegabytes) {
  Judged judged = MakeJudged({});
  judged.reference.emplace();
  judged.candidate.emplace();
  for (const std::string& name : AllPointNames(28)) {
    PointResult point = MakePoint(name, LayerOf(name));
    for (double* figure : {&point.max_abs, &point.mean_abs, &point.max_rel, &point.mean_rel, &point.cosine,
                           &point.relative_l2, &point.snr_db, &point.best_scale, &point.worst_reference,
                           &point.worst_candidate, &point.worst_token_relative_l2, &point.min_token_cosine}) {
      *figure = 1.0 / 3e5;
    }
    for (SideStats* side : {&point.reference, &point.candidate})
      side->mean = side->std = side->min = side->max = 1 / 3.0;
    const size_t columns = name.find("_k_") != std::string::npos     ? 8
                           : name.find("attn_") != std::string::npos ? 16
                                                                     : 64;
    auto detail = std::make_shared<DifferenceDetail>();
    detail->map = NoisyDetail(columns)->map;
    detail->window = {0, 0, {1, 2, 3, 4, 5}, {1, 2, 3, 4, 5, 6, 7, 8, 9}};
    detail->window.reference = detail->window.candidate = std::vector<float>(45, 1.0f / 3);
    point.detail = detail;
    judged.compare.points.push_back(point);
    LocalError error;
    error.name = name;
    error.layer = LayerOf(name);
    error.point = point.point;
    error.rows = 516;
    error.from = {name};
    error.worst_row = error.worst_head = error.whole = error.max = error.scale = error.scale_error = 1.0 / 3e5;
    error.detail = NoisyDetail(columns);
    judged.reference->replay.points.push_back(error);
    judged.candidate->replay.points.push_back(error);
  }
  for (int position = 0; position < 516; ++position) {
    TokenRow row;
    row.position = position;
    for (double* figure : {&row.kl, &row.noise_rms, &row.noise_max, &row.noise_relative_l2, &row.noise_reach,
                           &row.reference.margin, &row.candidate.margin}) {
      *figure = 1.0 / 3;
    }
    row.reference.ids = row.candidate.ids = {151642, 151641, 151640, 151639, 151638};
    row.reference.values = row.candidate.values = {1 / 3.0f, 1 / 3.0f, 1 / 3.0f, 1 / 3.0f, 1 / 3.0f};
    judged.compare.tokens.rows.push_back(row);
  }
  EXPECT_LT(HtmlReport(judged).size(), 6'000'000);
}

}  // namespace
}  // namespace lockstep
