// The rows of the layer's weights that gave each output channel. Whatever the mistake is (another weight, slices of a
// fused one at other offsets, permuted rows, shards repeated or in another order), it is a map from channels to rows.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "diagnose/linear.h"

namespace lockstep {
namespace {

constexpr int64_t kNone = -2, kZero = -1;

struct Part {
  PointAt point;
  int64_t begin = 0;  // of its rows in the stack
  int64_t rows = 0;
};

// Weights that read rows of this width, below one another: the point's own first of all, then its layer's in order.
struct Stack {
  std::vector<Part> parts;
  MatrixPtr rows;
};

Stack StackOf(const Probe& probe) {
  const Case& fault = probe.fault();
  const ReplayModel& model = fault.evaluator.model();
  const PointAt& own = fault.errors.call.point;
  Stack out;
  std::vector<MatrixPtr> matrices;
  int64_t begin = 0;
  const auto add = [&](const PointAt& point, const MatrixPtr& weight) {
    out.parts.push_back({point, begin, weight->rows});
    matrices.push_back(weight);
    begin += weight->rows;
  };
  for (const PointSpec& spec : Points()) {
    if (spec.op != SpecOf(own.id).op || spec.per_layer != (own.layer >= 0) || spec.weights.empty()) continue;
    const PointAt point = {spec.id, own.layer};
    const MatrixPtr weight = model.Weight(model.WeightName(point), fault.errors.arithmetic.operands);
    if (weight->columns == probe.columns()) add(point, weight);
  }
  out.rows = Stacked(matrices);
  return out;
}

class Matcher {
 public:
  Matcher(const Probe& probe, const Stack& stack) : probe_(probe), count_(stack.rows->rows) {
    products_ = probe.Products(*stack.rows);
    order_.resize(static_cast<size_t>(count_));
    std::iota(order_.begin(), order_.end(), 0);
    std::sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return At(0, a) < At(0, b); });
  }

  // The row that gives channel `c` in every probed row of the sample; kZero where the channel is zero, kNone without
  // one. Of several that of `wanted` is taken.
  int64_t Find(int64_t c, int64_t wanted) const {
    if (wanted >= 0 && wanted < count_ && Matches(c, wanted)) return wanted;
    const double value = probe_.Captured(0, c);
    const double width = 0.05 * std::abs(value) + 1e-6;
    auto at = std::lower_bound(order_.begin(), order_.end(), value - width,
                               [&](int64_t row, double x) { return At(0, row) < x; });
    int64_t best = kNone;
    double least = INFINITY;
    for (; at != order_.end() && At(0, *at) <= value + width; ++at) {
      const double distance = Matches(c, *at) ? Distance(c, *at) : INFINITY;
      if (distance < least) least = distance, best = *at;
    }
    if (best != kNone) return best;
    for (int64_t r = 0; r < probe_.rows(); ++r) {
      if (probe_.Captured(r, c) != 0) return kNone;
    }
    return kZero;
  }

 private:
  double At(int64_t r, int64_t row) const { return products_[static_cast<size_t>(r * count_ + row)]; }
  double Distance(int64_t c, int64_t row) const {
    double sum = 0;
    for (int64_t r = 0; r < probe_.rows(); ++r) {
      const double value = probe_.Captured(r, c), off = (value - At(r, row)) / (std::abs(value) + 1e-30);
      sum += off * off;
    }
    return sum;
  }
  bool Matches(int64_t c, int64_t row) const {
    for (int64_t r = 0; r < probe_.rows(); ++r) {
      if (probe_.Affected(r, c) && !probe_.Is(r, c, At(r, row))) return false;
    }
    return true;
  }

  const Probe& probe_;
  const int64_t count_;
  std::vector<double> products_;
  std::vector<int64_t> order_;
};

bool AnyAffected(const Probe& probe, int64_t c) {
  for (int64_t r = 0; r < probe.rows(); ++r) {
    if (probe.Affected(r, c)) return true;
  }
  return false;
}

struct Said {
  std::string cause, text;
};

bool IsPermutation(std::vector<int64_t> map) {
  std::sort(map.begin(), map.end());
  for (size_t i = 0; i < map.size(); ++i) {
    if (map[i] != static_cast<int64_t>(i)) return false;
  }
  return true;
}

// The order of `n` equal blocks, empty where the map does not move whole blocks. -1: a block of zeros.
std::vector<int64_t> BlockOrder(const std::vector<int64_t>& map, int64_t n) {
  const auto count = static_cast<int64_t>(map.size());
  if (count % n != 0) return {};
  const int64_t size = count / n;
  std::vector<int64_t> out;
  for (int64_t b = 0; b < n; ++b) {
    const int64_t first = map[static_cast<size_t>(b * size)];
    if (first >= 0 && first % size != 0) return {};
    for (int64_t i = 0; i < size; ++i) {
      if (map[static_cast<size_t>(b * size + i)] != (first < 0 ? first : first + i)) return {};
    }
    out.push_back(first < 0 ? -1 : first / size);
  }
  return out;
}

std::string Listed(const std::vector<int64_t>& values) {
  std::string out;
  for (size_t i = 0; i < values.size() && i < 16; ++i) out += (i ? "," : "") + std::to_string(values[i]);
  return out + (values.size() > 16 ? ",..." : "");
}

// Of a map into the point's own rows.
Said DescribeOwn(const std::vector<int64_t>& map, int64_t d) {
  const auto count = static_cast<int64_t>(map.size());
  for (const NamedOrder& order : NamedOrders(count, d)) {
    if (order.map == map) return {"linear-rows-permuted", "gives its channels in another order: " + order.text};
  }
  const bool zeros = std::find(map.begin(), map.end(), kZero) != map.end();
  if (zeros) return {"values-zero", "leaves some of its channels zero"};
  for (const int64_t n : {2, 4, 8, 16}) {
    const std::vector<int64_t> order = BlockOrder(map, n);
    if (order.empty()) continue;
    const std::string shards = std::to_string(n) + " shards of its rows";
    if (IsPermutation(order)) return {"linear-shard-order", "takes the " + shards + " in the order " + Listed(order)};
    return {"linear-shard-doubled", "takes shards " + Listed(order) + " of the " + shards};
  }
  const int64_t shift = map[0];
  bool shifted = true;
  for (int64_t c = 0; c < count; ++c) shifted = shifted && map[static_cast<size_t>(c)] == (c + shift + count) % count;
  if (shifted) return {"linear-rows-permuted", "takes its rows " + std::to_string(shift) + " too far"};
  return {"linear-rows-permuted", "gives its channels in another order: " + Listed(map)};
}

Said Describe(const Stack& stack, const Part& own, const std::vector<int64_t>& map, int64_t d) {
  const auto count = static_cast<int64_t>(map.size());
  const auto inside = [&](const Part& part) {
    return std::all_of(map.begin(), map.end(),
                       [&](int64_t r) { return r < 0 || (r >= part.begin && r < part.begin + part.rows); });
  };
  if (inside(own)) {
    std::vector<int64_t> relative = map;
    for (int64_t& r : relative) r = r < 0 ? r : r - own.begin;
    return DescribeOwn(relative, d);
  }
  for (const Part& part : stack.parts) {
    if (!inside(part)) continue;
    const bool in_order = map.front() == part.begin && map.back() == part.begin + count - 1;
    return {"linear-other-weight", "uses " + std::string(in_order ? "" : "rows of ") + "the weight of " +
                                       std::string(SpecOf(part.point.id).name)};
  }
  bool slice = true;
  for (int64_t c = 0; c < count; ++c) slice = slice && map[static_cast<size_t>(c)] == map[0] + c;
  if (slice) {
    return {"linear-other-weight",
            "reads the fused weight " + std::to_string(map[0] - own.begin) + " rows from its own slice"};
  }
  return {"linear-other-weight", "uses rows of several weights: those of a fused weight in another order"};
}

std::vector<int64_t> Made(int64_t count, const std::function<int64_t(int64_t)>& at) {
  std::vector<int64_t> out;
  for (int64_t c = 0; c < count; ++c) out.push_back(at(c));
  return out;
}

// One or two rows match some row of a weight by chance, unless neighbours match neighbours.
bool IsCertain(const Probe& probe, const std::vector<int64_t>& map, int64_t own) {
  constexpr int64_t kEnough = 3, kChannels = 16;
  int64_t least = kEnough, runs = 0, channels = 0;
  for (size_t c = 0; c < map.size(); ++c) {
    int64_t rows = 0;
    for (int64_t r = 0; r < probe.rows(); ++r) rows += probe.Affected(r, static_cast<int64_t>(c));
    const bool is_moved = map[c] != own + static_cast<int64_t>(c);
    if (rows > 0 && is_moved) least = std::min(least, rows), ++channels;
    runs += c > 0 && map[c] != map[c - 1] + 1;
  }
  return least == kEnough || (runs <= 4 && channels >= kChannels);
}

}  // namespace

std::vector<NamedOrder> NamedOrders(int64_t count, int64_t d) {
  const int64_t heads = count / d, half = d / 2;
  std::vector<NamedOrder> out;
  const auto add = [&](const std::string& text, const std::function<int64_t(int64_t)>& at) {
    std::vector<int64_t> map = Made(count, at);
    if (IsPermutation(map) && map != Made(count, [](int64_t c) { return c; })) out.push_back({text, std::move(map)});
  };
  const std::string where = heads > 1 ? " of each head" : "";
  if (d % 2 == 0) {
    add("even channels" + where + " first, then the odd ones",
        [=](int64_t c) { return c / d * d + (c % d < half ? 2 * (c % d) : 2 * (c % d - half) + 1); });
    add("the halves" + where + " interleaved", [=](int64_t c) { return c / d * d + (c % d) / 2 + (c % 2) * half; });
    add("the halves" + where + " swapped", [=](int64_t c) { return c / d * d + (c % d + half) % d; });
  }
  add("channels" + where + " reversed", [=](int64_t c) { return c / d * d + d - 1 - c % d; });
  if (heads > 1) {
    add("heads reversed", [=](int64_t c) { return (heads - 1 - c / d) * d + c % d; });
    add("[head_dim, heads] instead of [heads, head_dim]", [=](int64_t c) { return c % heads * d + c / heads; });
    add("[heads, head_dim] instead of [head_dim, heads]", [=](int64_t c) { return c % d * heads + c / d; });
    for (int64_t groups = 2; groups < heads; ++groups) {
      if (heads % groups != 0) continue;
      const int64_t size = heads / groups;
      add("heads tiled over " + std::to_string(groups) + " groups instead of repeated in each", [=](int64_t c) {
        const int64_t h = c / d;
        return (h % groups * size + h / groups) * d + c % d;
      });
    }
  }
  return out;
}

void AddRowMaps(const Probe& probe, std::vector<Hypothesis>* out) {
  const OpCall& call = probe.fault().errors.call;
  const Stack stack = StackOf(probe);
  const Part* own = nullptr;
  for (const Part& part : stack.parts) {
    if (part.point == call.point) own = &part;
  }
  if (!own || own->rows != probe.width()) return;
  const Matcher matcher(probe, stack);
  std::vector<int64_t> map;
  for (int64_t c = 0; c < probe.width(); ++c) {
    const int64_t before = map.empty() ? own->begin - 1 : map.back();
    map.push_back(AnyAffected(probe, c) ? matcher.Find(c, before + 1) : own->begin + c);
    if (map.back() == kNone) return;
  }
  if (map.front() == own->begin && map.back() == own->begin + own->rows - 1 && std::is_sorted(map.begin(), map.end()) &&
      map == Made(own->rows, [&](int64_t c) { return own->begin + c; })) {
    return;  // the right rows: the weight itself differs, or the error is small
  }
  if (!IsCertain(probe, map, own->begin)) return;
  const int64_t d = call.heads > 0 ? call.head_dim : probe.width();
  const Said said = Describe(stack, *own, map, d);
  AddWeight(probe, said.cause, said.text, WithRows(stack.rows, map), out);
}

}  // namespace lockstep
