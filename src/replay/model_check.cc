#include "replay/model_check.h"

#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "base/fingerprint.h"
#include "base/safetensors.h"
#include "trace/meta.h"

namespace lockstep {
namespace {

// Of the checkpoint, as a trace made from it would hold it.
std::map<std::string, std::string> ConfigOf(const Checkpoint& checkpoint) {
  TraceInfo info;
  info.config_json = checkpoint.config().TraceJson();
  return MetaOf(info).config;
}

bool Fits(const std::string& key, const std::string& trace, const std::string& model, const Checkpoint& checkpoint) {
  if (trace == model) return true;
  if (key != "num_hidden_layers") return false;
  return !trace.empty() && trace.find_first_not_of("0123456789") == trace.npos && trace.size() < 10 &&
         std::stoll(trace) <= checkpoint.config().num_hidden_layers;
}

void CheckConfig(const TraceView& trace, const std::map<std::string, std::string>& model,
                 const Checkpoint& checkpoint) {
  std::string differences;
  for (const auto& [key, value] : model) {
    const auto found = trace.meta->config.find(key);
    if (found == trace.meta->config.end() || Fits(key, found->second, value, checkpoint)) continue;
    differences += (differences.empty() ? "" : "; ") + key + " is " + found->second.substr(0, 80) + " in the trace, " +
                   value + " in the model";
  }
  if (differences.empty()) return;
  throw Error(trace.path + ": made from another model than " + checkpoint.path() + ": " + differences +
              "; is --model the checkpoint that this trace was made from?");
}

class WeightChecker {
 public:
  WeightChecker(const Checkpoint& checkpoint, ModelCheck* result) : checkpoint_(checkpoint), result_(result) {
    for (const Weight& weight : checkpoint.weights()) by_name_[weight.name] = &weight;
    if (checkpoint.config().tie_word_embeddings) by_name_["lm_head.weight"] = &checkpoint.Get("lm_head.weight");
  }

  void Check(const std::string& name, const WeightFingerprint& theirs) {
    if (!checked_.insert({name, static_cast<int>(theirs.dtype), theirs.hash}).second) return;
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) {
      unknown_.push_back(name);
    } else if (theirs.dtype != DType::kF32 && theirs.dtype != DType::kBF16 && theirs.dtype != DType::kF16) {
      ++other_dtypes_;
    } else {
      ++result_->weights_compared;
      Compare(*found->second, name, theirs);
    }
  }

  void Finish() {
    if (!unknown_.empty()) {
      result_->notes.push_back(std::to_string(unknown_.size()) +
                               " weight(s) of the trace are none of the checkpoint's (" +
                               unknown_.front().substr(0, 80) + (unknown_.size() > 1 ? ", …" : "") +
                               "): their fingerprints are not compared");
    }
    if (other_dtypes_ > 0) {
      result_->notes.push_back(std::to_string(other_dtypes_) +
                               " weight(s) of the trace are stored in other dtypes than F32, BF16 and F16: their "
                               "fingerprints are not compared");
    }
  }

 private:
  void Compare(const Weight& weight, const std::string& name, const WeightFingerprint& theirs) {
    if (theirs.shape != weight.shape) {
      result_->weights.push_back({name, "shape " + ShapeText(theirs.shape) + " in the trace, " +
                                            ShapeText(weight.shape) + " in the checkpoint"});
      return;
    }
    const std::string& ours = HashOf(weight, theirs.dtype);
    if (ours == theirs.hash) return;
    result_->weights.push_back(
        {name, "changed since the trace was made, or another checkpoint: " + std::string(DTypeName(theirs.dtype)) +
                   " fingerprint " + theirs.hash.substr(0, 16) + " in the trace, " + ours + " in the checkpoint"});
  }

  // A tied head is the embedding's weight: it is read once.
  const std::string& HashOf(const Weight& weight, DType rounded_to) {
    const auto [at, is_new] = hashes_.try_emplace({&weight, rounded_to});
    if (is_new) {
      const int64_t columns = weight.shape.back(), rows = weight.shape.size() == 2 ? weight.shape[0] : 1;
      at->second = FingerprintOfMatrix(weight.dtype, weight.data, rows, columns, rounded_to);
      checkpoint_.Release(weight);
    }
    return at->second;
  }

  const Checkpoint& checkpoint_;
  ModelCheck* result_;
  std::map<std::string, const Weight*> by_name_;
  std::set<std::tuple<std::string, int, std::string>> checked_;  // ranks and runs repeat them
  std::map<std::pair<const Weight*, DType>, std::string> hashes_;
  std::vector<std::string> unknown_;
  size_t other_dtypes_ = 0;
};

}  // namespace

ModelCheck CheckModel(const TraceRuns& runs, const Checkpoint& checkpoint) {
  const std::map<std::string, std::string> config = ConfigOf(checkpoint);
  for (const Run& run : runs.runs) {
    for (const TraceView& trace : run.traces) CheckConfig(trace, config, checkpoint);
  }
  // From here on the shapes are the checkpoint's, so far as the traces tell them.
  ModelCheck result;
  WeightChecker checker(checkpoint, &result);
  for (const Run& run : runs.runs) {
    for (const TraceView& trace : run.traces) {
      for (const auto& [name, weight] : trace.meta->weights) checker.Check(name, weight);
    }
  }
  checker.Finish();
  return result;
}

}  // namespace lockstep
