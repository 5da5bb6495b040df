#include "lockstep/report.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "report/words.h"

namespace lockstep {
namespace {

using testing::HasSubstr;
using testing::Not;

PointResult MakePoint(int layer, const std::string& name, DiffClass diff_class) {
  PointResult point;
  point.layer = layer;
  point.point = name;
  point.name = layer < 0 ? name : "layer_" + std::to_string(layer) + "_" + name;
  point.row_shape = {2, 64};
  point.rows = 3;
  point.elements = 384;
  point.diff_class = diff_class;
  point.max_abs = diff_class == DiffClass::kSignificant ? 2.5 : 0;
  if (diff_class == DiffClass::kSignificant) point.reasons = {"SIGNIFICANT DIFF"};
  return point;
}

CompareResult MakeResult(bool different = true) {
  CompareResult result;
  result.reference.traces = {"py.trace"};
  result.reference.producer = "transformers 5";
  result.candidate.traces = {"cpp.trace"};
  result.pairs = {{0, 0, 3}};
  result.points = {MakePoint(-1, "input_embeddings", DiffClass::kExcellent),
                   MakePoint(0, "attn_q_rope", DiffClass::kGood)};
  if (different) {
    PointResult point = MakePoint(2, "attn_q_rope", DiffClass::kSignificant);
    point.worst = {0, 5, 3, 17};
    point.worst_reference = 1.25;
    point.worst_candidate = -1.25;
    point.worst_token = {0, 5};
    result.points.push_back(point);
    result.first_significant = result.first_failing = 2;
    result.failing = 1;
  }
  result.class_counts = {1, 1, 0, different ? 1u : 0u};
  return result;
}

TEST(TextReportTest, NamesTheFirstDifference) {
  const std::string text = TextReport(MakeResult());
  EXPECT_THAT(text, HasSubstr("FIRST MAJOR DIFFERENCE DETECTED AT LAYER 2: layer_2_attn_q_rope"));
  EXPECT_THAT(text, HasSubstr("sequence 0, position 5, head 3, channel 17: reference 1.25, candidate -1.25"));
  EXPECT_THAT(text, HasSubstr("* SIGNIFICANT DIFF L2    attn_q_rope"));
  EXPECT_THAT(text, HasSubstr("  GOOD             L0    attn_q_rope"));
  EXPECT_THAT(text, HasSubstr("(3, 2, 64)"));
  EXPECT_THAT(text, HasSubstr("EXCELLENT 1 (0 to the bit), GOOD 1, ACCEPTABLE 0, SIGNIFICANT DIFF 1"));
  EXPECT_THAT(text, HasSubstr("VERDICT: DIFFERENT (1 point beyond tolerance, the first layer_2_attn_q_rope)"));
}

TEST(TextReportTest, Same) {
  const std::string text = TextReport(MakeResult(false));
  EXPECT_THAT(text, HasSubstr("VERDICT: SAME"));
  EXPECT_THAT(text, HasSubstr("; complete\n"));
  EXPECT_THAT(text, Not(HasSubstr("FIRST")));
  EXPECT_THAT(text, Not(HasSubstr("\033")));
}

TEST(TextReportTest, FailuresWeightsTokensAndNotes) {
  CompareResult result = MakeResult(false);
  result.failures = {{FailureKind::kMissing, Side::kCandidate, "logits", "promised, but missing in step 3"}};
  result.weights = {{"lm_head.weight", "other"}};
  result.next_tokens = {4, 3, {{0, 17, 12, 34}}};
  result.only_reference = {{"mine", "not promised"}};
  result.notes = {"something"};
  const std::string text = TextReport(result);
  EXPECT_THAT(text, HasSubstr("FAILURE    missing (candidate): logits: promised, but missing in step 3"));
  EXPECT_THAT(text, HasSubstr("WEIGHT     lm_head.weight: other"));
  EXPECT_THAT(
      text,
      HasSubstr("next tokens: 3 of 4 agree; the first that differs follows sequence 0, position 17: reference 12, "));
  EXPECT_THAT(text, HasSubstr("only in the reference: 1 point: mine (not promised)"));
  EXPECT_THAT(text, HasSubstr("note: something"));
  EXPECT_THAT(text, HasSubstr("VERDICT: DIFFERENT (1 completeness failure; 1 different weight)"));
}

TokenRow MakeTokenRow(bool near_tie) {
  TokenRow row;
  row.sequence = 0;
  row.position = 12;
  row.reference.next = 17;
  row.reference.ids = {17, 99, 3, 4, 5};
  row.reference.margin = 0.003;
  row.candidate.next = 99;
  row.candidate.ids = {99, 17, 3, -1, -1};
  row.candidate.margin = 0.001;
  row.noise_rms = 0.02;
  row.kl = std::numeric_limits<double>::infinity();
  row.near_tie = row.within_noise = near_tie;
  return row;
}

TEST(TextReportTest, TheFirstDifferentTokenStandsWithItsLogits) {
  CompareResult result = MakeResult(false);
  result.next_tokens = {4, 3, {{0, 12, 17, 99}}};
  TokenComparison& tokens = result.tokens;
  tokens.rows = {MakeTokenRow(true)};
  tokens.near_ties = 1;
  tokens.mean_common_top5 = 4.5;
  tokens.mean_common_top10 = 9;
  tokens.max_kl_row = tokens.first_different = 0;
  const TextOptions wide = {.width = 200};
  const std::string text = TextReport(result, wide);
  EXPECT_THAT(text, HasSubstr("next tokens: 3 of 4 agree\n"));
  EXPECT_THAT(text,
              HasSubstr("logits: 1 row; the largest agrees in 0; 1 near tie; top 5 share 4.5, top 10 9; KL mean 0 "
                        "nats, largest inf at sequence 0, position 12\n"));
  EXPECT_THAT(text, HasSubstr("first different token after sequence 0, position 12: reference 17 (margin 0.003), "
                              "candidate 99 (margin 0.001); logit noise 0.02: a near tie\n"));
  tokens.rows = {MakeTokenRow(false)};
  EXPECT_THAT(TextReport(result, wide), HasSubstr("logit noise 0.02: NOT a near tie\n"));
  tokens.rows[0].within_noise = true;
  EXPECT_THAT(TextReport(result, wide), HasSubstr("logit noise 0.02: noise that rounding does not explain\n"));
  // Of a token without logits only the recorded choice is known.
  result.next_tokens.differences[0].position = 5;
  EXPECT_THAT(TextReport(result, wide), HasSubstr("follows sequence 0, position 5: reference 17, candidate 99"));
}

TEST(JsonReportTest, HoldsEveryRowOfTheLogits) {
  CompareResult result = MakeResult(false);
  result.tokens.rows = {MakeTokenRow(true), MakeTokenRow(false)};
  result.tokens.first_different = 0;
  const nlohmann::json json = nlohmann::json::parse(JsonReport(result))["tokens"];
  EXPECT_EQ(json["rows"].size(), 2u);
  EXPECT_EQ(json["rows"][0]["kl"], "Infinity");
  EXPECT_EQ(json["rows"][0]["near_tie"], true);
  EXPECT_EQ(json["rows"][1]["candidate"]["top_ids"], nlohmann::json({99, 17, 3, -1, -1}));
  EXPECT_EQ(json["first_different"]["reference"]["next"], 17);
  EXPECT_EQ(json["max_kl"], nullptr);
}

TEST(TextReportTest, UntrustedNamesAreEscapedAndShortened) {
  CompareResult result = MakeResult(false);
  result.points[1].point = "evil\033[2J" + std::string(500, 'x') + "end";
  result.notes = {"a\nb\r\xff"};
  const std::string text = TextReport(result, {.width = 100});
  EXPECT_THAT(text, Not(HasSubstr("\033")));
  EXPECT_THAT(text, HasSubstr("evil\\x1b[2J"));
  EXPECT_THAT(text, HasSubstr("…"));
  EXPECT_THAT(text, HasSubstr("end"));
  EXPECT_THAT(text, HasSubstr("note: a\\x0ab\\x0d\\xff"));
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    EXPECT_LE(TextWidth(text.substr(begin, end - begin)), 120u);
    begin = end + 1;
  }
}

TEST(TextReportTest, ColorOnlyOnRequest) {
  EXPECT_THAT(TextReport(MakeResult(), {.color = true}), HasSubstr("\033[31m"));
}

TEST(TextReportTest, LongTablesFoldExcellentLayers) {
  CompareResult result = MakeResult(false);
  result.points.clear();
  for (int layer = 0; layer < 40; ++layer) {
    result.points.push_back(MakePoint(layer, "attn_o_proj", DiffClass::kExcellent));
    result.points.push_back(MakePoint(layer, "layer_output", layer == 7 ? DiffClass::kGood : DiffClass::kExcellent));
  }
  result.points[20].worst_token_relative_l2 = 0.125;
  std::string text = TextReport(result);
  EXPECT_THAT(text, HasSubstr("  EXC. to GOOD     L0-L39 80 points    "));
  EXPECT_THAT(text, HasSubstr(" 1.25e-01\n"));
  // What fails stands by itself.
  result.points[15].reasons = {"beyond"};
  result.points[15].diff_class = DiffClass::kSignificant;
  text = TextReport(result);
  EXPECT_THAT(text, HasSubstr("  EXCELLENT        L0-L7  15 points    "));
  EXPECT_THAT(text, HasSubstr("* SIGNIFICANT DIFF L7     layer_output"));
  EXPECT_THAT(text, HasSubstr("  EXCELLENT        L8-L39 64 points    "));
  EXPECT_THAT(TextReport(result, {.all = true}), Not(HasSubstr(" points    ")));
}

// Where every point behind a fault fails, the first rows say it.
TEST(TextReportTest, ManyFailingPointsFoldBehindTheFirst) {
  CompareResult result = MakeResult(false);
  result.points.clear();
  for (int layer = 0; layer < 90; ++layer) {
    result.points.push_back(MakePoint(layer, "layer_output", layer < 20 ? DiffClass::kGood : DiffClass::kSignificant));
  }
  result.points[89].max_abs = std::nan("");
  const std::string text = TextReport(result);
  EXPECT_THAT(text, HasSubstr("\n  GOOD             L0-L19  20 points "));
  EXPECT_THAT(text, HasSubstr("\n* SIGNIFICANT DIFF L31     layer_output "));
  EXPECT_THAT(text, HasSubstr("\n* SIGNIFICANT DIFF L32-L89 58 points, 58 fail "));
  EXPECT_THAT(text, HasSubstr("   nan "));
  EXPECT_THAT(text, Not(HasSubstr(" L33 ")));
}

TEST(TextReportTest, AFailureThatRepeatsOverLayersIsToldOnce) {
  CompareResult result = MakeResult(false);
  for (int layer = 0; layer < 28; ++layer) {
    for (const char* point : {"attn_q_rope", "attn_k_rope"}) {
      result.failures.push_back({FailureKind::kIdentity, Side::kCandidate,
                                 "layer_" + std::to_string(layer) + "_" + point,
                                 "norms differ by " + std::to_string(layer)});
    }
  }
  result.failures.push_back({FailureKind::kMissing, Side::kReference, "logits", "promised"});
  const std::string text = TextReport(result);
  EXPECT_THAT(
      text,
      HasSubstr(
          "\nFAILURE    identity (candidate): layer_0..27_attn_q_rope, in 28 layers: norms differ by 0 (layer 0)\n"
          "FAILURE    identity (candidate): layer_0..27_attn_k_rope, in 28 layers: norms differ by 0 (layer 0)\n"
          "FAILURE    missing (reference): logits: promised\n"));
  EXPECT_THAT(text, HasSubstr("57 completeness failures"));
  EXPECT_THAT(TextReport(result, {.all = true}),
              HasSubstr("identity (candidate): layer_13_attn_k_rope: norms differ by 13\n"));
  EXPECT_EQ(nlohmann::json::parse(JsonReport(result))["failures"].size(), 57u);
}

TEST(JsonReportTest, HoldsEverythingAndParses) {
  CompareResult result = MakeResult();
  result.points[2].relative_l2 = std::numeric_limits<double>::infinity();
  result.points[2].candidate.mean = std::nan("");
  result.points[2].best_scale = -std::numeric_limits<double>::infinity();
  result.points[2].name = "bad\xff\033";
  const std::string text = JsonReport(result);
  const nlohmann::json json = nlohmann::json::parse(text);
  EXPECT_EQ(json["schema"], "lockstep-compare/1");
  EXPECT_EQ(json["verdict"], "different");
  EXPECT_EQ(json["exit_code"], 1);
  EXPECT_EQ(json["points"].size(), 3u);
  EXPECT_EQ(json["points"][2]["relative_l2"], "Infinity");
  EXPECT_EQ(json["points"][2]["candidate"]["mean"], "NaN");
  EXPECT_EQ(json["points"][2]["best_scale"], "-Infinity");
  EXPECT_EQ(json["points"][2]["class"], "SIGNIFICANT DIFF");
  EXPECT_EQ(json["points"][2]["worst"]["element"]["head"], 3);
  EXPECT_EQ(json["points"][2]["bound"], nullptr);
  EXPECT_EQ(json["points"][0]["within"][0]["rtol"], 1e-5);
  EXPECT_THAT(text, Not(HasSubstr("\033")));
}

TEST(WordsTest, Shortened) {
  EXPECT_EQ(Shortened("abcdef", 6), "abcdef");
  EXPECT_EQ(Shortened("abcdefg", 5), "ab…fg");
  EXPECT_EQ(Shortened("äöüäöüä", 5), "äö…üä");
  EXPECT_EQ(TextWidth("層a"), 3u);
  EXPECT_EQ(Shortened("層層層層", 8), "層層層層");
  EXPECT_EQ(Shortened("層層層層層", 7), "層…層");
  EXPECT_EQ(Escaped("grün\u202e\u009b"), "grün\\u{202e}\\u{009b}");
}

}  // namespace
}  // namespace lockstep
