#include "lockstep/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <string>

#include "base/fingerprint.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

using Candidate = Sampler::Candidate;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void Require(bool good, const char* name, double found, const char* expected) {
  if (good) return;
  char text[32];
  std::snprintf(text, sizeof(text), "%g", found);
  throw Error(std::string(name) + ": expected " + expected + ", found " + text);
}

void CheckOptions(const SamplerOptions& o) {
  Require(o.temperature >= 0 && std::isfinite(o.temperature), "temperature", o.temperature, "a number from 0");
  Require(o.top_k >= 0, "top-k", static_cast<double>(o.top_k), "a number from 0 (0: all tokens)");
  Require(o.top_p > 0 && o.top_p <= 1, "top-p", o.top_p, "a number above 0 and up to 1");
  Require(o.min_p >= 0 && o.min_p <= 1, "min-p", o.min_p, "a number from 0 to 1");
  const auto penalty = static_cast<float>(o.repetition_penalty);  // what it is applied as
  Require(penalty > 0 && std::isfinite(penalty), "repetition penalty", o.repetition_penalty, "a number above 0");
}

// The first of the largest logits. Throws Error where there is none.
int32_t Likeliest(std::span<const float> logits) {
  float highest = -kInfinity;
  size_t best = logits.size();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == kInfinity) {
      throw Error("logits: expected numbers, found " + std::to_string(logits[i]) + " for token " + std::to_string(i));
    }
    if (logits[i] > highest) {
      highest = logits[i];
      best = i;
    }
  }
  if (best == logits.size()) throw Error("logits: expected numbers, found no finite one");
  return static_cast<int32_t>(best);
}

// REQUIRES: 0 < k < values.size().
float KthLargest(std::vector<float> values, size_t k) {
  const auto kth = values.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(values.begin(), kth, values.end(), std::greater<>());
  return *kth;
}

double Sum(const std::vector<Candidate>& candidates) {
  double sum = 0;
  for (const Candidate& candidate : candidates) sum += candidate.probability;
  return sum;
}

// Of equally likely tokens the first is the best, as for the greedy choice.
bool IsLess(const Candidate& a, const Candidate& b) {
  return a.probability < b.probability || (a.probability == b.probability && a.token > b.token);
}

// A heap instead of a sort, because a few of very many are usually enough.
void KeepTopP(std::vector<Candidate>& candidates, double top_p) {
  const double enough = top_p * Sum(candidates);
  std::vector<Candidate> heap = candidates;
  std::make_heap(heap.begin(), heap.end(), IsLess);
  double sum = heap.front().probability;
  while (sum < enough && heap.size() > 1) {
    std::pop_heap(heap.begin(), heap.end(), IsLess);
    heap.pop_back();
    sum += heap.front().probability;
  }
  const Candidate last = heap.front();
  std::erase_if(candidates, [&](const Candidate& candidate) { return IsLess(candidate, last); });
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options) : options_(options) { CheckOptions(options); }

void Sampler::See(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    const auto index = static_cast<size_t>(token);
    if (index >= seen_.size()) seen_.resize(index + 1);
    seen_[index] = true;
  }
}

// In f32, as transformers does it, so that greedy choices are the same.
std::vector<float> Sampler::Penalized(std::span<const float> logits) const {
  std::vector<float> out(logits.begin(), logits.end());
  const auto penalty = static_cast<float>(options_.repetition_penalty);
  if (penalty == 1) return out;
  for (size_t i = 0; i < std::min(out.size(), seen_.size()); ++i) {
    if (seen_[i]) out[i] = out[i] < 0 ? out[i] * penalty : out[i] / penalty;
  }
  return out;
}

std::vector<Candidate> Sampler::Candidates(std::span<const float> logits) const {
  const std::vector<float> scores = Penalized(logits);
  const int32_t best = Likeliest(scores);
  if (options_.temperature == 0) return {{best, 1}};

  const auto k = static_cast<size_t>(options_.top_k);
  const float lowest = k > 0 && k < scores.size() ? KthLargest(scores, k) : -kInfinity;
  const double highest = scores[static_cast<size_t>(best)];
  std::vector<Candidate> out;
  out.reserve(lowest == -kInfinity ? scores.size() : k);
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] < lowest || scores[i] == -kInfinity) continue;
    // Relative to the largest until the end, so that nothing overflows.
    out.push_back({static_cast<int32_t>(i), std::exp((scores[i] - highest) / options_.temperature)});
  }
  if (options_.top_p < 1) KeepTopP(out, options_.top_p);
  std::erase_if(out, [&](const Candidate& candidate) { return candidate.probability < options_.min_p; });
  const double sum = Sum(out);
  for (Candidate& candidate : out) candidate.probability /= sum;
  return out;
}

// In [0, 1), 53 bits: SplitMix64, because the distributions of the standard library differ between libraries.
double Sampler::Uniform() {
  constexpr uint64_t kIncrement = 0x9E3779B97F4A7C15u;
  return static_cast<double>(SplitMix64(options_.seed + kIncrement * draws_++) >> 11) * 0x1p-53;
}

int32_t Sampler::Next(std::span<const float> logits) {
  const std::vector<Candidate> candidates = Candidates(logits);
  int32_t choice = candidates.back().token;  // where rounding leaves the sum below the draw
  if (candidates.size() > 1) {
    const double draw = Uniform();
    double sum = 0;
    for (const Candidate& candidate : candidates) {
      sum += candidate.probability;
      if (draw >= sum) continue;
      choice = candidate.token;
      break;
    }
  }
  See({&choice, 1});
  return choice;
}

}  // namespace lockstep
