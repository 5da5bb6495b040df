#include "trace/runs.h"

#include <algorithm>
#include <set>
#include <stdexcept>

#include "lockstep/points.h"

namespace lockstep {
namespace {

Selection SelectionOf(const TraceView& trace) {
  const TraceMeta& meta = *trace.meta;
  try {
    return Selection(meta.select_points, meta.select_layers, meta.select_steps, meta.select_rows);
  } catch (const std::invalid_argument& e) {
    throw Error(trace.path + "/trace.json: " + e.what());
  }
}

bool SameTokens(const TraceStep& a, const TraceStep& b) {
  const bool ids = a.input_ids.empty() || b.input_ids.empty() || a.input_ids == b.input_ids;
  return ids && a.positions == b.positions && a.sequences == b.sequences;
}

// Another rank of the same run: a rank that the run lacks, and the same tokens in every step that both have.
bool IsRankOf(const TraceView& trace, const Run& run) {
  for (const TraceView& other : run.traces) {
    if (other.meta->rank == trace.meta->rank) return false;
  }
  const size_t steps = std::min(run.num_steps(), trace.steps->size());
  if (steps == 0) return false;
  for (size_t i = 0; i < steps; ++i) {
    if (!SameTokens(run.Tokens(i), (*trace.steps)[i])) return false;
  }
  return true;
}

void AddSequences(const TraceStep& step, const std::map<int, int>& numbers, std::map<int, SequenceTokens>* sequences) {
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    if (step.sequences[i] < 0) continue;
    const int32_t id = step.input_ids.empty() ? kUnknownId : step.input_ids[i];
    (*sequences)[numbers.at(step.sequences[i])].insert_or_assign(step.positions[i], id);
  }
}

void AddTensors(size_t run_index, const Run& run, TraceRuns* side) {
  for (size_t step = 0; step < run.num_steps(); ++step) {
    for (const TraceView& trace : run.traces) {
      if (step >= trace.steps->size()) continue;
      for (const TraceTensor& tensor : (*trace.steps)[step].tensors) {
        std::vector<StepTensors>& list = tensor.name == "next_token" ? side->next_tokens : side->points[tensor.name];
        if (list.empty() || list.back().run != run_index || list.back().step != step) {
          list.push_back({run_index, step, {}});
        }
        list.back().tensors.push_back(&tensor);
      }
    }
  }
}

}  // namespace

size_t Run::num_steps() const {
  size_t steps = 0;
  for (const TraceView& trace : traces) steps = std::max(steps, trace.steps->size());
  return steps;
}

const TraceStep& Run::Tokens(size_t step) const {
  for (const TraceView& trace : traces) {
    if (step < trace.steps->size()) return (*trace.steps)[step];
  }
  throw std::logic_error("a step that no rank has");
}

TraceRuns GroupRuns(const std::vector<TraceView>& traces) {
  TraceRuns out;
  for (const TraceView& trace : traces) {
    const auto run = std::find_if(out.runs.begin(), out.runs.end(), [&](const Run& r) { return IsRankOf(trace, r); });
    if (run != out.runs.end()) {
      run->traces.push_back(trace);
    } else {
      out.runs.push_back({{trace}, SelectionOf(trace), {}});
    }
  }
  int next = 0;
  for (size_t i = 0; i < out.runs.size(); ++i) {
    Run& run = out.runs[i];
    std::set<int> locals;
    for (size_t step = 0; step < run.num_steps(); ++step) {
      for (int32_t sequence : run.Tokens(step).sequences) {
        if (sequence >= 0) locals.insert(sequence);
      }
    }
    for (int local : locals) run.numbers[local] = out.runs.size() == 1 ? local : next++;
    for (size_t step = 0; step < run.num_steps(); ++step) AddSequences(run.Tokens(step), run.numbers, &out.sequences);
    AddTensors(i, run, &out);
  }
  return out;
}

std::vector<std::vector<const TraceTensor*>> ByRows(const std::vector<const TraceTensor*>& tensors) {
  std::vector<std::vector<const TraceTensor*>> groups;
  for (const TraceTensor* tensor : tensors) {
    const auto same = std::find_if(groups.begin(), groups.end(),
                                   [&](const auto& group) { return group.front()->rows == tensor->rows; });
    if (same == groups.end()) {
      groups.push_back({tensor});
    } else {
      same->push_back(tensor);
    }
  }
  return groups;
}

std::vector<std::string> RowAxes(const std::string& name, const TraceTensor& tensor) {
  std::vector<std::string> axes;
  if (const auto ref = ParsePointName(name)) {
    for (Axis axis : ref->spec->axes) axes.emplace_back(AxisName(axis));
  } else {
    axes = tensor.axes;
  }
  std::erase(axes, "token");
  return axes;
}

std::vector<TraceReader> OpenAll(const std::vector<std::string>& paths, std::string_view side) {
  if (paths.empty()) throw Error("no trace of the " + std::string(side) + " was given");
  std::vector<TraceReader> readers;
  for (const std::string& path : paths) readers.push_back(TraceReader::Open(path));
  return readers;
}

std::vector<TraceView> Views(const std::vector<TraceReader>& readers) {
  std::vector<TraceView> views;
  for (const TraceReader& reader : readers)
    views.push_back({reader.path(), &reader.meta(), &reader.steps(), /*mapped=*/true});
  return views;
}

void NoteWarnings(const std::vector<TraceReader>& readers, std::vector<std::string>* notes) {
  for (const TraceReader& reader : readers) {
    notes->insert(notes->end(), reader.warnings().begin(), reader.warnings().end());
  }
}

}  // namespace lockstep
