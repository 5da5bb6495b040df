// Whole reports against the files of tests/golden. The results are made by hand, so that no figure depends on an
// instruction set. A change of a report is accepted by the one command that a mismatch prints.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

#include "lockstep/points.h"
#include "lockstep/report.h"
#include "report/words.h"

namespace lockstep {
namespace {

std::string Read(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

void Write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

std::string OutputOf(const std::string& command) {
  std::string out;
  std::FILE* pipe = popen(command.c_str(), "r");
  for (int byte = std::fgetc(pipe); byte != EOF; byte = std::fgetc(pipe)) out += static_cast<char>(byte);
  pclose(pipe);
  return out;
}

void ExpectGolden(const std::string& name, const std::string& text) {
  const std::string golden = LOCKSTEP_SOURCE_DIR "/tests/golden/" + name;
  if (std::getenv("LOCKSTEP_ACCEPT") != nullptr) return Write(golden, text);
  if (Read(golden) == text) return;
  const std::string found = testing::TempDir() + "lockstep-" + name;
  Write(found, text);
  ADD_FAILURE() << OutputOf("diff -u '" + golden + "' '" + found + "' 2>&1")
                << "If the new output is right: LOCKSTEP_ACCEPT=1 ctest --preset release -R GoldenTest";
}

size_t Lines(const std::string& text) { return static_cast<size_t>(std::count(text.begin(), text.end(), '\n')); }

constexpr int kLayers = 28;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::string TableName(const std::string& name) { return std::string(WithoutLayer(name)); }

// A figure that differs from point to point and depends on nothing.
double Figure(size_t i, double scale) { return scale * (1 + static_cast<double>(i * 37 % 101) / 101); }

LocalError MakeError(const std::string& name, size_t i) {
  LocalError error;
  error.name = name;
  error.layer = LayerOf(name);
  error.point = TableName(name);
  error.op = ParsePointName(name)->spec->op;
  error.rows = 132;
  error.elements = 132 * 64;
  error.worst_row = Figure(i, 0.7);
  error.worst_row_at = {0, 17};
  if (error.point.find("_rope") != std::string::npos) {
    error.worst_head = Figure(i, 1.2);
    error.worst_head_at = {0, 17, 3};
  }
  error.whole = Figure(i, 0.4);
  error.max = Figure(i, 2.5);
  error.max_at = {0, 17, -1, 5};
  error.scale = Figure(i, 1e-6);
  error.scale_error = 5e-7;
  return error;
}

Diagnosis MakeDiagnosis(DType storage, const std::string& trace) {
  Diagnosis diagnosis;
  ReplayResult& replay = diagnosis.replay;
  replay.traces = {trace};
  replay.model = "models/Qwen3-0.6B";
  replay.arithmetic = {storage, storage, DType::kF32, storage};
  replay.has_arithmetic = true;
  replay.weights_compared = 310;
  for (const std::string& name : AllPointNames(kLayers)) {
    replay.points.push_back(MakeError(name, replay.points.size()));
  }
  replay.clean = replay.points.size();
  return diagnosis;
}

PointResult MakePoint(const std::string& name, size_t i, double scale) {
  PointResult point;
  point.name = name;
  point.layer = LayerOf(name);
  point.point = TableName(name);
  point.row_shape = {1024};
  point.rows = 132;
  point.elements = 132 * 1024;
  point.max_abs = Figure(i, scale * 10);
  point.max_rel = Figure(i, scale * 1000);
  point.worst_token_relative_l2 = Figure(i, scale);
  point.cosine = 1 - Figure(i, scale * scale);
  point.worst = {0, 17, -1, 5};
  point.worst_token = {0, 17};
  point.min_token_cosine = 1 - Figure(i, 2 * scale * scale);
  point.bound = 16 * scale;
  point.diff_class = point.max_abs < 1e-4   ? DiffClass::kExcellent
                     : point.max_abs < 1e-3 ? DiffClass::kGood
                     : point.max_abs < 0.12 ? DiffClass::kAcceptable
                                            : DiffClass::kSignificant;
  return point;
}

void AddTokens(CompareResult* result) {
  result->next_tokens = {5, 5, {}};
  TokenRow row;
  row.sequence = 0;
  row.position = 131;
  row.kl = 3.25e-5;
  result->tokens.rows = std::vector<TokenRow>(5, row);
  result->tokens.same_top = result->tokens.same_next = 5;
  result->tokens.mean_common_top5 = 5;
  result->tokens.mean_common_top10 = 9.8;
  result->tokens.mean_kl = 1.5e-5;
  result->tokens.max_kl_row = 0;
}

// Counts and firsts as the comparison sets them.
void Count(CompareResult* result) {
  result->class_counts = {};
  for (size_t i = 0; i < result->points.size(); ++i) {
    PointResult& point = result->points[i];
    ++result->class_counts[static_cast<size_t>(point.diff_class)];
    if (point.diff_class == DiffClass::kSignificant && !result->first_significant) result->first_significant = i;
    if (!point.reasons.empty() && !result->first_failing) result->first_failing = i;
    result->failing += !point.reasons.empty();
  }
}

// A clean run of a 28-layer model.
Judged MakeClean(DType storage) {
  Judged judged;
  CompareResult& result = judged.compare;
  const SideSummary side = {
      {"lockstep-debug/py.trace"}, "lockstep-reference 0.1.0 (torch 2.9.1)", "qwen3", storage, true, 1, 5, 1, 132, 507};
  result.reference = result.candidate = side;
  result.candidate.traces = {"lockstep-debug/cpp.trace"};
  result.candidate.producer = "lockstep-engine 0.1.0";
  result.pairs = {{0, 0, 132, {}}};
  result.weights_compared = 310;
  for (const std::string& name : AllPointNames(kLayers)) {
    result.points.push_back(MakePoint(name, result.points.size(), storage == DType::kF32 ? 4e-6 : 8e-3));
  }
  result.growth = Growth{{0, 1.2e-3}, {13, 4.5e-3}, {27, 9.1e-3}, 1.08};
  AddTokens(&result);
  Count(&result);
  judged.reference = MakeDiagnosis(storage, "lockstep-debug/py.trace");
  judged.candidate = MakeDiagnosis(storage, "lockstep-debug/cpp.trace");
  return judged;
}

void MakeFaulty(const std::string& name, Finding finding, Diagnosis* diagnosis) {
  ReplayResult& replay = diagnosis->replay;
  for (size_t i = 0; i < replay.points.size(); ++i) {
    LocalError& error = replay.points[i];
    if (error.point != name) continue;
    error.verdict = OpVerdict::kFaulty;
    error.worst_row = error.worst_head = error.max = 31234;
    error.reasons = {"row 31234 above 4"};
    if (!replay.first_faulty) replay.first_faulty = i;
    ++replay.faulty, --replay.clean;
    finding.names.push_back(error.name);
    finding.layers.push_back(error.layer);
  }
  finding.point = name;
  finding.error = 31234;
  finding.clean = 4;
  finding.worst = {0, 17, 3};
  diagnosis->findings.push_back(finding);
}

Finding Interleaved() {
  Finding finding;
  finding.op = "rope";
  finding.cause = {"rope-interleaved", "rotates interleaved pairs instead of halves", "rotate (i, i + head_dim / 2)",
                   0.9};
  finding.next = {"rope-theta", "theta 10000", "", 22345};
  finding.patterns = {{"exact-at-position-0", "exact at position 0"}, {"grows-with-position", "grows with position"}};
  return finding;
}

// RoPE is wrong in every layer of the candidate: all that follows differs.
Judged MakeBrokenRope() {
  Judged judged = MakeClean(DType::kF32);
  MakeFaulty("attn_q_rope", Interleaved(), &*judged.candidate);
  for (size_t i = 6; i < judged.compare.points.size(); ++i) {
    PointResult& point = judged.compare.points[i] = MakePoint(judged.compare.points[i].name, i, 0.3);
    point.reasons = {"SIGNIFICANT DIFF"};
  }
  for (int layer = 0; layer < kLayers; ++layer) {
    judged.compare.failures.push_back({FailureKind::kIdentity, Side::kCandidate,
                                       fmt::format("layer_{}_attn_q_rope", layer),
                                       "RoPE changed the norm of a pair of channels at sequence 0, position 1"});
  }
  Count(&judged.compare);
  return judged;
}

TEST(GoldenTest, CleanF32) {
  const std::string text = TextReport(MakeClean(DType::kF32), {.width = 80});
  EXPECT_LE(Lines(text), 24u);
  ExpectGolden("clean-f32.txt", text);
}

TEST(GoldenTest, CleanBf16) {
  const std::string text = TextReport(MakeClean(DType::kBF16), {.width = 80});
  EXPECT_LE(Lines(text), 24u);
  ExpectGolden("clean-bf16.txt", text);
}

TEST(GoldenTest, CleanBf16WithoutReplay) {
  const std::string text = TextReport(MakeClean(DType::kBF16).compare, {.width = 80});
  EXPECT_LE(Lines(text), 24u);
  ExpectGolden("clean-bf16-alone.txt", text);
}

TEST(GoldenTest, FaultyWithCause) { ExpectGolden("faulty.txt", TextReport(MakeBrokenRope())); }

TEST(GoldenTest, FaultyWithoutReplay) { ExpectGolden("faulty-alone.txt", TextReport(MakeBrokenRope().compare)); }

TEST(GoldenTest, Narrow) {
  ExpectGolden("narrow-40.txt", TextReport(MakeBrokenRope(), {.width = 40}));
  ExpectGolden("narrow-80.txt", TextReport(MakeBrokenRope(), {.width = 80}));
}

TEST(GoldenTest, Unexplained) {
  Judged judged = MakeClean(DType::kBF16);
  Finding finding;
  finding.op = "swiglu";
  finding.next = {"gelu", "gelu instead of silu", "", 812};
  finding.patterns = {{"all-rows", "in every row alike"}};
  MakeFaulty("mlp_intermediate", finding, &*judged.candidate);
  ExpectGolden("unexplained.txt", TextReport(judged));
}

TEST(GoldenTest, MissingPoints) {
  Judged judged;
  judged.compare = MakeClean(DType::kF32).compare;
  CompareResult& result = judged.compare;
  result.points.resize(21);
  result.candidate.closed = false;
  result.failures = {{FailureKind::kTraceError, Side::kCandidate, "", "the writer reported: No space left on device"},
                     {FailureKind::kMissing, Side::kCandidate, "logits", "promised, but missing in step 0"}};
  for (int layer = 1; layer < kLayers; ++layer) {
    result.failures.push_back({FailureKind::kMissing, Side::kCandidate, fmt::format("layer_{}_layer_output", layer),
                               "promised, but missing in step 0"});
  }
  result.weights = {{"lm_head.weight", "fingerprints differ: reference 12ab, candidate 34cd"}};
  for (int i = 0; i < 6; ++i) result.only_reference.push_back({fmt::format("mine_{}", i), "not promised"});
  result.notes = {"the candidate ended in step 0"};
  Count(&result);
  ExpectGolden("missing.txt", TextReport(judged));
}

TEST(GoldenTest, ReplayAlone) {
  Diagnosis diagnosis = MakeDiagnosis(DType::kF32, "cpp.trace");
  EXPECT_LE(Lines(TextReport(diagnosis, {.width = 80})), 24u);
  ExpectGolden("replay-clean.txt", TextReport(diagnosis, {.width = 80}));
  MakeFaulty("attn_q_rope", Interleaved(), &diagnosis);
  ExpectGolden("replay-faulty.txt", TextReport(diagnosis));
}

// Markup, control characters, right-to-left marks, wide characters, no UTF-8, and very long.
Judged MakeHostile() {
  Judged judged;
  CompareResult& result = judged.compare;
  result.reference.traces = {"a\nb|c`d.trace"};
  result.reference.producer = "<script>alert(1)</script>";
  result.candidate.producer = "@someone [x](http://example.org) ]]>\x01";
  const std::string names[] = {"<b>bold</b> & | `tick` [link](http://example.org) @all #1 ]]> \\|",
                               "\033[2J\u202eabc\u200f\x7f", "層_ウィジェット_\U0001F600", "\xff\xfe broken \xc3",
                               "layer_2_" + std::string(700, 'x')};
  for (const std::string& name : names) {
    PointResult point = MakePoint("logits", result.points.size(), 4e-6);
    point.name = name;
    point.layer = LayerOf(name);
    point.point = TableName(name);
    point.diff_class = DiffClass::kSignificant;
    point.reasons = {"reason with ]]> and <i>\x02"};
    result.points.push_back(point);
    result.failures.push_back({FailureKind::kDuplicate, Side::kReference, name, "twice in step 0: " + name});
  }
  result.only_candidate = {{names[0], "not promised"}};
  result.notes = {names[1]};
  Count(&result);
  return judged;
}

TEST(GoldenTest, HostileNames) { ExpectGolden("hostile.txt", TextReport(MakeHostile(), {.width = 100})); }

TEST(GoldenTest, Exports) {
  ExpectGolden("faulty.md", MarkdownReport(MakeBrokenRope()));
  ExpectGolden("hostile.md", MarkdownReport(MakeHostile()));
  ExpectGolden("hostile.xml", JunitReport(MakeHostile()));
  Diagnosis diagnosis = MakeDiagnosis(DType::kF32, "cpp.trace");
  ExpectGolden("replay-clean.md", MarkdownReport(diagnosis));
}

// Four bytes a column is the worst that a name can do.
TEST(MarkdownTest, StaysBelow60KB) {
  std::string name;
  for (int i = 0; i < 2000; ++i) name += "\U00010300";
  Judged judged = MakeHostile();
  judged.compare.reference.traces = judged.compare.candidate.traces = std::vector<std::string>(50, name);
  judged.compare.failures.assign(1000, {FailureKind::kMissing, Side::kCandidate, name, name});
  judged.compare.weights.assign(1000, {name, name});
  PointResult point = judged.compare.points[0];
  point.name = name;
  judged.compare.points.assign(1000, point);
  Diagnosis diagnosis;
  Finding finding;
  finding.point = name;
  finding.cause = {name, name, name, 1};
  diagnosis.findings.assign(1000, finding);
  diagnosis.replay.weights.assign(1000, {name, name});
  judged.reference = judged.candidate = diagnosis;
  const std::string text = MarkdownReport(judged);
  EXPECT_LT(text.size(), 60000u);
  EXPECT_NE(text.find("… and 99"), std::string::npos);
}

TEST(GoldenTest, NanAndInf) {
  Judged judged;
  judged.compare = MakeClean(DType::kF32).compare;
  CompareResult& result = judged.compare;
  result.points.resize(6);
  for (PointResult& point : result.points) {
    point.max_abs = point.cosine = point.worst_token_relative_l2 = kNan;
    point.max_rel = std::numeric_limits<double>::infinity();
    point.elements = 0;
    point.diff_class = DiffClass::kSignificant;
    point.non_finite_mismatches = 135168;
    point.first_non_finite_mismatch = {0, 0, -1, 0};
    point.reasons = {"135168 values are NaN or infinite on one side only"};
  }
  result.tokens.mean_kl = kNan;
  result.growth.reset();
  result.first_significant.reset();
  Count(&result);
  ExpectGolden("nan-inf.txt", TextReport(judged));
}

}  // namespace
}  // namespace lockstep
