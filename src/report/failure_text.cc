#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "base/ranges.h"
#include "lockstep/points.h"
#include "report/text_parts.h"
#include "report/words.h"

namespace lockstep {
namespace {

constexpr size_t kMostLines = 10;  // of a kind

// Failures of one kind at one point of several layers: what they say is told of the first.
struct FailureGroup {
  const Failure* first = nullptr;
  std::vector<int> layers;  // ascending
};

bool BelongsTo(const FailureGroup& group, const Failure& failure) {
  const Failure& first = *group.first;
  const int layer = LayerOf(failure.point);
  const auto key = [](const Failure& f) { return std::tuple(f.kind, f.side, WithoutLayer(f.point)); };
  return !group.layers.empty() && layer > group.layers.back() && key(first) == key(failure);
}

std::vector<FailureGroup> GroupsOf(const std::vector<Failure>& failures, bool all) {
  std::vector<FailureGroup> groups;
  for (const Failure& failure : failures) {
    const auto found = std::find_if(groups.begin(), groups.end(),
                                    [&](const FailureGroup& group) { return !all && BelongsTo(group, failure); });
    FailureGroup& group = found == groups.end() ? groups.emplace_back(FailureGroup{&failure, {}}) : *found;
    if (LayerOf(failure.point) >= 0) group.layers.push_back(LayerOf(failure.point));
  }
  return groups;
}

// "identity (candidate): layer_0..27_attn_q_rope, in 28 layers: position 0 is not as it was (layer 0)"
std::string FailureText(const FailureGroup& group) {
  const Failure& failure = *group.first;
  const std::string head = fmt::format("{} ({}): ", FailureKindName(failure.kind), SideName(failure.side));
  if (group.layers.size() < 2) {
    return head + (failure.point.empty() ? "" : NameText(failure.point) + ": ") + MessageText(failure.text);
  }
  return fmt::format("{}layer_{}_{}, in {}: {} (layer {})", head, RangesText(group.layers, ",", "..", 6),
                     NameText(std::string(WithoutLayer(failure.point))), Count(group.layers.size(), "layer"),
                     MessageText(failure.text), group.layers.front());
}

void WriteOneSided(const std::vector<OneSidedPoint>& points, const char* side, bool all, Page* page) {
  if (points.empty()) return;
  std::string line = fmt::format("only in the {}: {}", side, Count(points.size(), "point"));
  constexpr size_t kShown = 4;
  for (size_t i = 0; i < points.size() && (all || i < kShown); ++i) {
    line += fmt::format("{} {} ({})", i == 0 ? ":" : ",", NameText(points[i].name), MessageText(points[i].why));
  }
  if (!all && points.size() > kShown) line += ", …";
  page->Line("", line);
}

}  // namespace

void WriteFailures(const CompareResult& result, bool all, Page* page) {
  const std::vector<FailureGroup> groups = GroupsOf(result.failures, all);
  for (size_t i = 0; i < groups.size() && (all || i < kMostLines); ++i) {
    page->Line("FAILURE    ", FailureText(groups[i]), Color::kBad);
  }
  if (!all && groups.size() > kMostLines) page->Line("FAILURE    ", MoreText(groups.size() - kMostLines), Color::kBad);
  for (size_t i = 0; i < result.weights.size() && (all || i < kMostLines); ++i) {
    const WeightDifference& weight = result.weights[i];
    page->Line("WEIGHT     ", NameText(weight.name) + ": " + MessageText(weight.text), Color::kBad);
  }
  if (!all && result.weights.size() > kMostLines) {
    page->Line("WEIGHT     ", MoreText(result.weights.size() - kMostLines), Color::kBad);
  }
}

void WriteOneSided(const CompareResult& result, bool all, Page* page) {
  WriteOneSided(result.only_reference, "reference", all, page);
  WriteOneSided(result.only_candidate, "candidate", all, page);
}

}  // namespace lockstep
