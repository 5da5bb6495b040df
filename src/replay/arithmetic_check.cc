#include "replay/arithmetic_check.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "base/convert.h"
#include "base/parallel.h"
#include "base/ranges.h"
#include "lockstep/points.h"
#include "replay/grid.h"
#include "trace/rows.h"

namespace lockstep {
namespace {

// What some rows of a point show.
struct Seen {
  std::string name;
  std::optional<DType> grid;           // none: too little to tell
  std::optional<std::string> coarser;  // than BF16
};

struct Sample {
  std::vector<int64_t> row_shape;
  std::vector<float> values;
};

void AddRows(const Piece& piece, size_t most, Sample* sample) {
  const auto size = static_cast<size_t>(piece.row_size()), count = piece.rows().size();
  if (size == 0 || (!sample->values.empty() && piece.row_shape() != sample->row_shape)) return;
  sample->row_shape = piece.row_shape();
  constexpr size_t kValues = 16384;
  most = std::min({count, most, std::max<size_t>(1, kValues / size)});
  for (size_t i = 0; i < most; ++i) {
    const size_t begin = sample->values.size();
    sample->values.resize(begin + size);
    piece.Read(static_cast<int64_t>(i * count / most), sample->values.data() + begin);
  }
}

// Rows from a few steps, spread over each.
Sample SampleOf(const std::string& name, const std::vector<StepTensors>& steps) {
  constexpr size_t kSteps = 4, kRows = 4;
  Sample sample;
  const size_t count = std::min(kSteps, steps.size());
  for (size_t i = 0; i < count; ++i) {
    for (const auto& tensors : ByRows(steps[i * steps.size() / count].tensors)) {
      if (tensors.front()->partial) continue;
      std::vector<Piece::Problem> problems;
      const Piece piece = Piece::Build(tensors, RowAxes(name, *tensors.front()), &problems);
      const bool fatal = std::any_of(problems.begin(), problems.end(), [](const auto& p) { return p.fatal; });
      if (!fatal) AddRows(piece, kRows, &sample);
    }
  }
  return sample;
}

std::vector<Seen> Look(const TraceRuns& runs) {
  std::vector<std::string> names;
  for (const auto& [name, steps] : runs.points) {
    if (ParsePointName(name)) names.push_back(name);
  }
  names = InExecutionOrder(std::move(names));
  std::vector<Seen> seen(names.size());
  ParallelForDynamic(static_cast<int64_t>(names.size()), [&](int64_t i) {
    const std::string& name = names[static_cast<size_t>(i)];
    const Sample sample = SampleOf(name, runs.points.at(name));
    Seen& own = seen[static_cast<size_t>(i)];
    own = {name, GridOf(sample.values), std::nullopt};
    if (!sample.values.empty()) {
      own.coarser = CoarserGrid(sample.values, sample.row_shape, own.grid.value_or(DType::kBF16));
    }
  });
  return seen;
}

Point PointOf(const std::string& name) { return ParsePointName(name)->spec->id; }

bool IsCopyOfEmbedding(const std::string& name) {
  return PointOf(name) == Point::kInputEmbeddings || name == PointName(Point::kInputHiddenStates, 0);
}

// Operands of a matrix product or of attention.
bool IsOperand(Point point) {
  constexpr Point kOperands[] = {Point::kAttnNormOutput, Point::kAttnQRope,       Point::kAttnKRope,
                                 Point::kAttnVProjRaw,   Point::kAttnProbs,       Point::kAttnContext,
                                 Point::kMlpNormOutput,  Point::kMlpIntermediate, Point::kFinalNormOutput};
  return std::find(std::begin(kOperands), std::end(kOperands), point) != std::end(kOperands);
}

bool IsCached(Point point) { return point == Point::kAttnKRope || point == Point::kAttnVProjRaw; }

// Every dtype whose grid the declaration lets the point lie on.
std::set<DType> AllowedGrids(const std::string& name, const Arithmetic& declared) {
  const Point point = PointOf(name);
  std::set<DType> allowed = {declared.storage};
  if (IsOperand(point)) allowed.insert(declared.operands);
  if (IsCached(point)) allowed.insert(declared.cache);
  if (point == Point::kAttnScores || point == Point::kAttnProbs) allowed.insert(declared.accumulate);
  return allowed;
}

bool IsKnown(DType dtype) { return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16; }

// What contradicts the declaration, with "*" for the points; empty where nothing does.
std::string Contradiction(const Seen& seen, const Arithmetic& declared) {
  const std::set<DType> allowed = AllowedGrids(seen.name, declared);
  if (IsCopyOfEmbedding(seen.name) || !std::all_of(allowed.begin(), allowed.end(), IsKnown)) return "";
  const std::string start = "declared " + std::string(DTypeName(declared.storage)) + ", but the values of * ";
  if (seen.coarser) return start + "are " + *seen.coarser;
  if (!seen.grid || allowed.contains(*seen.grid)) return "";
  const bool finer = std::all_of(allowed.begin(), allowed.end(),
                                 [&](DType dtype) { return FractionBits(*seen.grid) > FractionBits(dtype); });
  const std::string grid(DTypeName(*seen.grid));
  return finer ? start + "need " + grid : start + "lie on the " + grid + " grid";
}

std::string LayersText(const std::set<int>& layers, int num_layers) {
  if (*layers.begin() < 0) return "";
  if (static_cast<int>(layers.size()) == num_layers && num_layers > 1) return " in all layers";
  return (layers.size() == 1 ? " in layer " : " in layers ") + RangesText(layers);
}

std::string Listed(const std::vector<std::string>& points) {
  constexpr size_t kShown = 6;
  std::string text;
  for (size_t i = 0; i < std::min(kShown, points.size()); ++i) text += (i ? ", " : "") + points[i];
  if (points.size() > kShown) text += " and " + std::to_string(points.size() - kShown) + " more";
  return text;
}

// The same contradiction in the same layers is one line.
std::vector<std::string> Contradictions(const std::vector<Seen>& seen, const TraceMeta& meta) {
  int num_layers = 0;
  std::map<std::pair<std::string, std::string>, std::set<int>> layers;  // by text and point
  std::vector<std::pair<std::string, std::string>> order;
  for (const Seen& own : seen) {
    num_layers = std::max(num_layers, LayerOf(own.name) + 1);
    const std::string text = Contradiction(own, meta.ArithmeticOf(own.name));
    if (text.empty()) continue;
    const std::pair key(text, std::string(WithoutLayer(own.name)));
    if (layers[key].empty()) order.push_back(key);
    layers[key].insert(LayerOf(own.name));
  }
  std::vector<std::pair<std::string, std::vector<std::string>>> lines;  // text and layers, points
  for (const auto& key : order) {
    const std::string line = key.first + LayersText(layers[key], num_layers);
    const auto same = std::find_if(lines.begin(), lines.end(), [&](const auto& other) { return other.first == line; });
    (same == lines.end() ? lines.emplace_back(line, std::vector<std::string>()) : *same).second.push_back(key.second);
  }
  std::vector<std::string> out;
  for (auto& [line, points] : lines) out.push_back(line.replace(line.find('*'), 1, Listed(points)));
  return out;
}

// The finest grid of every point over its layers.
std::map<Point, DType> GridsByPoint(const std::vector<Seen>& seen) {
  std::map<Point, DType> grids;
  for (const Seen& own : seen) {
    if (!own.grid || IsCopyOfEmbedding(own.name)) continue;
    const auto [at, is_new] = grids.emplace(PointOf(own.name), *own.grid);
    if (!is_new && FractionBits(*own.grid) > FractionBits(at->second)) at->second = *own.grid;
  }
  return grids;
}

// That of most points; of equals the finest.
DType Prevailing(const std::map<Point, DType>& grids) {
  DType best = DType::kF32;
  int64_t most = 0;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const auto count =
        std::count_if(grids.begin(), grids.end(), [&](const auto& entry) { return entry.second == dtype; });
    if (count > most) most = count, best = dtype;
  }
  return best;
}

std::optional<InferredArithmetic> Infer(const std::vector<Seen>& seen) {
  const std::map<Point, DType> grids = GridsByPoint(seen);
  if (grids.empty()) return std::nullopt;
  InferredArithmetic out;
  Arithmetic& arithmetic = out.arithmetic;
  arithmetic.storage = arithmetic.operands = arithmetic.cache = Prevailing(grids);
  const auto key = grids.find(Point::kAttnKRope);
  if (key != grids.end()) arithmetic.cache = key->second;
  std::string differing;
  for (const auto& [point, grid] : grids) {
    if (IsOperand(point) && FractionBits(grid) < FractionBits(arithmetic.operands)) arithmetic.operands = grid;
    if (grid == arithmetic.storage) continue;
    const std::string name(SpecOf(point).name);
    out.overrides.push_back({SpecOf(point).per_layer ? "layer_*_" + name : name, grid, {}, {}, {}});
    differing.append("; ").append(name).append(" ").append(DTypeName(grid));
  }
  out.text = "no arithmetic is declared; by their values, storage is " + std::string(DTypeName(arithmetic.storage)) +
             ", operands " + DTypeName(arithmetic.operands) + ", cache " + DTypeName(arithmetic.cache) + differing;
  return out;
}

}  // namespace

ArithmeticCheck CheckArithmetic(const TraceRuns& runs) {
  ArithmeticCheck check;
  const std::vector<Seen> seen = Look(runs);
  const TraceMeta& meta = runs.runs.front().meta();
  if (meta.has_arithmetic) {
    check.contradictions = Contradictions(seen, meta);
  } else {
    check.inferred = Infer(seen);
  }
  return check;
}

}  // namespace lockstep
