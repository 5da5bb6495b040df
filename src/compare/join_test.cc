#include "compare/join.h"

#include <gmock/gmock.h>

#include "compare/fake_trace.h"

namespace lockstep {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr int kWidth = 12;
const char kPoint[] = "layer_0_attn_o_proj";

// A step with the rows of kPoint that these positions always have.
void AddStep(FakeTrace& trace, const std::vector<int32_t>& positions, int sequence = 0, int local = 0) {
  trace.AddStep(Ids(positions, sequence), positions, std::vector<int32_t>(positions.size(), local));
  trace.Add(kPoint, {static_cast<int64_t>(positions.size()), kWidth}, Rows(1, positions, kWidth, sequence));
}

FakeTrace OneShot(int tokens, int sequence = 0) {
  FakeTrace trace;
  AddStep(trace, Range(0, tokens), sequence);
  return trace;
}

void ExpectIdentical(const CompareResult& result, int64_t rows) {
  ASSERT_THAT(result.points, SizeIs(1));
  EXPECT_TRUE(result.points[0].bit_identical);
  EXPECT_EQ(result.points[0].rows, rows);
  EXPECT_THAT(result.failures, IsEmpty());
  EXPECT_EQ(result.ExitCode(), 0);
}

std::string ErrorOf(const FakeTrace& reference, const FakeTrace& candidate, const CompareOptions& options = {}) {
  try {
    CompareFakes(reference, candidate, options);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(JoinTest, ChunksAgainstOneShot) {
  const FakeTrace one = OneShot(10);
  FakeTrace chunks;
  AddStep(chunks, Range(0, 3));
  AddStep(chunks, Range(3, 9));
  AddStep(chunks, Range(9, 10));
  ExpectIdentical(CompareFakes(one, chunks), 10);
  ExpectIdentical(CompareFakes(chunks, one), 10);
}

TEST(JoinTest, BatchAgainstSingleRuns) {
  FakeTrace batch;
  std::vector<int32_t> positions, sequences, ids;
  std::vector<float> values;
  for (int position = 0; position < 4; ++position) {  // tokens of three sequences, interleaved, with padding
    for (int sequence : {2, 0, 1, -1}) {
      positions.push_back(position);
      sequences.push_back(sequence);
      ids.push_back(sequence < 0 ? -1 : Ids({position}, sequence)[0]);
      const auto row = Rows(1, {position}, kWidth, sequence);
      values.insert(values.end(), row.begin(), row.end());
    }
  }
  batch.AddStep(ids, positions, sequences);
  batch.Add(kPoint, {16, kWidth}, values);
  const FakeTrace a = OneShot(4, 0), b = OneShot(4, 1), c = OneShot(4, 2);
  ExpectIdentical(CompareViews({batch.View()}, {c.View(), a.View(), b.View()}, {}), 12);
  ExpectIdentical(CompareViews({a.View(), b.View(), c.View()}, {batch.View()}, {}), 12);
}

TEST(JoinTest, TransposedAxes) {
  const auto positions = Range(0, 5);
  const auto values = Rows(1, positions, 6);
  FakeTrace reference, candidate;
  for (FakeTrace* trace : {&reference, &candidate}) trace->AddStep(Ids(positions), positions);
  reference.Add("layer_0_attn_q_rope", {5, 2, 3}, values);
  std::vector<float> transposed;  // [head_dim, heads, tokens]
  for (int d = 0; d < 3; ++d) {
    for (int h = 0; h < 2; ++h) {
      for (int t = 0; t < 5; ++t) transposed.push_back(values[static_cast<size_t>(t * 6 + h * 3 + d)]);
    }
  }
  TraceTensor& tensor = candidate.Add("layer_0_attn_q_rope", {3, 2, 5}, transposed);
  tensor.axes = {"head_dim", "q_head", "token"};
  tensor.token_axis = 2;
  ExpectIdentical(CompareFakes(reference, candidate), 5);
}

TEST(JoinTest, FlattenedHeadsGetTheirHeadsBack) {
  const auto positions = Range(0, 5);
  FakeTrace reference, candidate;
  for (FakeTrace* trace : {&reference, &candidate}) trace->AddStep(Ids(positions), positions);
  reference.Add("layer_0_attn_q_rope", {5, 2, 3}, Rows(1, positions, 6));
  candidate.Add("layer_0_attn_q_rope", {5, 6}, Rows(1, positions, 6));
  const CompareResult result = CompareFakes(reference, candidate);
  ExpectIdentical(result, 5);
  EXPECT_EQ(result.points[0].worst_head, 0);
  EXPECT_THAT(result.points[0].row_shape, testing::ElementsAre(2, 3));
}

// Two ranks, each with a half of the heads.
FakeTrace Sharded(const std::vector<float>& values, int ranks_held = 2) {
  FakeTrace trace;
  trace.AddStep(Ids(Range(0, 5)), Range(0, 5));
  for (int rank = 0; rank < ranks_held; ++rank) {
    std::vector<float> part;
    for (size_t i = 0; i < values.size(); ++i) {
      if (static_cast<int>(i / 3 % 2) == rank) part.push_back(values[i]);
    }
    TraceTensor& tensor = trace.Add("layer_0_attn_q_rope", {5, 1, 3}, part);
    tensor.rank = rank;
    tensor.axes = {"token", "q_head", "head_dim"};
    tensor.shard = Shard{"q_head", rank, 2};
  }
  return trace;
}

TEST(JoinTest, ShardsArePutTogether) {
  const auto values = Rows(1, Range(0, 5), 6);
  FakeTrace whole;
  whole.AddStep(Ids(Range(0, 5)), Range(0, 5));
  whole.Add("layer_0_attn_q_rope", {5, 2, 3}, values);
  ExpectIdentical(CompareFakes(whole, Sharded(values)), 5);

  const CompareResult missing = CompareFakes(whole, Sharded(values, 1));
  ASSERT_THAT(missing.failures, SizeIs(1));
  EXPECT_EQ(missing.failures[0].kind, FailureKind::kShards);
  EXPECT_THAT(missing.failures[0].text, HasSubstr("shard 1 of 2 is missing"));
}

TEST(JoinTest, PartialSumsAreAddedAndReplicasMustAgree) {
  const FakeTrace whole = OneShot(5);
  const auto values = Rows(1, Range(0, 5), kWidth);
  std::vector<float> half(values);
  for (float& value : half) value /= 2;
  FakeTrace partial, replica;
  for (FakeTrace* trace : {&partial, &replica}) trace->AddStep(Ids(Range(0, 5)), Range(0, 5));
  for (int rank = 0; rank < 2; ++rank) {
    TraceTensor& tensor = partial.Add(kPoint, {5, kWidth}, half);
    tensor.rank = rank;
    tensor.partial = true;
  }
  ExpectIdentical(CompareFakes(whole, partial), 5);

  replica.Add(kPoint, {5, kWidth}, values);
  replica.Add(kPoint, {5, kWidth}, half).rank = 1;
  const CompareResult result = CompareFakes(whole, replica);
  ASSERT_THAT(result.failures, SizeIs(1));
  EXPECT_EQ(result.failures[0].kind, FailureKind::kReplicas);
}

TEST(JoinTest, TracesOfTheRanksAreOneRun) {
  const FakeTrace whole = OneShot(5), rank0 = OneShot(5);
  FakeTrace rank1 = OneShot(5);
  rank1.meta.rank = 1;
  rank1.steps[0].tensors[0].rank = 1;
  const CompareResult result = CompareViews({whole.View()}, {rank0.View(), rank1.View()}, {});
  ExpectIdentical(result, 5);
  EXPECT_EQ(result.candidate.runs, 1u);
}

// Position 3 was speculated with one token and then run again with another.
TEST(JoinTest, OfRecomputedRowsTheLastWithTheSameTokenWins) {
  FakeTrace speculative = OneShot(3);
  speculative.AddStep({999}, {3});
  speculative.Add(kPoint, {1, kWidth}, Rows(7, {3}, kWidth));
  AddStep(speculative, {3});
  ExpectIdentical(CompareFakes(OneShot(4), speculative), 4);
  ExpectIdentical(CompareFakes(speculative, OneShot(4)), 4);

  // Run twice with the same token: the later row counts, on both sides.
  FakeTrace twice = OneShot(3);
  twice.AddStep(Ids({3}), {3});
  twice.Add(kPoint, {1, kWidth}, Rows(7, {3}, kWidth));
  AddStep(twice, {3});
  ExpectIdentical(CompareFakes(OneShot(4), twice), 4);
  ExpectIdentical(CompareFakes(twice, OneShot(4)), 4);
}

TEST(JoinTest, RowsOnOneSideAreCounted) {
  const FakeTrace reference = OneShot(6);
  FakeTrace candidate;
  candidate.AddStep(Ids(Range(0, 6)), Range(0, 6));
  candidate.Add(kPoint, {2, kWidth}, Rows(1, {1, 5}, kWidth), {1, 5});
  const CompareResult result = CompareFakes(reference, candidate);
  ExpectIdentical(result, 2);
  EXPECT_EQ(result.points[0].rows_only_reference, 4);
}

TEST(JoinTest, UsersOwnPoints) {
  FakeTrace reference = OneShot(4), candidate = OneShot(4);
  for (FakeTrace* trace : {&reference, &candidate}) trace->Add("my_own", {4, 2, 2}, Rows(3, Range(0, 4), 4));
  reference.Add("layer_0_mine", {4, 2}, Rows(3, Range(0, 4), 2));
  candidate.Add("layer_0_mine", {4, 3}, Rows(3, Range(0, 4), 3));
  const CompareResult result = CompareFakes(reference, candidate);
  ASSERT_THAT(result.points, SizeIs(2));
  EXPECT_EQ(result.points[1].name, "my_own");
  EXPECT_TRUE(result.points[1].bit_identical);
  ASSERT_THAT(result.failures, SizeIs(1));
  EXPECT_EQ(result.failures[0].kind, FailureKind::kShape);
  EXPECT_EQ(result.failures[0].point, "layer_0_mine");
  EXPECT_THAT(result.failures[0].text, testing::AllOf(HasSubstr("[3]"), HasSubstr("[2]")));
  EXPECT_EQ(result.ExitCode(), 1);
}

TEST(JoinTest, DifferentTokensAreNamed) {
  const FakeTrace reference = OneShot(6);
  FakeTrace candidate = OneShot(6);
  candidate.steps[0].input_ids[4] = 7;
  const std::string error = ErrorOf(reference, candidate);
  EXPECT_THAT(error, HasSubstr("position 4"));
  EXPECT_THAT(error, HasSubstr("token id 104 in the reference, 7 in the candidate"));
  EXPECT_THAT(error, HasSubstr("lockstep capture --from REFERENCE"));
}

TEST(JoinTest, APrefixIsPairedAndTheUserMayPair) {
  const CompareResult prefix = CompareFakes(OneShot(6), OneShot(4));
  ExpectIdentical(prefix, 4);
  EXPECT_EQ(prefix.points[0].rows_only_reference, 2);

  // Two sequences of the same tokens, the second with other values: pairing decides.
  FakeTrace reference = OneShot(4), candidate;
  candidate.AddStep(Ids(Range(0, 4)), Range(0, 4), {0, 0, 0, 0});
  candidate.Add(kPoint, {4, kWidth}, Rows(9, Range(0, 4), kWidth));
  AddStep(candidate, Range(0, 4), 0, 1);
  EXPECT_EQ(CompareFakes(reference, candidate).ExitCode(), 1);
  ExpectIdentical(CompareFakes(reference, candidate, {.pairs = {{0, 1}}}), 4);
  EXPECT_THAT(ErrorOf(reference, candidate, {.pairs = {{0, 5}}}), HasSubstr("no sequence 5"));
}

TEST(JoinTest, DifferentConfigsAreNamed) {
  FakeTrace reference = OneShot(2), candidate = OneShot(2);
  reference.meta.config = {{"rope_theta", "1000000"}, {"note", "1"}, {"head_dim", "128"}};
  candidate.meta.config = {{"rope_theta", "10000"}, {"note", "2"}};
  const std::string error = ErrorOf(reference, candidate);
  EXPECT_THAT(error, HasSubstr("rope_theta is 1000000 in the reference"));
  EXPECT_THAT(error, HasSubstr("10000 in the candidate"));
  EXPECT_THAT(error, testing::Not(HasSubstr("note")));
}

TEST(JoinTest, NothingInCommon) {
  FakeTrace other;
  other.AddStep(Ids(Range(0, 2)), Range(0, 2));
  other.Add("logits", {2, 3}, Rows(1, Range(0, 2), 3));
  const std::string error = ErrorOf(OneShot(2), other);
  EXPECT_THAT(error, HasSubstr(kPoint));
  EXPECT_THAT(error, HasSubstr("logits"));
  EXPECT_THAT(ErrorOf(OneShot(2), OneShot(2), {.points = "nothing*"}), HasSubstr("none of the 1 points"));
  EXPECT_THAT(ErrorOf(OneShot(2), OneShot(2), {.layers = "x"}), HasSubstr("selection of layers"));
}

TEST(JoinTest, NextTokens) {
  FakeTrace reference = OneShot(3), candidate = OneShot(3);
  for (FakeTrace* trace : {&reference, &candidate}) {
    TraceTensor& tensor = trace->Add("next_token", {2}, {0, 0}, {1, 2});
    tensor.dtype = DType::kI32;
    const int32_t choices[2] = {5, trace == &reference ? 6 : 8};
    std::memcpy(const_cast<std::byte*>(tensor.data), choices, sizeof(choices));
  }
  const CompareResult result = CompareFakes(reference, candidate);
  EXPECT_EQ(result.next_tokens.compared, 2);
  EXPECT_EQ(result.next_tokens.agree, 1);
  ASSERT_THAT(result.next_tokens.differences, SizeIs(1));
  EXPECT_EQ(result.next_tokens.differences[0].position, 2);
  EXPECT_EQ(result.next_tokens.differences[0].candidate, 8);
}

}  // namespace
}  // namespace lockstep
