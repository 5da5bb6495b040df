#include "compare/weights.h"

#include <map>
#include <string>

#include "base/safetensors.h"

namespace lockstep {
namespace {

std::map<std::string, WeightFingerprint> AllWeights(const SideRuns& side) {
  std::map<std::string, WeightFingerprint> weights;
  for (const Run& run : side.runs) {
    for (const TraceView& trace : run.traces) weights.insert(trace.meta->weights.begin(), trace.meta->weights.end());
  }
  return weights;
}

std::string Difference(const WeightFingerprint& reference, const WeightFingerprint& candidate) {
  if (reference.shape != candidate.shape) {
    return "shape " + ShapeText(candidate.shape) + ", in the reference " + ShapeText(reference.shape);
  }
  return std::string(DTypeName(candidate.dtype)) + " " + ShapeText(candidate.shape) + " with fingerprint " +
         candidate.hash + ", in the reference " + reference.hash;
}

void NoteCount(size_t count, const std::string& text, std::vector<std::string>* notes) {
  if (count > 0) notes->push_back(std::to_string(count) + " weight(s) " + text);
}

}  // namespace

void CompareWeights(const SideRuns& reference, const SideRuns& candidate, CompareResult* result) {
  const auto ref = AllWeights(reference), cand = AllWeights(candidate);
  size_t only_reference = 0, other_dtype = 0;
  for (const auto& [name, weight] : ref) {
    const auto other = cand.find(name);
    if (other == cand.end()) {
      ++only_reference;
    } else if (weight.shape == other->second.shape && weight.dtype != other->second.dtype) {
      ++other_dtype;
    } else {
      ++result->weights_compared;
      if (weight.shape != other->second.shape || weight.hash != other->second.hash) {
        result->weights.push_back({name, Difference(weight, other->second)});
      }
    }
  }
  if (ref.empty() || cand.empty()) return;  // one side fingerprints nothing: usual, and no news
  const size_t only_candidate = cand.size() - (ref.size() - only_reference);
  NoteCount(other_dtype, "stored in different dtypes on the two sides: their fingerprints are not compared",
            &result->notes);
  NoteCount(only_reference, "fingerprinted by the reference only", &result->notes);
  NoteCount(only_candidate, "fingerprinted by the candidate only", &result->notes);
}

}  // namespace lockstep
