#include "compare/identities.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>

#include "base/convert.h"
#include "base/mapped_file.h"
#include "base/parallel.h"
#include "compare/classify.h"
#include "lockstep/dtype.h"
#include "lockstep/points.h"

namespace lockstep {
namespace {

// One row before and after an op, of the same token in the same step.
struct RowPair {
  int32_t sequence = 0;
  int32_t position = 0;
  RowAt before, after;
};

std::string Text(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", value);
  return text;
}

std::string Where(const RowPair& row) {
  return "sequence " + std::to_string(row.sequence) + ", position " + std::to_string(row.position);
}

// Both points of an identity, with the rows that they have in common.
class Sides {
 public:
  Sides(const SideRuns& side, const std::map<int, int>& numbers, const std::string& before, const std::string& after)
      : before_(Collect(side, numbers, before)), after_(Collect(side, numbers, after)) {
    std::map<std::tuple<size_t, size_t, int32_t>, RowAt> found;
    for (const RowRef& row : before_.rows) found[TokenOf(before_, row)] = row.at;
    for (const RowRef& row : after_.rows) {
      const auto at = found.find(TokenOf(after_, row));
      if (at == found.end()) continue;
      rows_.push_back({row.sequence, row.position, at->second, row.at});
      const Piece &b = Before(rows_.back()), &a = After(rows_.back());
      // Sums over ranks are rounded when they are stored again.
      const bool usable = b.row_size() == a.row_size() && !b.tensor().partial && !a.tensor().partial &&
                          IsFloat(b.dtype()) && IsFloat(a.dtype());
      if (!usable) rows_.pop_back();
    }
  }

  const std::vector<RowPair>& rows() const { return rows_; }
  const Piece& Before(const RowPair& row) const { return before_.pieces[static_cast<size_t>(row.before.piece)]; }
  const Piece& After(const RowPair& row) const { return after_.pieces[static_cast<size_t>(row.after.piece)]; }

 private:
  static PointRows Collect(const SideRuns& side, const std::map<int, int>& numbers, const std::string& name) {
    const std::vector<StepTensors>& steps = side.points.at(name);
    std::vector<Failure> told_already;
    return CollectRows(side, name, steps, RowAxes(name, *steps.front().tensors.front()), numbers, &told_already);
  }

  static std::tuple<size_t, size_t, int32_t> TokenOf(const PointRows& point, const RowRef& row) {
    const auto piece = static_cast<size_t>(row.at.piece);
    return {point.where[piece].run, point.where[piece].step,
            point.pieces[piece].rows()[static_cast<size_t>(row.at.row)]};
  }

  PointRows before_, after_;
  std::vector<RowPair> rows_;
};

// One step of the coarser dtype, at the larger value.
double StepOf(double a, double b, DType x, DType y) {
  const double largest = std::max({std::abs(a), std::abs(b), 0x1p-14});  // below it, f16's steps are equal
  return std::ldexp(1.0, std::ilogb(largest) - std::min(FractionBits(x), FractionBits(y)));
}

bool Equal(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// The first row that is no copy; empty where all are.
std::string CopyProblem(const Sides& sides, const std::string& before) {
  std::vector<std::byte> gathered_a, gathered_b;
  std::vector<float> a, b;
  for (const RowPair& row : sides.rows()) {
    const Piece &from = sides.Before(row), &to = sides.After(row);
    const Piece::Row x = from.At(row.before.row, gathered_a), y = to.At(row.after.row, gathered_b);
    const auto size = static_cast<size_t>(from.row_size());
    if (x.dtype == y.dtype && std::memcmp(x.data, y.data, size * DTypeSize(x.dtype)) == 0) continue;
    a.resize(size), b.resize(size);
    WidenToFloat(x.dtype, x.data, size, a.data());
    WidenToFloat(y.dtype, y.data, size, b.data());
    for (size_t i = 0; i < size; ++i) {
      if (Equal(a[i], b[i])) continue;
      if (x.dtype != y.dtype && std::abs(double{a[i]} - b[i]) <= StepOf(a[i], b[i], x.dtype, y.dtype)) continue;
      return "expected a copy of " + before + ", found " + Text(b[i]) + " for " + Text(a[i]) + " at " + Where(row) +
             ", channel " + std::to_string(i);
    }
  }
  return "";
}

// A pair of channels whose norm RoPE changed.
struct NormChange {
  RowPair row;
  size_t head = 0, pair = 0;
  double before = 0, after = 0;
};

class RopeCheck {
 public:
  RopeCheck(const Sides& sides, int64_t head_dim, double roundoff)
      : sides_(sides), head_dim_(head_dim), roundoff_(roundoff) {}

  // What is wrong, in words; empty where nothing is.
  std::string Problem() {
    for (const RowPair& row : Sampled()) {
      if (Look(row)) break;
    }
    if (half_ && interleaved_) {
      return "expected RoPE to keep the norm of each pair of channels, found " + Text(half_->before) + " turned into " +
             Text(half_->after) + " (" + Text(half_->after / half_->before) + " times) at " + Where(half_->row) +
             ", head " + std::to_string(half_->head) + ", channels " + std::to_string(half_->pair) + " and " +
             std::to_string(half_->pair + static_cast<size_t>(d_) / 2) + " (and neighbouring channels are no pairs)";
    }
    return moved_;
  }

 private:
  // Every row at position 0 and some of the others: rotations are all alike.
  std::vector<RowPair> Sampled() const {
    constexpr size_t kRows = 48;
    std::vector<RowPair> out;
    const size_t step = std::max<size_t>(1, sides_.rows().size() / kRows);
    for (size_t i = 0; i < sides_.rows().size(); ++i) {
      if (i % step == 0 || sides_.rows()[i].position == 0) out.push_back(sides_.rows()[i]);
    }
    return out;
  }

  // True once both pairings are refuted.
  bool Look(const RowPair& row) {
    const Piece &before = sides_.Before(row), &after = sides_.After(row);
    d_ = before.row_shape().size() == 2 ? before.row_shape()[1] : head_dim_;
    if (d_ <= 0 || d_ % 2 != 0 || before.row_size() % d_ != 0) return false;
    const auto size = static_cast<size_t>(before.row_size());
    a_.resize(size), b_.resize(size);
    before.Read(row.before.row, a_.data());
    after.Read(row.after.row, b_.data());
    const auto d = static_cast<size_t>(d_);
    for (size_t head = 0; head < size / d; ++head) {
      for (size_t i = 0; i < d / 2; ++i) {
        if (!half_) half_ = Changed(row, head, i, i + d / 2, d);
        if (!interleaved_) interleaved_ = Changed(row, head, 2 * i, 2 * i + 1, d);
      }
    }
    if (row.position == 0 && moved_.empty()) LookAtStart(row);
    return half_ && interleaved_;
  }

  // The products, their sum, and the tables are rounded: together some four half steps, relative to the pair's norm.
  std::optional<NormChange> Changed(const RowPair& row, size_t head, size_t i, size_t j, size_t d) const {
    constexpr double kRoundings = 6;
    const double before = std::hypot(double{a_[head * d + i]}, double{a_[head * d + j]});
    const double after = std::hypot(double{b_[head * d + i]}, double{b_[head * d + j]});
    if (!std::isfinite(before) || !std::isfinite(after)) return std::nullopt;
    if (std::abs(after - before) <= kRoundings * roundoff_ * std::max(before, after) + kSmallest) return std::nullopt;
    return NormChange{row, head, i, before, after};
  }

  // cos(0) is 1 in every dtype, but the result may be stored in a coarser one.
  void LookAtStart(const RowPair& row) {
    for (size_t i = 0; i < a_.size(); ++i) {
      const double a = a_[i], b = b_[i];
      if (!std::isfinite(a) || !std::isfinite(b)) continue;
      if (std::abs(a - b) <= 2 * roundoff_ * std::max(std::abs(a), std::abs(b)) + kSmallest) continue;
      const auto d = static_cast<size_t>(d_);
      moved_ = "expected RoPE to leave position 0 as it was, found " + Text(b_[i]) + " for " + Text(a_[i]) + " at " +
               Where(row) + ", head " + std::to_string(i / d) + ", channel " + std::to_string(i % d);
      return;
    }
  }

  static constexpr double kSmallest = 0x1p-22;  // f16 has few bits left there

  const Sides& sides_;
  int64_t head_dim_;
  double roundoff_;
  int64_t d_ = 0;
  std::vector<float> a_, b_;
  std::optional<NormChange> half_, interleaved_;
  std::string moved_;
};

// A config that scales RoPE, as YaRN does, may change norms by a constant.
bool ScalesRope(const SideRuns& side) {
  const auto scales = [](const std::string& value) {
    const bool plain =
        value == "null" || value.find("\"rope_type\":\"default\"") != value.npos || value.find("type\":") == value.npos;
    return !plain;
  };
  for (const Run& run : side.runs) {
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
      const auto found = run.meta().config.find(key);
      if (found != run.meta().config.end() && scales(found->second)) return true;
    }
  }
  return false;
}

struct Identity {
  std::string before, after;
  bool rope = false;
};

// The point that an identity ties this one to; empty where there is none.
std::string BeforeOf(const PointRef& ref) {
  switch (ref.spec->id) {
    case Point::kInputHiddenStates:
      return ref.layer == 0 ? PointName(Point::kInputEmbeddings) : PointName(Point::kLayerOutput, ref.layer - 1);
    case Point::kAttnQRope: return PointName(Point::kAttnQNormed, ref.layer);
    case Point::kAttnKRope: return PointName(Point::kAttnKNormed, ref.layer);
    default: return "";
  }
}

std::vector<Identity> IdentitiesOf(const SideRuns& side, const std::function<bool(const std::string&)>& wanted) {
  std::vector<Identity> all;
  const bool scaled = ScalesRope(side);
  for (const auto& [name, steps] : side.points) {
    const auto ref = ParsePointName(name);
    const std::string before = ref ? BeforeOf(*ref) : "";
    if (!side.points.contains(before) || !wanted(before) || !wanted(name)) continue;
    const bool rope = ref->spec->id != Point::kInputHiddenStates;
    if (!rope || !scaled) all.push_back({before, name, rope});
  }
  return all;
}

double RoundoffOf(const SideRuns& side, const Identity& identity) {
  double roundoff = 0;
  for (const Run& run : side.runs) roundoff = std::max(roundoff, DeclaredRoundoff(run.meta()));
  for (const std::string* name : {&identity.before, &identity.after}) {
    for (const StepTensors& step : side.points.at(*name)) {
      for (const TraceTensor* tensor : step.tensors) roundoff = std::max(roundoff, UnitRoundoff(tensor->dtype));
    }
  }
  return roundoff;
}

void Release(const SideRuns& side, const std::string& name) {
  for (const StepTensors& where : side.points.at(name)) {
    if (!side.runs[where.run].traces.front().mapped) continue;
    for (const TraceTensor* tensor : where.tensors) MappedFile::Release(tensor->data, tensor->bytes);
  }
}

}  // namespace

void CheckIdentities(const SideRuns& side, const std::map<int, int>& numbers, int64_t head_dim,
                     const std::function<bool(const std::string&)>& wanted, std::vector<Failure>* failures) {
  const std::vector<Identity> identities = IdentitiesOf(side, wanted);
  std::map<std::string, std::string> problems;  // by point
  std::vector<std::string> texts(identities.size());
  ParallelForDynamic(static_cast<int64_t>(identities.size()), [&](int64_t i) {
    const Identity& identity = identities[static_cast<size_t>(i)];
    const Sides sides(side, numbers, identity.before, identity.after);
    texts[static_cast<size_t>(i)] = identity.rope ? RopeCheck(sides, head_dim, RoundoffOf(side, identity)).Problem()
                                                  : CopyProblem(sides, identity.before);
    Release(side, identity.before), Release(side, identity.after);
  });
  std::vector<std::string> names;
  for (size_t i = 0; i < identities.size(); ++i) {
    if (texts[i].empty()) continue;
    problems[identities[i].after] = texts[i];
    names.push_back(identities[i].after);
  }
  for (const std::string& name : InExecutionOrder(std::move(names))) {
    failures->push_back({FailureKind::kIdentity, side.side, name, problems[name]});
  }
}

}  // namespace lockstep
