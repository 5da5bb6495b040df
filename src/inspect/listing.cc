#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "base/mapped_file.h"
#include "base/parallel.h"
#include "inspect/health.h"
#include "lockstep/inspect.h"
#include "lockstep/points.h"
#include "trace/rows.h"
#include "trace/runs.h"

namespace lockstep {
namespace {

TraceListing::Step ListStep(const TraceStep& step) {
  TraceListing::Step out;
  out.phase = step.phase;
  out.tokens = step.positions.size();
  out.duplicates = step.duplicates;
  for (const TraceTensor& tensor : step.tensors) {
    out.bytes += static_cast<int64_t>(tensor.bytes);
    out.tensors.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.rank});
  }
  std::map<int, TraceListing::Step::Sequence> sequences;
  for (size_t i = 0; i < step.positions.size(); ++i) {
    const int number = step.sequences[i], position = step.positions[i];
    if (number < 0) {
      ++out.padding;
      continue;
    }
    auto& sequence =
        sequences.try_emplace(number, TraceListing::Step::Sequence{number, position, position, 0}).first->second;
    sequence.first = std::min(sequence.first, position);
    sequence.last = std::max(sequence.last, position);
    ++sequence.tokens;
  }
  for (const auto& [number, sequence] : sequences) out.sequences.push_back(sequence);
  return out;
}

std::string ShardText(const TraceTensor& tensor, int ranks) {
  if (tensor.shard && tensor.shard->count > 1) return tensor.shard->axis + " / " + std::to_string(tensor.shard->count);
  return tensor.partial && ranks > 1 ? "sum of " + std::to_string(ranks) + " ranks" : "";
}

// Tensors of one name, in order of their steps.
class PointLister {
 public:
  explicit PointLister(int ranks) : ranks_(ranks) {}

  void Add(const TraceTensor& tensor, size_t step) {
    const auto [at, is_new] = points_.try_emplace(tensor.name);
    ListedPoint& point = at->second;
    const std::vector<std::string> axes = RowAxes(tensor.name, tensor);
    const RowView view = ViewRows(tensor, axes);
    if (is_new) {
      point.name = tensor.name;
      point.layer = LayerOf(tensor.name);
      point.point = std::string(WithoutLayer(tensor.name));
      if (axes.size() == view.shape.size()) point.axes = axes;
      point.row_shape = view.shape;
      point.dtype = tensor.dtype;
      point.shard = ShardText(tensor, ranks_);
    }
    point.shapes_differ |= view.shape != point.row_shape;
    point.dtypes_differ |= tensor.dtype != point.dtype;
    point.bytes += static_cast<int64_t>(tensor.bytes);
    size_t& last = last_step_[tensor.name];
    if (!is_new && last == step) return;  // a further rank
    last = step;
    ++point.steps;
    point.rows += static_cast<int64_t>(tensor.rows.size());
  }

  void AddAilments(const std::string& name, const std::vector<Ailment>& found) {
    std::vector<Ailment>& all = points_.at(name).ailments;
    for (const Ailment& ailment : found) {
      const auto same = std::find_if(all.begin(), all.end(), [&](const Ailment& a) { return a.kind == ailment.kind; });
      if (same == all.end()) {
        all.push_back(ailment);
        continue;
      }
      same->count += ailment.count;
      if (ailment.kind == AilmentKind::kHuge) same->value = std::max(same->value, ailment.value);
    }
  }

  std::vector<ListedPoint> Finish() {
    std::vector<std::string> names;
    for (const auto& [name, point] : points_) names.push_back(name);
    std::vector<ListedPoint> out;
    for (const std::string& name : InExecutionOrder(std::move(names))) out.push_back(std::move(points_.at(name)));
    return out;
  }

  bool Has(const std::string& name) const { return points_.contains(name); }

 private:
  int ranks_;
  std::map<std::string, ListedPoint> points_;
  std::map<std::string, size_t> last_step_;
};

struct Located {
  const TraceTensor* tensor = nullptr;
  size_t step = 0;
};

std::vector<std::vector<Ailment>> ExamineAll(const TraceReader& trace, const std::vector<Located>& tensors,
                                             const std::function<void(size_t, size_t)>& progress) {
  std::vector<std::vector<Ailment>> out(tensors.size());
  std::mutex mutex;
  size_t done = 0;
  ParallelForDynamic(static_cast<int64_t>(tensors.size()), [&](int64_t i) {
    const auto& [tensor, step] = tensors[static_cast<size_t>(i)];
    out[static_cast<size_t>(i)] = Examine(*tensor, trace.steps()[step], step);
    MappedFile::Release(tensor->data, tensor->bytes);
    if (!progress) return;
    const std::lock_guard lock(mutex);
    progress(++done, tensors.size());
  });
  return out;
}

}  // namespace

TraceListing ListTrace(const TraceReader& trace, const std::function<void(size_t, size_t)>& progress) {
  TraceListing out;
  out.path = trace.path();
  out.meta = trace.meta();
  out.warnings = trace.warnings();

  std::vector<Located> tensors;
  std::set<int> ranks;
  for (size_t step = 0; step < trace.steps().size(); ++step) {
    out.steps.push_back(ListStep(trace.steps()[step]));
    out.bytes += out.steps.back().bytes;
    for (const TraceTensor& tensor : trace.steps()[step].tensors) {
      tensors.push_back({&tensor, step});
      ranks.insert(tensor.rank);
    }
  }
  out.tensors = tensors.size();
  out.ranks = std::max<int>(1, static_cast<int>(ranks.size()));

  PointLister lister(out.ranks);
  for (const auto& [tensor, step] : tensors) lister.Add(*tensor, step);
  const std::vector<std::vector<Ailment>> ailments = ExamineAll(trace, tensors, progress);
  for (size_t i = 0; i < tensors.size(); ++i) lister.AddAilments(tensors[i].tensor->name, ailments[i]);
  for (const std::string& name : out.meta.points) {
    if (!lister.Has(name)) out.missing.push_back(name);
  }
  out.missing = InExecutionOrder(std::move(out.missing));
  out.points = lister.Finish();
  return out;
}

}  // namespace lockstep
