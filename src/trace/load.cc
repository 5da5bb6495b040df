#include "trace/load.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "base/safetensors.h"
#include "lockstep/points.h"
#include "trace/meta.h"

namespace lockstep {
namespace {

constexpr std::string_view kRows = "rows:";
constexpr std::string_view kKeys = "keys:";

struct Located {
  StoredTensor tensor;
  std::string path;
};

// What one rank wrote in one step, by name.
struct RankFiles {
  int rank = 0;
  std::string first_path;
  std::set<std::string> first_names;
  std::map<std::string, Located> tensors;
  std::vector<std::string> order;  // of first appearance
};

[[noreturn]] void Fail(const Located& located, const std::string& message) {
  throw Error(located.path + ": tensor " + located.tensor.name + ": " + message);
}

std::vector<int32_t> ReadInt32(const Located& located) {
  std::vector<int32_t> values(located.tensor.bytes / sizeof(int32_t));
  if (!values.empty()) std::memcpy(values.data(), located.tensor.data, located.tensor.bytes);
  return values;
}

void ExpectInt32(const Located& located, const std::vector<int64_t>& shape) {
  if (located.tensor.dtype == DType::kI32 && located.tensor.shape == shape) return;
  Fail(located, "expected I32 " + ShapeText(shape) + ", found " + DTypeName(located.tensor.dtype) + " " +
                    ShapeText(located.tensor.shape));
}

// Builds one step of the trace.
class StepLoader {
 public:
  StepLoader(const std::string& directory, const TraceJson& json, LoadedTrace* out)
      : directory_(directory), json_(json), out_(out) {}

  TraceStep Load(const ListedStep& listed) {
    step_.phase = listed.phase;
    for (const RankFiles& rank : OpenFiles(listed)) {
      if (!HasTokens(rank)) continue;
      AddTokens(rank);
      for (const std::string& name : rank.order) AddTensor(rank, name);
    }
    return std::move(step_);
  }

 private:
  void Warn(const std::string& message) { out_->warnings.push_back(message); }

  std::vector<RankFiles> OpenFiles(const ListedStep& listed) {
    std::vector<RankFiles> ranks;
    for (const ListedFile& file : listed.files) {
      const std::string path = directory_ + "/" + file.file;
      if (!json_.meta.closed && access(path.c_str(), F_OK) != 0) {
        Warn(path + ": listed but not there; the writer was stopped before it was created");
        continue;
      }
      auto rank = std::find_if(ranks.begin(), ranks.end(), [&](const RankFiles& r) { return r.rank == file.rank; });
      if (rank == ranks.end()) rank = ranks.insert(ranks.end(), RankFiles{file.rank, path, {}, {}, {}});
      AddFile(path, &*rank);
      step_.files.push_back(path);
    }
    return ranks;
  }

  void AddFile(const std::string& path, RankFiles* rank) {
    SafetensorsFile file = OpenSafetensors(path, /*allow_tail=*/true);
    const size_t tail = file.file->bytes().size() - file.indexed_bytes;
    if (tail > 0)
      Warn(path + ": " + std::to_string(tail) +
           " bytes at the end belong to no tensor and are ignored (`lockstep show --repair`)");
    step_.duplicates.insert(step_.duplicates.end(), file.duplicates.begin(), file.duplicates.end());
    for (StoredTensor& tensor : file.tensors) {
      const std::string name = tensor.name;
      if (path == rank->first_path) rank->first_names.insert(name);
      const auto [at, inserted] = rank->tensors.insert_or_assign(name, Located{std::move(tensor), path});
      if (inserted) {
        rank->order.push_back(name);
      } else {
        step_.duplicates.push_back(name);
      }
    }
    out_->files.push_back(std::move(file.file));
  }

  bool HasTokens(const RankFiles& rank) {
    for (const char* name : {"positions", "sequences"}) {
      if (rank.first_names.count(name)) continue;
      const std::string message =
          rank.first_path + ": expected a tensor " + name + " (I32, one for each token), found none";
      if (json_.meta.closed) throw Error(message);
      Warn(message + "; the step is ignored, its writer was stopped");
      return false;
    }
    return true;
  }

  void AddTokens(const RankFiles& rank) {
    const Located& positions = rank.tensors.at("positions");
    const std::vector<int64_t> shape = {static_cast<int64_t>(positions.tensor.bytes / sizeof(int32_t))};
    ExpectInt32(positions, shape);
    TraceStep tokens;
    tokens.positions = ReadInt32(positions);
    const Located& sequences = rank.tensors.at("sequences");
    ExpectInt32(sequences, shape);
    tokens.sequences = ReadInt32(sequences);
    const auto ids = rank.tensors.find("input_ids");
    if (ids != rank.tensors.end()) {
      ExpectInt32(ids->second, shape);
      tokens.input_ids = ReadInt32(ids->second);
      CheckLeast(ids->second, tokens.input_ids, -1);
    }
    CheckLeast(sequences, tokens.sequences, -1);
    for (size_t i = 0; i < tokens.positions.size(); ++i) {
      if (tokens.sequences[i] >= 0 && tokens.positions[i] < 0) {
        Fail(positions,
             "expected 0 or more, found " + std::to_string(tokens.positions[i]) + " at token " + std::to_string(i));
      }
    }
    Unite(rank, std::move(tokens));
  }

  static void CheckLeast(const Located& located, const std::vector<int32_t>& values, int32_t least) {
    const auto bad = std::find_if(values.begin(), values.end(), [&](int32_t value) { return value < least; });
    if (bad != values.end())
      Fail(located, "expected " + std::to_string(least) + " or more, found " + std::to_string(*bad));
  }

  // Every rank tells the same tokens.
  void Unite(const RankFiles& rank, TraceStep tokens) {
    const bool first = !have_tokens_;
    have_tokens_ = true;
    if (!first && (tokens.positions != step_.positions || tokens.sequences != step_.sequences ||
                   (!tokens.input_ids.empty() && !step_.input_ids.empty() && tokens.input_ids != step_.input_ids))) {
      throw Error(rank.first_path + ": rank " + std::to_string(rank.rank) +
                  " has other positions, sequences or input_ids than the rank before it; expected the same tokens on "
                  "every rank");
    }
    step_.positions = std::move(tokens.positions);
    step_.sequences = std::move(tokens.sequences);
    if (!tokens.input_ids.empty()) step_.input_ids = std::move(tokens.input_ids);
  }

  void AddTensor(const RankFiles& rank, const std::string& name) {
    if (name == "positions" || name == "sequences" || name == "input_ids") return;
    for (const std::string_view prefix : {kRows, kKeys}) {
      if (!name.starts_with(prefix)) continue;
      // Its tensor follows it, and may be what a full disk or a kill prevented.
      const std::string owner = name.substr(prefix.size());
      if (!rank.tensors.count(owner)) Warn(rank.first_path + ": " + name + " has no tensor " + owner);
      return;
    }
    const Located& located = rank.tensors.at(name);
    TraceTensor tensor;
    tensor.name = name;
    tensor.dtype = located.tensor.dtype;
    tensor.shape = located.tensor.shape;
    tensor.data = located.tensor.data;
    tensor.bytes = located.tensor.bytes;
    tensor.rank = rank.rank;
    tensor.file = located.path;
    FillLayout(located, &tensor);
    FillRows(rank, located, &tensor);
    FillKeys(rank, &tensor);
    step_.tensors.push_back(std::move(tensor));
  }

  void FillLayout(const Located& located, TraceTensor* tensor) const {
    const TensorRule* rule = json_.RuleFor(tensor->name);
    if (rule && !rule->axes.empty()) {
      tensor->axes = rule->axes;
      if (tensor->axes.size() != tensor->shape.size()) {
        Fail(located, "trace.json gives it " + std::to_string(tensor->axes.size()) + " axes (pattern " + rule->pattern +
                          "), found shape " + ShapeText(tensor->shape));
      }
      const auto token = std::find(tensor->axes.begin(), tensor->axes.end(), "token");
      tensor->token_axis = static_cast<int>(token - tensor->axes.begin());
    } else {
      NameTableAxes(tensor);
    }
    if (!rule) return;
    tensor->layout = rule->layout;
    tensor->partial = rule->partial;
    if (!rule->shard_axis.empty()) FillShard(*rule, located, tensor);
  }

  static void FillShard(const TensorRule& rule, const Located& located, TraceTensor* tensor) {
    tensor->shard = Shard{rule.shard_axis, rule.shard_index.value_or(tensor->rank), rule.shard_count};
    if (tensor->shard->index >= tensor->shard->count) {
      Fail(located, "is slice " + std::to_string(tensor->shard->index) + " of " + std::to_string(tensor->shard->count) +
                        "; expected `shard` in trace.json to have an index, or a count above the rank");
    }
    if (!tensor->axes.empty() &&
        std::find(tensor->axes.begin(), tensor->axes.end(), rule.shard_axis) == tensor->axes.end()) {
      Fail(located, "trace.json slices it along \"" + rule.shard_axis + "\", which is none of its axes");
    }
  }

  void FillRows(const RankFiles& rank, const Located& located, TraceTensor* tensor) const {
    const auto axis = static_cast<size_t>(tensor->token_axis);
    if (tensor->shape.size() <= axis) Fail(located, "expected a token axis, found shape " + ShapeText(tensor->shape));
    const int64_t count = tensor->shape[axis];
    if (count > 0 && tensor->bytes == 0) Fail(located, "has rows without elements: shape " + ShapeText(tensor->shape));
    const auto num_tokens = static_cast<int64_t>(step_.positions.size());
    const auto listed = rank.tensors.find(std::string(kRows) + tensor->name);
    if (listed != rank.tensors.end()) {
      ExpectInt32(listed->second, {count});
      tensor->rows = ReadInt32(listed->second);
      CheckRows(listed->second, tensor->rows, num_tokens);
      return;
    }
    if (count != num_tokens) {
      Fail(located, "expected " + std::to_string(num_tokens) + " tokens along axis " + std::to_string(axis) +
                        ", found shape " + ShapeText(tensor->shape) +
                        "; where only some tokens have rows, rows:" + tensor->name + " must list them");
    }
    tensor->rows.resize(static_cast<size_t>(count));
    for (size_t i = 0; i < tensor->rows.size(); ++i) tensor->rows[i] = static_cast<int32_t>(i);
  }

  static void CheckRows(const Located& located, const std::vector<int32_t>& rows, int64_t num_tokens) {
    std::vector<bool> seen(static_cast<size_t>(num_tokens));
    for (const int32_t row : rows) {
      if (row < 0 || row >= num_tokens) {
        Fail(located, "expected tokens from 0 to " + std::to_string(num_tokens - 1) + ", found " + std::to_string(row));
      }
      if (seen[static_cast<size_t>(row)]) Fail(located, "token " + std::to_string(row) + " stands there twice");
      seen[static_cast<size_t>(row)] = true;
    }
  }

  static void FillKeys(const RankFiles& rank, TraceTensor* tensor) {
    const auto listed = rank.tensors.find(std::string(kKeys) + tensor->name);
    if (listed == rank.tensors.end()) return;
    const auto key = std::find(tensor->axes.begin(), tensor->axes.end(), "key");
    const size_t axis =
        key == tensor->axes.end() ? tensor->shape.size() - 1 : static_cast<size_t>(key - tensor->axes.begin());
    ExpectInt32(listed->second, {static_cast<int64_t>(tensor->rows.size()), tensor->shape[axis]});
    tensor->keys = ReadInt32(listed->second);
    CheckLeast(listed->second, tensor->keys, -1);
  }

  const std::string& directory_;
  const TraceJson& json_;
  LoadedTrace* out_;
  TraceStep step_;
  bool have_tokens_ = false;
};

// Whoever lists a sequence by position needs room for its highest one; a damaged file must not ask for all memory.
void CheckPositions(const std::string& directory, const std::vector<TraceStep>& steps) {
  constexpr int64_t kMost = int64_t{1} << 28;
  std::map<int32_t, int64_t> lengths;
  for (const TraceStep& step : steps) {
    for (size_t i = 0; i < step.positions.size(); ++i) {
      if (step.sequences[i] < 0) continue;
      int64_t& length = lengths[step.sequences[i]];
      length = std::max<int64_t>(length, int64_t{step.positions[i]} + 1);
    }
  }
  int64_t total = 0;
  for (const auto& [sequence, length] : lengths) total += length;
  if (total > kMost) {
    throw Error(directory + ": its positions ask for sequences of " + std::to_string(total) +
                " tokens, expected at most " + std::to_string(kMost) + " together");
  }
}

}  // namespace

void NameTableAxes(TraceTensor* tensor) {
  const std::optional<PointRef> point = ParsePointName(tensor->name);
  // A point of another rank than the table's has unnamed axes: that is for the comparison to judge.
  if (!point || point->spec->axes.size() != tensor->shape.size()) return;
  for (const Axis axis : point->spec->axes) tensor->axes.emplace_back(AxisName(axis));
}

LoadedTrace LoadTrace(const std::string& directory) {
  const TraceJson json = ReadTraceJson(directory);
  LoadedTrace trace;
  trace.meta = json.meta;
  if (!json.meta.closed) {
    trace.warnings.push_back(directory +
                             ": not closed; its writer was stopped, and what it had recorded until then is read");
  }
  for (const ListedStep& step : json.steps) trace.steps.push_back(StepLoader(directory, json, &trace).Load(step));
  CheckPositions(directory, trace.steps);
  return trace;
}

}  // namespace lockstep
