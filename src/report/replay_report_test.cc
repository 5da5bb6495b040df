// Reports of replays and of comparisons with replays, from results made by hand.
#include <gmock/gmock.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lockstep/report.h"
#include "report/compare_table.h"
#include "report/words.h"

namespace lockstep {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

LocalError MakeError(int layer, const std::string& point, const std::string& op,
                     OpVerdict verdict = OpVerdict::kClean) {
  LocalError error;
  error.layer = layer;
  error.point = point;
  error.name = layer < 0 ? point : "layer_" + std::to_string(layer) + "_" + point;
  error.op = op;
  error.verdict = verdict;
  error.from = {"input"};
  error.rows = 17;
  error.elements = 17 * 96;
  error.worst_row = 1.13;
  error.worst_row_at = {0, 3};
  error.whole = 0.98;
  error.max = 4.21;
  error.max_at = {0, 3, -1, 5};
  error.scale = -1.04e-5;
  error.scale_error = 2e-6;
  if (verdict == OpVerdict::kFaulty) {
    error.worst_row = error.worst_head = 31234;
    error.worst_head_at = {0, 8, 1};
    error.reasons = {"row 31234 above 4"};
  }
  return error;
}

Finding MakeFinding() {
  Finding finding;
  finding.point = "attn_q_rope";
  finding.layers = {0, 1, 2};
  finding.names = {"layer_0_attn_q_rope", "layer_1_attn_q_rope", "layer_2_attn_q_rope"};
  finding.op = "rope";
  finding.error = 31234;
  finding.clean = 4;
  finding.worst = {0, 8, 1};
  finding.cause = {"rope-interleaved", "rotates interleaved pairs instead of halves", "rotate (i, i + head_dim / 2)",
                   0.9};
  finding.next = {"rope-theta", "theta 10000", "", 22345};
  finding.patterns = {{"exact-at-position-0", "exact at position 0"}, {"grows-with-position", "grows with position"}};
  return finding;
}

Diagnosis MakeDiagnosis(bool faulty) {
  Diagnosis diagnosis;
  ReplayResult& replay = diagnosis.replay;
  replay.traces = {"cpp.trace"};
  replay.model = "models/tiny-qwen3";
  replay.arithmetic = {DType::kBF16, DType::kBF16, DType::kF32, DType::kBF16};
  replay.has_arithmetic = true;
  replay.points = {MakeError(-1, "input_embeddings", "embedding")};
  for (int layer = 0; layer < 3; ++layer) {
    replay.points.push_back(MakeError(layer, "attn_q_rope", "rope", faulty ? OpVerdict::kFaulty : OpVerdict::kClean));
  }
  replay.clean = faulty ? 1 : 4;
  if (faulty) {
    replay.faulty = 3;
    replay.first_faulty = 1;
    diagnosis.findings = {MakeFinding()};
  }
  return diagnosis;
}

PointResult MakeCompared(int layer, const std::string& name, DiffClass diff_class) {
  PointResult point;
  point.layer = layer;
  point.point = name;
  point.name = layer < 0 ? name : "layer_" + std::to_string(layer) + "_" + name;
  point.row_shape = {6, 48};
  point.rows = 17;
  point.elements = 17 * 6 * 48;
  point.diff_class = diff_class;
  point.max_abs = diff_class == DiffClass::kSignificant ? 2.5 : 0;
  return point;
}

// One SIGNIFICANT point, as inherited rounding leaves it in f32.
Judged MakeJudged(bool reference_faulty, bool candidate_faulty) {
  Judged judged;
  judged.compare.points = {MakeCompared(-1, "input_embeddings", DiffClass::kExcellent),
                           MakeCompared(0, "attn_q_rope", DiffClass::kGood),
                           MakeCompared(1, "attn_q_rope", DiffClass::kSignificant)};
  PointResult& last = judged.compare.points[2];
  last.reasons = {"SIGNIFICANT DIFF"};
  last.worst = {0, 8, 1, 5};
  last.worst_reference = 1.25;
  last.worst_candidate = -1.25;
  last.worst_token = {0, 8};
  last.worst_token_relative_l2 = 0.5;
  last.min_token_cosine = 0.75;
  judged.compare.reference = {{"py.trace"}, "pure", "qwen3", DType::kF32, true, 1, 1, 1, 17, 3};
  judged.compare.candidate = {{"cpp.trace"}, "engine", "qwen3", DType::kF32, true, 1, 1, 1, 17, 3};
  judged.compare.pairs = {{0, 0, 17}};
  judged.compare.first_significant = judged.compare.first_failing = 2;
  judged.compare.failing = 1;
  judged.compare.class_counts = {1, 1, 0, 1};
  judged.compare.growth = Growth{{0, 1e-6}, {2, 4e-6}, {4, 16e-6}, 2};
  judged.reference = MakeDiagnosis(reference_faulty);
  judged.candidate = MakeDiagnosis(candidate_faulty);
  return judged;
}

void ExpectWidth(const std::string& text, size_t width) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    EXPECT_LE(TextWidth(text.substr(begin, end - begin)), width) << width << text.substr(begin, end - begin);
    begin = end + 1;
  }
}

TEST(FindingTest, Sentence) {
  EXPECT_EQ(
      FindingSentence(MakeFinding()),
      "layer 0..2 attn_q_rope: op error 3.1e+04 noise units (clean: < 4), exact at position 0, grows with position "
      "-> rotates interleaved pairs instead of halves (explains it: 0.9; next best, theta 10000: 2.2e+04). "
      "Usual fix: rotate (i, i + head_dim / 2)");
}

TEST(FindingTest, EqualCausesAreAllNamed) {
  Finding finding = MakeFinding();
  finding.layers = {};
  finding.point = "logits";
  finding.patterns = {};
  finding.also = {{"norm-skipped", "is the norm's input", "", 0.95}};
  EXPECT_EQ(
      FindingSentence(finding),
      "logits: op error 3.1e+04 noise units (clean: < 4) -> rotates interleaved pairs instead of halves (explains "
      "it: 0.9; as does is the norm's input: 0.95; next best, theta 10000: 2.2e+04). "
      "Usual fix: rotate (i, i + head_dim / 2)");
}

// What the values themselves show was not recomputed.
TEST(FindingTest, EvidentCauses) {
  Finding finding = MakeFinding();
  finding.layers = {3};
  finding.patterns = {};
  finding.next.reset();
  finding.cause = {"values-nan", "gives NaN from finite inputs", "look for 0 / 0", 0};
  finding.error = std::numeric_limits<double>::infinity();
  EXPECT_EQ(FindingSentence(finding),
            "layer 3 attn_q_rope: op error inf noise units (clean: < 4) -> gives NaN from "
            "finite inputs. Usual fix: look for 0 / 0");
  finding.cause = {"shape", "has rows of 64 elements", "", 0};
  finding.error = 0;
  EXPECT_EQ(FindingSentence(finding), "layer 3 attn_q_rope -> has rows of 64 elements");
}

TEST(FindingTest, UnexplainedAndUntrusted) {
  Finding finding = MakeFinding();
  finding.layers = {0, 1, 2, 5, 7, 8};
  finding.point = "evil\033[2J";
  finding.cause.reset();
  EXPECT_EQ(
      FindingSentence(finding),
      "layer 0..2,5,7..8 evil\\x1b[2J: op error 3.1e+04 noise units (clean: < 4), exact at position 0, grows with "
      "position -> unexplained (the best of the known mistakes, theta 10000, leaves 2.2e+04)");
  finding.next.reset();
  EXPECT_THAT(FindingSentence(finding), HasSubstr("-> unexplained"));
  EXPECT_THAT(FindingSentence(finding), Not(HasSubstr("(the best")));
}

TEST(ReplayTextTest, CleanSuspectBridgedAndNotObservable) {
  Diagnosis diagnosis = MakeDiagnosis(false);
  std::vector<LocalError>& points = diagnosis.replay.points;
  points[1].verdict = OpVerdict::kSuspect;
  points[1].reasons = {"largest value 9.1 above 8"};
  points[2].bridged = true;
  points[2].from = {"layer_1_input_hidden_states", "layer_1_attn_k_rope"};
  points[3].verdict = OpVerdict::kNotObservable;
  points[3].rows = 0;
  points[3].reasons = {"no q was captured\033"};
  diagnosis.replay.suspect = diagnosis.replay.not_observable = 1;
  diagnosis.replay.clean = 2;
  diagnosis.replay.has_arithmetic = false;
  diagnosis.layouts = {"q and k in a permuted basis"};
  diagnosis.replay.notes = {"something\n"};
  const std::string text = TextReport(diagnosis, {.width = 80});
  EXPECT_THAT(text, HasSubstr("(not declared; inferred from the data)"));
  EXPECT_THAT(text, HasSubstr("replay     4 ops, 2 clean, 1 SUSPECT, 1 not observable\n"));
  EXPECT_THAT(text, HasSubstr("LAYOUT     q and k in a permuted basis\n"));
  EXPECT_THAT(text, HasSubstr("largest value 9.1 above 8\n"));
  EXPECT_THAT(text, HasSubstr("recomputed from layer_1_input_hidden_states, layer_1_attn_k_rope\n"));
  EXPECT_THAT(text, HasSubstr("  n.o.    L2    attn_q_rope      rope\n          no q was captured\\x1b\n"));
  EXPECT_THAT(text, HasSubstr("note: something\\x0a\n"));
  EXPECT_THAT(text, HasSubstr("VERDICT: CLEAN (1 suspect op)\n"));
  EXPECT_THAT(text, Not(HasSubstr("\033")));
}

TEST(ReplayTextTest, LongTablesFoldCleanRuns) {
  Diagnosis diagnosis;
  for (int layer = 0; layer < 40; ++layer) {
    for (const char* point : {"attn_q_rope", "attn_k_rope", "attn_o_proj", "layer_output"}) {
      diagnosis.replay.points.push_back(MakeError(layer, point, "op"));
    }
  }
  diagnosis.replay.points.push_back(MakeError(-1, "logits", "linear"));
  std::vector<LocalError>& points = diagnosis.replay.points;
  points[3].max = 6.7;
  points[4].verdict = OpVerdict::kNotObservable;
  points[7 * 4] = MakeError(7, "attn_q_rope", "rope", OpVerdict::kFaulty);
  points[7 * 4 + 2] = MakeError(7, "attn_o_proj", "linear", OpVerdict::kFaulty);
  const std::string text = TextReport(diagnosis);
  EXPECT_THAT(text,
              HasSubstr("  clean   L0-L6  28 ops, 1 n.o.            17       1.13          -       0.98       6.70"));
  EXPECT_THAT(text, HasSubstr("FAULTY  L7     attn_q_rope"));
  EXPECT_THAT(text, HasSubstr("clean   L7     attn_k_rope"));  // too short a run
  EXPECT_THAT(text, HasSubstr("  clean   L7-L39 129 ops                   17       1.13"));
  EXPECT_THAT(text, HasSubstr("clean   Final  logits"));
  EXPECT_THAT(TextReport(diagnosis, {.all = true}), Not(HasSubstr("28 ops")));
}

TEST(ReplayTextTest, FitsTheTerminal) {
  Diagnosis diagnosis = MakeDiagnosis(true);
  diagnosis.findings[0].cause->advice = "evil\033[2J " + std::string(60, 'x') + " and some more words to wrap";
  Judged judged = MakeJudged(true, true);
  for (int layer = 0; layer < 100; ++layer) {
    judged.compare.points.push_back(
        MakeCompared(layer, "層のウィジェット_\U0001F600" + std::string(300, 'x'), DiffClass::kGood));
  }
  judged.compare.notes = {std::string(700, 'n') + " 層"};
  judged.compare.failures = {{FailureKind::kMissing, Side::kCandidate, std::string(10000, '<'), "層 missing"}};
  for (int width = 40; width <= 300; ++width) {
    ExpectWidth(TextReport(diagnosis, {.width = width}), static_cast<size_t>(width));
    ExpectWidth(TextReport(judged, {.width = width}), static_cast<size_t>(width));
  }
  EXPECT_THAT(TextReport(diagnosis, {.color = true}), HasSubstr("\033[31m"));
}

TEST(ReplayJsonTest, HoldsEverything) {
  Diagnosis diagnosis = MakeDiagnosis(true);
  LocalError& point = diagnosis.replay.points[1];
  point.bridged = true;
  point.max = std::numeric_limits<double>::infinity();
  diagnosis.replay.points[0].verdict = OpVerdict::kNotObservable;
  diagnosis.replay.points[0].rows = 0;
  diagnosis.replay.points[0].reasons = {"a", "b"};
  diagnosis.layouts = {"permuted"};
  const nlohmann::json json = nlohmann::json::parse(JsonReport(diagnosis));
  EXPECT_EQ(json["schema"], "lockstep-replay/1");
  EXPECT_EQ(json["verdict"], "faulty");
  EXPECT_EQ(json["exit_code"], 1);
  EXPECT_EQ(json["trace"], nlohmann::json({"cpp.trace"}));
  EXPECT_EQ(json["model"], "models/tiny-qwen3");
  EXPECT_EQ(json["arithmetic"]["storage"], "BF16");
  EXPECT_EQ(json["arithmetic"]["declared"], true);
  EXPECT_EQ(json["first_faulty"], "layer_0_attn_q_rope");
  EXPECT_EQ(json["layouts"][0]["text"], "permuted");

  const nlohmann::json& faulty = json["points"][1];
  EXPECT_EQ(faulty["verdict"], "faulty");
  EXPECT_EQ(faulty["op"], "rope");
  EXPECT_EQ(faulty["worst_row"]["error"], 31234);
  EXPECT_EQ(faulty["worst_row"]["position"], 3);
  EXPECT_EQ(faulty["worst_head"]["head"], 1);
  EXPECT_EQ(faulty["max"]["error"], "Infinity");
  EXPECT_EQ(faulty["max"]["channel"], 5);
  EXPECT_EQ(faulty["scale"]["value"], -1.04e-5);
  EXPECT_EQ(faulty["scale"]["standard_error"], 2e-6);
  EXPECT_EQ(faulty["bridged"], true);
  const nlohmann::json& unseen = json["points"][0];
  EXPECT_EQ(unseen["verdict"], "not-observable");
  EXPECT_EQ(unseen["why"], "a; b");
  EXPECT_EQ(unseen["worst_row"], nullptr);

  const nlohmann::json& finding = json["findings"][0];
  EXPECT_EQ(finding["points"].size(), 3u);
  EXPECT_EQ(finding["layers"], "0-2");
  EXPECT_EQ(finding["cause"], "rope-interleaved");
  EXPECT_EQ(finding["explained"], 0.9);
  EXPECT_EQ(finding["next"]["cause"], "rope-theta");
  EXPECT_EQ(finding["patterns"][1]["id"], "grows-with-position");
  EXPECT_EQ(finding["worst"]["head"], 1);
}

TEST(JudgedTest, ReplaysDecideAndClassesDescribe) {
  EXPECT_EQ(MakeJudged(false, false).ExitCode(), 0);
  EXPECT_EQ(MakeJudged(true, false).ExitCode(), 1);
  EXPECT_EQ(MakeJudged(false, true).ExitCode(), 1);

  Judged judged = MakeJudged(false, false);
  judged.compare.points[1].user_tolerance_missed = true;
  EXPECT_EQ(judged.ExitCode(), 1);
  judged = MakeJudged(false, false);
  judged.compare.failures = {{FailureKind::kMissing, Side::kCandidate, "logits", "promised"}};
  EXPECT_EQ(judged.ExitCode(), 1);
  judged = MakeJudged(false, false);
  judged.compare.weights = {{"lm_head.weight", "other"}};
  EXPECT_EQ(judged.ExitCode(), 1);
}

// What the replay did not judge is judged by its difference.
TEST(JudgedTest, WithoutAReplayTheClassesDecide) {
  Judged judged = MakeJudged(false, false);
  judged.candidate->replay.points[2].verdict = OpVerdict::kNotObservable;
  EXPECT_EQ(judged.ExitCode(), 1);
  judged = MakeJudged(false, false);
  judged.reference->replay.points[2].rows_not_observable = 1;
  EXPECT_EQ(judged.ExitCode(), 1);
  judged = MakeJudged(false, false);
  judged.candidate.reset();
  EXPECT_EQ(judged.ExitCode(), 1);
  judged = MakeJudged(false, false);
  judged.reference.reset();
  judged.candidate.reset();
  EXPECT_EQ(judged.ExitCode(), 1);
  judged.compare.points.pop_back();
  EXPECT_EQ(judged.ExitCode(), 0);
}

TEST(JudgedTextTest, InheritedRounding) {
  const std::string text = TextReport(MakeJudged(false, false), {.width = 200});
  EXPECT_THAT(text, HasSubstr("INHERITED ROUNDING: no op is faulty on either side"));
  EXPECT_THAT(
      text,
      HasSubstr("relative L2 of layer_output: 1.00e-06 (L0), 4.00e-06 (L2), 1.60e-05 (L4): a factor of 2 a layer"));
  EXPECT_THAT(text, HasSubstr("VERDICT: SAME (no faulty op on either side)\n"));
  EXPECT_THAT(text, Not(HasSubstr("FIRST POINT THAT FAILS")));
  EXPECT_THAT(text, Not(HasSubstr("\n*")));
}

TEST(JudgedTextTest, AnotherLayoutIsNotCalledRounding) {
  Judged judged = MakeJudged(false, false);
  judged.candidate->layouts = {"attn_q_rope holds interleaved pairs"};
  const std::string text = TextReport(judged);
  EXPECT_THAT(text, HasSubstr("LAYOUT"));
  EXPECT_THAT(text, Not(HasSubstr("INHERITED ROUNDING")));
}

TEST(JudgedTextTest, AWrongReferenceIsAccusedAsReadily) {
  const std::string text = TextReport(MakeJudged(true, false));
  EXPECT_THAT(text, HasSubstr("FAULT      reference: layer 0..2 attn_q_rope: op error 3.1e+04 noise units"));
  EXPECT_THAT(text, HasSubstr("VERDICT: DIFFERENT (3 faulty ops in the reference, the first layer_0_attn_q_rope)\n"));
  EXPECT_THAT(text, Not(HasSubstr("INHERITED")));
}

TEST(JudgedTextTest, NarrowTerminalsKeepTheCandidatesVerdict) {
  const std::string wide = TextReport(MakeJudged(true, true), {.width = 140});
  EXPECT_THAT(wide, HasSubstr("max_rel"));
  EXPECT_THAT(wide, HasSubstr("op err ref"));
  const std::string narrow = TextReport(MakeJudged(true, true), {.width = 80});
  EXPECT_THAT(narrow, Not(HasSubstr("op err ref")));
  EXPECT_THAT(narrow, HasSubstr("op err cand"));
  EXPECT_THAT(narrow, Not(HasSubstr("max_rel")));
}

TEST(JudgedTextTest, OneSideOnly) {
  Judged judged = MakeJudged(false, false);
  judged.candidate.reset();
  judged.reference->replay.notes = {"inferred"};
  const std::string text = TextReport(judged);
  EXPECT_THAT(text, HasSubstr("op err ref"));
  EXPECT_THAT(text, Not(HasSubstr("op err cand")));
  EXPECT_THAT(text, HasSubstr("note: replay of the reference: inferred\n"));
  EXPECT_THAT(text, HasSubstr("VERDICT: DIFFERENT (1 point beyond tolerance, the first layer_1_attn_q_rope)"));
}

TEST(JudgedJsonTest, HoldsBothReplays) {
  const nlohmann::json json = nlohmann::json::parse(JsonReport(MakeJudged(false, true)));
  EXPECT_EQ(json["schema"], "lockstep-compare/1");
  EXPECT_EQ(json["verdict"], "different");
  EXPECT_EQ(json["replay"]["reference"]["verdict"], "clean");
  EXPECT_EQ(json["replay"]["candidate"]["first_faulty"], "layer_0_attn_q_rope");
  EXPECT_EQ(json["points"][1]["fails"], true);
  EXPECT_EQ(json["points"][0]["fails"], false);
  EXPECT_EQ(json["growth"]["per_layer"], 2);
  EXPECT_EQ(json["growth"]["last"]["layer"], 4);
  EXPECT_EQ(nlohmann::json::parse(JsonReport(CompareResult{}))["replay"], nullptr);
}

TEST(WordsTest, NoiseText) {
  EXPECT_EQ(NoiseText(0), "0");
  EXPECT_EQ(NoiseText(0.934), "0.93");
  EXPECT_EQ(NoiseText(4), "4");
  EXPECT_EQ(NoiseText(99.6), "100");
  EXPECT_EQ(NoiseText(312.4), "312");
  EXPECT_EQ(NoiseText(31234), "3.1e+04");
  EXPECT_EQ(NoiseText(std::numeric_limits<double>::infinity()), "inf");
  EXPECT_EQ(NoiseCell(0), "0");
  EXPECT_EQ(NoiseCell(1), "1.00");
  EXPECT_EQ(NoiseCell(9.996), "10.0");
  EXPECT_EQ(NoiseCell(99.96), "100");
  EXPECT_EQ(NoiseCell(std::numeric_limits<double>::infinity()), "inf");
}

TEST(WordsTest, Wrapped) {
  EXPECT_EQ(Wrapped("a: ", "one two three", 10), "a: one two\n   three\n");
  EXPECT_EQ(Wrapped("a: ", "one  two", 80), "a: one  two\n");
  EXPECT_EQ(Wrapped("", "ääää bbbb", 4), "ääää\nbbbb\n");
  EXPECT_EQ(Wrapped("a: ", "muchlongerthanten x", 10), "a: muchlon\n   gerthan\n   ten x\n");
}

}  // namespace
}  // namespace lockstep
