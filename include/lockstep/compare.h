// Comparing two implementations by their traces: how far every point of the candidate is from the reference, and what
// is missing. The result is one plain struct; the reports only print it.
//
//   CompareResult result = Compare({"py.trace"}, {"cpp.trace"}, {.rtol = 1e-3});
//   std::cout << TextReport(result);
//   return result.ExitCode();
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lockstep/capture.hpp"
#include "lockstep/detail.h"
#include "lockstep/error.h"
#include "lockstep/place.h"

namespace lockstep {

struct CompareOptions {
  // The user's own tolerance, numpy's allclose rule: |candidate - reference| <= atol + rtol * |reference|. Where only
  // one is given, the other is 0.
  std::optional<double> atol;
  std::optional<double> rtol;
  // Selections as in docs/trace-format.md; empty means everything that both sides hold.
  std::string points;
  std::string layers;
  // (reference sequence, candidate sequence); empty: paired by their input_ids. One trace a side: numbers as in the
  // trace. Several traces: 0, 1, 2, … through the traces in the order given and the sequences inside them.
  std::vector<std::pair<int, int>> pairs;
  bool details = false;  // fill PointResult::detail
  // Called after each point, from the calling thread.
  std::function<void(size_t points_done, size_t points_total)> progress;
};

enum class Side : uint8_t { kReference, kCandidate };
std::string_view SideName(Side side);  // "reference", "candidate"

// The four classes, by the largest absolute difference, best first.
enum class DiffClass : uint8_t { kExcellent, kGood, kAcceptable, kSignificant };
std::string_view DiffClassName(DiffClass diff_class);  // "EXCELLENT", "GOOD", "ACCEPTABLE", "SIGNIFICANT DIFF"

// (rtol, atol) of PointResult::within: both are the same number.
inline constexpr std::array<double, 4> kTolerances = {1e-5, 1e-4, 1e-3, 1e-2};

// Of the values of one side in the rows joined. Mean, std (of the population), min and max are of the finite values.
struct SideStats {
  DType dtype = DType::kF32;
  double mean = 0;
  double std = 0;
  double min = 0;
  double max = 0;
  int64_t nan_count = 0;
  int64_t inf_count = 0;
  std::optional<Place> first_nan;
  std::optional<Place> first_inf;
};

// a is the candidate, b the reference. Pairs of NaNs and pairs of the same infinity count as equal and are left out of
// every sum; all other pairs with a NaN or an infinity are non-finite mismatches and are left out, too. Sums are taken
// in f64.
struct PointResult {
  std::string name;   // "layer_3_attn_q_rope"
  int layer = -1;     // 3; -1 outside the layers
  std::string point;  // "attn_q_rope"

  std::vector<int64_t> row_shape;  // [heads, head_dim]; attention tensors: [heads, longest row]
  int64_t rows = 0;                // joined
  int64_t rows_only_reference = 0;
  int64_t rows_only_candidate = 0;
  int64_t elements = 0;  // compared as numbers

  bool bit_identical = false;  // as values of the wider dtype
  SideStats reference;
  SideStats candidate;

  double max_abs = 0;  // |a - b|
  double mean_abs = 0;
  double max_rel = 0;  // |a - b| / |b| where b != 0
  double mean_rel = 0;
  int64_t zero_mismatches = 0;  // b == 0, a != 0: such elements have no relative difference
  double cosine = 1;            // two zero vectors: 1; zero against non-zero: 0
  double relative_l2 = 0;       // |a - b| / |b|; infinite where only b is zero
  double snr_db = 0;            // 20 log10(|b| / |a - b|); infinite where equal
  double best_scale = 1;        // <a, b> / <b, b>

  std::array<double, 4>
      within{};  // shares of the elements within kTolerances; a non-finite or mask mismatch is outside
  std::optional<double> within_user;  // the same for the user's tolerance, if there is one
  bool user_tolerance_missed = false;

  Place worst;  // element with the largest absolute difference, the first of equals
  double worst_reference = 0;
  double worst_candidate = 0;

  Place worst_token;  // by relative L2
  double worst_token_relative_l2 = 0;
  double min_token_cosine = 1;
  Place min_token_cosine_at;
  int worst_head = -1;  // by relative L2 over all rows; -1: the point has no heads
  double worst_head_relative_l2 = 0;
  double min_head_cosine = 1;

  int64_t mask_mismatches = 0;  // attention: masked on one side only, or not masked beyond the row's own position
  std::optional<Place> first_mask_mismatch;
  int64_t non_finite_mismatches = 0;
  std::optional<Place> first_non_finite_mismatch;

  DiffClass diff_class = DiffClass::kExcellent;
  // What the worst token's relative L2 must keep at this depth (docs/compare.md); none for dtypes that are no floats.
  std::optional<double> bound;
  // Why this point alone makes the run different; empty where it does not.
  std::vector<std::string> reasons;
  std::shared_ptr<const DifferenceDetail> detail;  // null unless asked for
};

enum class FailureKind : uint8_t {
  kTraceError,   // the writer itself reported an error
  kMissing,      // a promised point is missing
  kMissingRows,  // a promised point lacks rows of tokens that were run
  kDuplicate,    // a point was recorded twice in one step
  kShape,        // row shapes differ, between the sides or between steps
  kShards,       // a shard is missing, or shards do not fit together
  kReplicas,     // ranks that should hold the same values do not
  kAllZero,      // zeros where the other side has none
  kSameAsLayer,  // byte-identical to another layer's
  kSameAsStep,   // byte-identical to another step's
  kIdentity,     // what holds in every correct implementation does not: a copy that is none, RoPE that changes norms
};
std::string_view FailureKindName(FailureKind kind);  // "missing", "all-zero", …

// A completeness failure: found before and beside every number.
struct Failure {
  FailureKind kind = FailureKind::kMissing;
  Side side = Side::kCandidate;
  std::string point;  // empty where it is about a whole trace
  std::string text;   // one line: found, expected
};

struct WeightDifference {
  std::string name;
  std::string text;
};

struct OneSidedPoint {
  std::string name;
  std::string why;  // why the other side has none: "not observable", "not selected", "not promised"
};

// The greedy choices after tokens that both sides recorded.
struct NextTokens {
  struct Difference {
    int sequence = -1;
    int position = -1;
    int reference = -1;
    int candidate = -1;
  };
  int64_t compared = 0;
  int64_t agree = 0;
  std::vector<Difference> differences;  // in order of sequence and position, at most 100
};

// One side's choice of the next token after a row of logits.
struct TokenSide {
  int32_t next = -1;  // as recorded (next_token), else the token of the largest logit
  // The largest logits, the first of equals first; -1 where there are fewer. NaN and -inf are never among them.
  std::array<int32_t, 5> ids{};
  std::array<float, 5> values{};
  double margin = 0;  // between the largest and the second
  double gap = 0;     // between the largest and that of the token that is the other side's largest
};

// Logits after one token that both sides have.
struct TokenRow {
  int sequence = -1;  // the reference's number
  int position = -1;
  TokenSide reference;
  TokenSide candidate;
  bool same_top = false;  // the same token has the largest logit
  int common_top5 = 0;    // tokens that are among the five largest of both
  int common_top10 = 0;
  double kl = 0;  // KL(reference || candidate) of the softmaxes, in nats; NaN where a row holds NaN or +inf
  // Of the differences candidate - reference over the vocabulary: the noise in the logits, whatever its cause.
  double noise_rms = 0;
  double noise_max = 0;
  double noise_relative_l2 = 0;  // against the reference's row
  double noise_reach = 0;        // two logits closer than that may change places (docs/compare.md)
  int64_t non_finite_mismatches = 0;
  bool within_noise = false;  // the noise can change the choice
  bool near_tie = false;      // and is small enough to be rounding

  bool same_next() const { return reference.next == candidate.next; }
};

// Which tokens the logits choose, wherever both sides have a row of them.
struct TokenComparison {
  std::vector<TokenRow> rows;  // by sequence and position
  int64_t same_top = 0;        // rows
  int64_t same_next = 0;
  int64_t near_ties = 0;
  int64_t different_near_ties = 0;  // rows where `next` differs and that are near ties
  double mean_common_top5 = 0;
  double mean_common_top10 = 0;
  int64_t rows_with_kl = 0;  // those where it is a number
  double mean_kl = 0;
  std::optional<size_t> max_kl_row;  // index in `rows`
  // The first row where `next` differs: from there on, two free runs go different ways.
  std::optional<size_t> first_different;
};

struct SideSummary {
  std::vector<std::string> traces;  // paths
  std::string producer;
  std::string model_type;
  DType storage = DType::kF32;
  bool has_arithmetic = false;  // false: storage was taken from the tensors
  size_t runs = 0;              // traces, the ranks of one run counted once
  size_t steps = 0;
  size_t sequences = 0;
  size_t tokens = 0;  // distinct (sequence, position)
  size_t points = 0;
  bool closed = true;
};

struct SequencePair {
  int reference = 0;
  int candidate = 0;
  size_t tokens = 0;  // positions that both have
  // Of those, ascending, with their ids; -1 where neither side knows one.
  std::vector<std::pair<int32_t, int32_t>> ids;
  // The first position that the reference, or else the candidate, ran in a decode step; -1: none.
  int32_t first_decode = -1;
};

// How the difference in the residual stream (`layer_output`) grows through the layers.
struct Growth {
  struct At {
    int layer = 0;
    double relative_l2 = 0;
  };
  At first, middle, last;  // of the layers that differ at all
  double per_layer = 1;    // factor: (last / first)^(1 / layers between them)
};

struct CompareResult {
  SideSummary reference;
  SideSummary candidate;
  std::vector<SequencePair> pairs;
  std::vector<Failure> failures;
  std::vector<WeightDifference> weights;
  size_t weights_compared = 0;
  std::vector<PointResult> points;       // in execution order
  std::array<size_t, 4> class_counts{};  // of the points, by DiffClass
  size_t bit_identical = 0;              // points
  size_t failing = 0;                    // points with reasons
  // Index in `points` of the first SIGNIFICANT one.
  std::optional<size_t> first_significant;
  // Index in `points` of the first that has reasons.
  std::optional<size_t> first_failing;
  std::vector<OneSidedPoint> only_reference;
  std::vector<OneSidedPoint> only_candidate;
  NextTokens next_tokens;
  TokenComparison tokens;  // without rows where no logits are in common
  std::vector<std::string> notes;
  std::optional<Growth> growth;      // none: the `layer_output` of fewer than two layers differs
  std::optional<double> atol, rtol;  // as asked for

  // 0: the same; 1: a point with reasons, a completeness failure or a different weight.
  int ExitCode() const;
};

// Several traces a side: batches split into runs, or the ranks of one run. Throws Error for what cannot be compared:
// bad traces, different tokens or configs, nothing in common.
CompareResult Compare(const std::vector<std::string>& reference_traces,
                      const std::vector<std::string>& candidate_traces, const CompareOptions& options = {});

// Compares a candidate with the reference's traces while it runs: nothing is written and no tensor is kept. The result
// is that of Compare() with the trace that the candidate would have written.
//
//   LiveComparison live({"py.trace"}, "my engine", info, {});
//   live.BeginStep(ids, positions, sequences, Phase::kPrefill);
//   live.Record("layer_0_attn_q_rope", q, DType::kBF16, {tokens, heads, head_dim}, strides);
//   live.EndStep();
//   CompareResult result = live.Finish();
//
// The candidate's sequences 0, 1, 2, … are the reference's in the order of their numbers, unless options.pairs says
// otherwise. One call at a time. Every call throws Error for bad input.
class LiveComparison {
 public:
  // info: what the candidate's trace.json would say; TraceInfo::tensors must be empty. name: stands in the report where
  // the path of a trace would. Its selection is applied to what is recorded.
  LiveComparison(const std::vector<std::string>& reference_traces, const std::string& name, const TraceInfo& info,
                 const CompareOptions& options = {});
  LiveComparison(LiveComparison&&) noexcept;
  LiveComparison& operator=(LiveComparison&&) noexcept;
  ~LiveComparison();

  // Trace::SetWeight's.
  void SetWeight(const std::string& name, DType dtype, const std::vector<int64_t>& shape, const std::string& hash);

  // One forward call; all lists [T], ids may be empty. A (sequence, position) can be run only once, and its id must be
  // the reference's.
  void BeginStep(std::span<const int32_t> input_ids, std::span<const int32_t> positions,
                 std::span<const int32_t> sequences, Phase phase);

  // Whether the open step's selection covers the point.
  bool Wants(const std::string& name) const;

  // data: [R, …] of that shape, token axis first; strides in elements, empty: packed. rows: [R] indices into the step's
  // tokens; empty: all of them. It is compared at once, with all threads, and not looked at afterwards. True if these
  // rows alone make the run different or are SIGNIFICANT. "next_token" (I32 [R]) is the greedy choice after each row.
  bool Record(const std::string& name, const void* data, DType dtype, const std::vector<int64_t>& shape,
              const std::vector<int64_t>& strides = {}, std::span<const int32_t> rows = {});

  void EndStep();

  // Everything that needs the whole candidate: completeness, weights, next tokens. Call it once.
  CompareResult Finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep
