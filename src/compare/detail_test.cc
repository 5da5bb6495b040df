// Every figure of DifferenceDetail against a slow direct computation.
#include "compare/detail.h"

#include <gmock/gmock.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <cmath>
#include <limits>
#include <map>

#include "compare/fake_trace.h"

namespace lockstep {
namespace {

using testing::ElementsAre;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Call {
  int sequence = 0;
  std::vector<int32_t> positions;
  Phase phase = Phase::kPrefill;
};

struct Shape {
  const char* name = "layer_0_attn_q_rope";
  int heads = 1;  // 1: none
  int width = 8;  // of a head, or the row
  DType dtype_a = DType::kF32;
  DType dtype_b = DType::kF32;
  int row() const { return heads * width; }
};

// Both sides' rows by token, as they are stored.
struct TwoSides {
  Shape shape;
  FakeTrace reference, candidate;
  std::map<RowKey, std::vector<float>> a, b;
  std::map<RowKey, Phase> phases;

  TwoSides(const Shape& of, const std::vector<Call>& reference_calls, const std::vector<Call>& candidate_calls,
           bool odd = false)
      : shape(of) {
    for (const Call& call : reference_calls) AddCall(call, false, odd);
    for (const Call& call : candidate_calls) AddCall(call, true, odd);
  }

  PointResult Compared() const { return CompareFakes(reference, candidate, {.details = true}).points.at(0); }

 private:
  std::vector<float> RowOf(const RowKey& key, bool is_candidate, bool odd) const {
    std::vector<float> row = Rows(1, {key.position}, shape.row(), key.sequence);
    if (odd && key.position % 3 == 1) row[2] = key.position % 2 ? kNan : kInf;
    if (!is_candidate) return row;
    const std::vector<float> noise = Rows(2, {key.position}, shape.row(), key.sequence);
    for (size_t i = 0; i < row.size(); ++i) row[i] += noise[i] * std::pow(10.0f, -static_cast<float>(i % 7) - 1);
    if (odd && key.position % 5 == 2) row[row.size() - 1] = key.position % 2 ? kNan : -kInf;
    return row;
  }

  void AddCall(const Call& call, bool is_candidate, bool odd) {
    FakeTrace& trace = is_candidate ? candidate : reference;
    const DType dtype = is_candidate ? shape.dtype_a : shape.dtype_b;
    trace
        .AddStep(Ids(call.positions, call.sequence), call.positions,
                 std::vector<int32_t>(call.positions.size(), call.sequence))
        .phase = call.phase;
    std::vector<float> values;
    for (const int32_t position : call.positions) {
      const RowKey key{call.sequence, position};
      std::vector<float> row = RowOf(key, is_candidate, odd);
      values.insert(values.end(), row.begin(), row.end());
      std::vector<std::byte> bytes(row.size() * DTypeSize(dtype));
      NarrowFromFloat(dtype, row.data(), row.size(), bytes.data());
      WidenToFloat(dtype, bytes.data(), row.size(), row.data());
      (is_candidate ? a : b)[key] = row;
      if (is_candidate) phases[key] = call.phase;
    }
    std::vector<int64_t> extents = {static_cast<int64_t>(call.positions.size()), shape.heads, shape.width};
    if (shape.heads == 1) extents = {extents[0], shape.width};
    trace.Add(shape.name, extents, values, {}, dtype);
  }
};

// Of elements [begin, end) of rows.
double Naive(const std::vector<std::pair<const std::vector<float>*, const std::vector<float>*>>& rows, size_t begin,
             size_t end, bool* differs = nullptr) {
  double dd = 0, bb = 0;
  for (const auto& [a, b] : rows) {
    for (size_t i = begin; i < end; ++i) {
      const double x = (*a)[i], y = (*b)[i];
      if (std::isfinite(x) && std::isfinite(y)) {
        dd += (x - y) * (x - y), bb += y * y;
      } else if (differs && !(x == y) && !(std::isnan(x) && std::isnan(y))) {
        *differs = true;
      }
    }
  }
  return dd == 0 ? 0 : std::sqrt(dd / bb);
}

void CheckMap(const TwoSides& sides, const ErrorMap& map) {
  const auto elements = static_cast<int64_t>(sides.shape.row());
  const int64_t unit = map.heads ? sides.shape.width : 1;  // elements of a head or channel
  ASSERT_EQ(map.heads, sides.shape.heads > 1);
  ASSERT_LE(map.bands.size(), ErrorMap::kMaxBands);
  ASSERT_LE(map.columns, static_cast<int64_t>(ErrorMap::kMaxColumns));
  ASSERT_GE(map.columns * map.per_column * unit, elements);
  ASSERT_LT((map.columns - 1) * map.per_column * unit, elements);
  ASSERT_EQ(map.values.size(), map.bands.size() * static_cast<size_t>(map.columns));
  size_t rows_seen = 0;
  RowKey before{-1, -1};
  for (size_t i = 0; i < map.bands.size(); ++i) {
    const ErrorMap::Band& band = map.bands[i];
    ASSERT_LT(before, (RowKey{band.sequence, band.first}));
    ASSERT_LE(band.first, band.last);
    before = {band.sequence, band.last};
    for (int64_t c = 0; c < map.columns; ++c) {
      double worst = 0;
      for (auto row = sides.a.lower_bound({band.sequence, band.first});
           row != sides.a.end() && row->first <= RowKey{band.sequence, band.last}; ++row) {
        if (!sides.b.contains(row->first)) continue;
        rows_seen += c == 0;
        bool differs = false;
        const double value =
            Naive({{&row->second, &sides.b.at(row->first)}}, static_cast<size_t>(c * map.per_column * unit),
                  static_cast<size_t>(std::min(elements, (c + 1) * map.per_column * unit)), &differs);
        worst = std::max(worst, differs ? kInf : value);
      }
      const double found = map.values[i * static_cast<size_t>(map.columns) + static_cast<size_t>(c)];
      if (std::isinf(worst)) {
        EXPECT_EQ(found, worst) << "band " << i << ", column " << c;
      } else {
        EXPECT_NEAR(found, worst, 1e-6 * worst) << "band " << i << ", column " << c;
      }
    }
  }
  size_t joined = 0;
  for (const auto& [key, row] : sides.a) joined += sides.b.contains(key);
  EXPECT_EQ(rows_seen, joined);
}

void CheckPhase(const TwoSides& sides, Phase phase, double found) {
  std::vector<std::pair<const std::vector<float>*, const std::vector<float>*>> rows;
  for (const auto& [key, row] : sides.a) {
    if (sides.phases.at(key) == phase && sides.b.contains(key)) rows.emplace_back(&row, &sides.b.at(key));
  }
  if (rows.empty()) {
    EXPECT_TRUE(std::isnan(found));
  } else {
    EXPECT_NEAR(found, Naive(rows, 0, static_cast<size_t>(sides.shape.row())), 1e-12);
  }
}

void CheckWindow(const TwoSides& sides, const PointResult& point) {
  const ValueWindow& window = point.detail->window;
  const Place& worst = point.worst;
  ASSERT_EQ(window.sequence, worst.sequence);
  ASSERT_EQ(window.head, worst.head);
  std::vector<int> positions, near;
  for (const auto& [key, row] : sides.a) {
    if (key.sequence == worst.sequence && sides.b.contains(key)) positions.push_back(key.position);
  }
  const auto at = std::find(positions.begin(), positions.end(), worst.position);
  for (auto i = positions.begin(); i != positions.end(); ++i) {
    if (std::abs(i - at) <= 2) near.push_back(*i);
  }
  EXPECT_EQ(window.positions, near);
  EXPECT_EQ(window.channels, Range(std::max(0, worst.channel - 4), std::min(sides.shape.width, worst.channel + 5)));
  size_t i = 0;
  for (const int position : window.positions) {
    for (const int channel : window.channels) {
      const auto element = static_cast<size_t>(std::max(0, worst.head) * sides.shape.width + channel);
      EXPECT_EQ(window.candidate.at(i), sides.a.at({worst.sequence, position})[element]);
      EXPECT_EQ(window.reference.at(i++), sides.b.at({worst.sequence, position})[element]);
    }
  }
  EXPECT_EQ(window.candidate.size(), i);
}

void CheckAll(const TwoSides& sides) {
  SCOPED_TRACE(testing::Message() << sides.shape.name << " " << sides.shape.heads << " x " << sides.shape.width);
  const PointResult point = sides.Compared();
  ASSERT_NE(point.detail, nullptr);
  CheckMap(sides, point.detail->map);
  CheckPhase(sides, Phase::kPrefill, point.detail->relative_l2.prefill);
  CheckPhase(sides, Phase::kDecode, point.detail->relative_l2.decode);
}

// Two sequences, decode steps, and tokens that only one side has; the sides cut their calls apart differently.
const std::vector<Call> kReference = {{0, Range(0, 9)}, {1, Range(0, 5)}, {0, {9, 10}, Phase::kDecode}, {3, {0}}};
const std::vector<Call> kCandidate = {{0, Range(0, 4)},         {0, Range(4, 8)},         {1, Range(0, 4)},
                                      {0, {8}, Phase::kDecode}, {0, {9}, Phase::kDecode}, {1, {4}, Phase::kDecode},
                                      {1, {5}, Phase::kDecode}};

TEST(DetailTest, AgreesWithTheNaiveTwin) {
  const Shape shapes[] = {{"layer_0_attn_q_rope", 3, 17},
                          {"layer_0_attn_q_rope", 3, 17, DType::kBF16, DType::kF32},
                          {"layer_0_attn_q_rope", 70, 3, DType::kBF16, DType::kBF16},  // two heads a column
                          {"layer_0_attn_q_rope", 2, 2500},                            // a head of several chunks
                          {"layer_0_attn_o_proj", 1, 5},
                          {"layer_0_attn_o_proj", 1, 100, DType::kF16, DType::kBF16},  // two channels a column
                          {"layer_0_attn_o_proj", 1, 5003}};
  for (const Shape& shape : shapes) {
    const TwoSides sides(shape, kReference, kCandidate);
    CheckAll(sides);
    CheckWindow(sides, sides.Compared());
    CheckAll(TwoSides(shape, kReference, kCandidate, true));
  }
}

TEST(DetailTest, MoreRowsThanBands) {
  const TwoSides sides({"layer_0_attn_q_rope", 4, 8}, {{0, Range(0, 700)}, {1, Range(0, 70)}, {2, Range(3, 4)}},
                       {{1, Range(0, 70)}, {2, Range(3, 4)}, {0, Range(0, 300)}, {0, Range(300, 700)}}, true);
  CheckAll(sides);
  EXPECT_GT(sides.Compared().detail->map.bands.size(), 80u);
}

TEST(DetailTest, OfMoreSequencesThanBandsTheWorstAreKept) {
  FakeTrace reference, candidate;
  for (int sequence = 0; sequence < 120; ++sequence) {
    for (FakeTrace* trace : {&reference, &candidate}) {
      trace->AddStep(Ids({0, 1}, sequence), {0, 1}, {sequence, sequence});
      const auto error = static_cast<float>(trace == &candidate && sequence != 7 ? 0.001 * (sequence + 1) : 0);
      trace->Add("layer_0_attn_o_proj", {2, 2}, {1, 1, 1, 1 + (sequence == 5 && error > 0 ? 9.0f : error)});
    }
  }
  const ErrorMap map = CompareFakes(reference, candidate, {.details = true}).points.at(0).detail->map;
  ASSERT_EQ(map.bands.size(), ErrorMap::kMaxBands);
  EXPECT_EQ(map.bands[0].sequence, 5);
  EXPECT_EQ(map.bands[1].sequence, 25);  // the best 23 and the equal one are left out
  EXPECT_EQ(map.bands.back().sequence, 119);
  EXPECT_EQ(map.bands[1].first, 0);
  EXPECT_EQ(map.bands[1].last, 1);
  EXPECT_FLOAT_EQ(map.values[1], 9);
  EXPECT_NEAR(map.values.back(), 0.12, 1e-6);
}

TEST(DetailTest, ThreadsDoNotShow) {
#ifdef _OPENMP
  const TwoSides sides({"layer_0_attn_q_rope", 2, 64}, {{0, Range(0, 2000)}},
                       {{0, Range(0, 1500)}, {0, Range(1500, 2000), Phase::kDecode}}, true);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const PointResult one = sides.Compared();
  for (const int n : {2, 3, 5}) {
    omp_set_num_threads(n);
    const PointResult many = sides.Compared();
    EXPECT_EQ(one.detail->map.values, many.detail->map.values);
    EXPECT_EQ(one.detail->relative_l2.prefill, many.detail->relative_l2.prefill);
    EXPECT_EQ(one.detail->relative_l2.decode, many.detail->relative_l2.decode);
    EXPECT_EQ(one.detail->window.reference, many.detail->window.reference);
  }
  omp_set_num_threads(threads);
#endif
}

TEST(DetailTest, NothingUnlessAskedForAndNoOtherFigureChanges) {
  const TwoSides sides({"layer_0_attn_o_proj", 1, 300}, {{0, Range(0, 50)}}, {{0, Range(0, 50)}}, true);
  const PointResult without = CompareFakes(sides.reference, sides.candidate).points.at(0);
  EXPECT_EQ(without.detail, nullptr);
  EXPECT_EQ(without.relative_l2, sides.Compared().relative_l2);
  EXPECT_EQ(without.mean_abs, sides.Compared().mean_abs);
}

TEST(DetailTest, EqualRowsAreZeroAndAnErrorAgainstZeroIsInfinite) {
  FakeTrace reference, candidate;
  for (FakeTrace* trace : {&reference, &candidate}) trace->AddStep({1, 2}, {0, 1});
  reference.Add("layer_0_attn_o_proj", {2, 3}, {1, kNan, 3, 4, 0, kInf});
  candidate.Add("layer_0_attn_o_proj", {2, 3}, {1, kNan, 3, 5, 1, kInf});
  const ErrorMap map = CompareFakes(reference, candidate, {.details = true}).points.at(0).detail->map;
  EXPECT_THAT(map.values, ElementsAre(0, 0, 0, 0.25f, kInf, 0));
}

// Where no two numbers were compared, the window is around the first element that could not be.
TEST(DetailTest, WindowOfAPointWithoutNumbers) {
  FakeTrace reference, candidate;
  for (FakeTrace* trace : {&reference, &candidate}) trace->AddStep({1, 2}, {0, 1});
  reference.Add("layer_0_attn_o_proj", {2, 2}, {kNan, kNan, 3, 4});
  candidate.Add("layer_0_attn_o_proj", {2, 2}, {kNan, kNan, kNan, kInf});
  const ValueWindow window = CompareFakes(reference, candidate, {.details = true}).points.at(0).detail->window;
  EXPECT_THAT(window.positions, ElementsAre(0, 1));
  EXPECT_EQ(window.reference[3], 4);
  EXPECT_EQ(window.candidate[3], kInf);
}

// Rows of two heads; the keys of the candidate's columns are given.
TEST(DetailTest, Scores) {
  FakeTrace reference, candidate;
  for (FakeTrace* trace : {&reference, &candidate}) trace->AddStep({1, 2}, {0, 1});
  reference.Add("layer_0_attn_scores", {2, 2, 2}, {1, -kInf, 4, -kInf, 2, 3, 5, 6});
  candidate.Add("layer_0_attn_scores", {2, 2, 2}, {7, 1, 7, 4, 3, 3, 7, 5}).keys = {-1, 0, 1, 0};
  PointResult point = CompareFakes(reference, candidate, {.details = true}).points.at(0);
  const auto l2 = [](double d, double x, double y) { return testing::FloatNear(std::sqrt(d / (x * x + y * y)), 1e-6); };
  EXPECT_TRUE(point.detail->map.heads);
  EXPECT_THAT(point.detail->map.values, ElementsAre(0, 0, l2(1, 2, 3), l2(1, 5, 6)));
  const ValueWindow& window = point.detail->window;
  EXPECT_EQ(point.worst.head, 0);
  EXPECT_THAT(window.positions, ElementsAre(0, 1));
  EXPECT_THAT(window.channels, ElementsAre(0, 1));
  EXPECT_THAT(window.reference, ElementsAre(1, -kInf, 2, 3));
  EXPECT_THAT(window.candidate, ElementsAre(1, -kInf, 3, 3));

  candidate.steps[0].tensors[0].keys = {-1, 0, 1, -1};  // one key is masked on one side
  point = CompareFakes(reference, candidate, {.details = true}).points.at(0);
  EXPECT_THAT(point.detail->map.values, ElementsAre(0, 0, kInf, kInf));
}

TEST(DetailTest, Probabilities) {
  FakeTrace reference, candidate;
  for (FakeTrace* trace : {&reference, &candidate}) trace->AddStep({1, 2}, {0, 1});
  reference.Add("layer_0_attn_probs", {2, 1, 3}, {1, 0, 0, 0.5, 0.5, 0});
  candidate.Add("layer_0_attn_probs", {2, 1, 2}, {1, 0, 0.25, 0.75});
  const PointResult point = CompareFakes(reference, candidate, {.details = true}).points.at(0);
  EXPECT_THAT(point.detail->map.values, ElementsAre(0, 0.5f));
  EXPECT_THAT(point.detail->window.candidate, ElementsAre(1, 0, 0.25, 0.75));
}

TEST(DetailTest, IdsOfTheTokensInCommon) {
  FakeTrace reference, candidate;
  reference.AddStep({5, -1, 7, 8}, {0, 1, 2, 4});
  reference.Add("layer_0_attn_o_proj", {4, 1}, {1, 2, 3, 4});
  candidate.AddStep({5, 6, 7, 9}, {0, 1, 2, 3});
  candidate.Add("layer_0_attn_o_proj", {4, 1}, {1, 2, 3, 4});
  const SequencePair pair = CompareFakes(reference, candidate).pairs.at(0);
  EXPECT_THAT(pair.ids, ElementsAre(std::pair(0, 5), std::pair(1, 6), std::pair(2, 7)));
  EXPECT_EQ(pair.tokens, pair.ids.size());
}

}  // namespace
}  // namespace lockstep
