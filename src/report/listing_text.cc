#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/ranges.h"
#include "report/columns.h"
#include "report/paint.h"
#include "report/show_words.h"
#include "report/words.h"

namespace lockstep {
namespace {

constexpr size_t kLongText = 200;  // of names, values and messages from the trace
constexpr size_t kMostAilments = 20;
constexpr size_t kMostSteps = 12;

std::string Tame(const std::string& text, size_t width = kLongText) { return Shortened(Escaped(text), width); }

// Points that differ in nothing but the layer.
struct Group {
  const ListedPoint* first = nullptr;
  std::set<int> layers;
  int64_t bytes = 0;
  std::set<AilmentKind> ailments;
};

bool SameLine(const ListedPoint& a, const ListedPoint& b) {
  return a.point == b.point && (a.layer < 0) == (b.layer < 0) && a.row_shape == b.row_shape && a.dtype == b.dtype &&
         a.rows == b.rows && a.shard == b.shard && a.axes == b.axes && a.steps == b.steps;
}

class ListingText {
 public:
  ListingText(const TraceListing& listing, const TextOptions& options)
      : listing_(listing), options_(options), width_(std::max(static_cast<size_t>(options.width), kNarrowest)) {}

  std::string Write() {
    Overview();
    Steps();
    Points();
    Health();
    return std::move(out_);
  }

 private:
  void Say(const std::string& label, const std::string& text) {
    out_ += Wrapped(fmt::format("{:<11}", label), text, width_);
  }

  void Overview() {
    const TraceMeta& meta = listing_.meta;
    out_ += Paint(Escaped(listing_.path), Color::kStrong, options_.color) + "\n";
    Say("producer", Tame(meta.producer) + (meta.producer_version.empty() ? "" : " " + Tame(meta.producer_version)));
    std::string config = Tame(meta.model_type);
    for (const auto& [key, value] : meta.config) config += ", " + Tame(key, 60) + " " + Tame(value, 60);
    Say("model", config);
    Say("arithmetic", ArithmeticText());
    for (const ArithmeticOverride& other : meta.overrides) Say("", Tame(other.pattern) + ": " + OverrideText(other));
    if (!meta.weights.empty()) Say("weights", Count(meta.weights.size(), "fingerprint"));
    Say("size",
        fmt::format("{} of values: {} of {} in {}{}", BytesText(listing_.bytes), Count(listing_.tensors, "tensor"),
                    Count(listing_.points.size(), "point"), Count(listing_.steps.size(), "step"),
                    listing_.ranks > 1 ? fmt::format(", {} ranks", listing_.ranks) : ""));
    Say("state", meta.closed ? "closed" : Paint("not closed: its writer was killed", Color::kWarning, options_.color));
    for (const std::string& error : meta.errors) Say("error", Paint(Tame(error), Color::kBad, options_.color));
  }

  std::string ArithmeticText() const {
    const TraceMeta& meta = listing_.meta;
    if (!meta.has_arithmetic) return "not declared";
    const Arithmetic& a = meta.arithmetic;
    return fmt::format("storage {}, operands {}, accumulate {}, cache {}", DTypeName(a.storage), DTypeName(a.operands),
                       DTypeName(a.accumulate), DTypeName(a.cache));
  }

  static std::string OverrideText(const ArithmeticOverride& other) {
    std::string text;
    const auto add = [&](const char* what, const std::optional<DType>& dtype) {
      if (dtype) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", what, DTypeName(*dtype));
    };
    add("storage", other.storage), add("operands", other.operands);
    add("accumulate", other.accumulate), add("cache", other.cache);
    return text;
  }

  void Steps() {
    const size_t count = listing_.steps.size();
    const size_t shown = options_.all || count <= kMostSteps ? count : kMostSteps - 2;
    for (size_t i = 0; i < count; ++i) {
      if (i == shown - 1 && shown < count) {
        Say("", fmt::format("… {} more; --all lists them", count - shown));
        i = count - 1;
      }
      Step(i);
    }
  }

  void Step(size_t number) {
    const TraceListing::Step& step = listing_.steps[number];
    std::string text =
        fmt::format("{}, {}", step.phase == Phase::kDecode ? "decode" : "prefill", Count(step.tokens, "token"));
    if (step.padding > 0) text += fmt::format(" ({} padding)", step.padding);
    constexpr size_t kMostSequences = 8;
    for (size_t i = 0; i < std::min(kMostSequences, step.sequences.size()); ++i) {
      const auto& sequence = step.sequences[i];
      text += fmt::format("; sequence {} position {}", sequence.number, sequence.first);
      if (sequence.last != sequence.first) text += fmt::format("-{}", sequence.last);
    }
    if (step.sequences.size() > kMostSequences) text += fmt::format("; … {} sequences", step.sequences.size());
    Say(fmt::format("step {}", number), text + ", " + BytesText(step.bytes));
    for (const std::string& name : step.duplicates) {
      Say("", Paint(Tame(name) + ": recorded twice", Color::kBad, options_.color));
    }
    if (!options_.all) return;
    for (const auto& tensor : step.tensors) {
      out_ += fmt::format("  {} {:<5} [{}]{}\n", Padded(Tame(tensor.name, width_ / 2), 40), DTypeName(tensor.dtype),
                          fmt::join(tensor.shape, ", "), tensor.rank > 0 ? fmt::format(" rank {}", tensor.rank) : "");
    }
  }

  std::vector<Group> Groups() const {
    std::vector<Group> groups;
    for (const ListedPoint& point : listing_.points) {
      const auto same =
          std::find_if(groups.begin(), groups.end(), [&](const Group& group) { return SameLine(*group.first, point); });
      Group& group = same != groups.end() ? *same : groups.emplace_back(Group{&point, {}, 0, {}});
      if (point.layer >= 0) group.layers.insert(point.layer);
      group.bytes += point.bytes;
      for (const Ailment& ailment : point.ailments) group.ailments.insert(ailment.kind);
    }
    return groups;
  }

  void Points() {
    const std::vector<Group> groups = Groups();
    size_t name_width = 5, axes_width = 5, layer_width = 6;
    for (const Group& group : groups) {
      name_width = std::max(name_width, TextWidth(Escaped(group.first->point)));
      axes_width = std::max(axes_width, TextWidth(AxesText(group.first->rows, *group.first)));
      layer_width = std::max(layer_width, TextWidth(Layers(group)));
    }
    name_width = std::min<size_t>(name_width, 28), layer_width = std::min<size_t>(layer_width, 12);
    const size_t fixed = name_width + layer_width + 1 + 5 + 1 + 11 + 1 + 14 + 3;
    axes_width = std::min(axes_width, width_ > fixed + 16 ? width_ - fixed : 16);
    out_ += fmt::format("\n{} {} {} {:<5} {:>10}  {}\n", Padded("point", name_width), Padded("layers", layer_width),
                        Padded("shape", axes_width), "dtype", "size", "health");
    for (const Group& group : groups) {
      const ListedPoint& point = *group.first;
      out_ += fmt::format("{} {} {} {:<5} {:>10}  {}\n", Padded(Tame(point.point, name_width), name_width),
                          Padded(Shortened(Layers(group), layer_width), layer_width),
                          Padded(Shortened(AxesText(point.rows, point), axes_width), axes_width),
                          point.dtypes_differ ? "mixed" : DTypeName(point.dtype), BytesText(group.bytes), State(group));
    }
  }

  static std::string Layers(const Group& group) { return RangesText(group.layers, ","); }

  std::string State(const Group& group) const {
    std::string words;
    for (const AilmentKind kind : group.ailments) words += (words.empty() ? "" : ", ") + AilmentWord(kind);
    std::string text =
        words.empty() ? Paint("ok", Color::kGood, options_.color) : Paint(words, Color::kBad, options_.color);
    if (!group.first->shard.empty()) text += " (" + Tame(group.first->shard, 40) + ")";
    return text;
  }

  void Health() {
    size_t count = 0, told = 0;
    for (const ListedPoint& point : listing_.points) count += point.ailments.size();
    if (count + listing_.missing.size() > 0) out_ += "\n";
    for (const ListedPoint& point : listing_.points) {
      for (const Ailment& ailment : point.ailments) {
        if (!options_.all && told++ == kMostAilments) {
          out_ += fmt::format("… {} more; --all tells them\n", count - kMostAilments);
          return Missing();
        }
        if (!options_.all && told > kMostAilments) return;
        out_ += Wrapped(Tame(point.name, 60) + ": ", AilmentText(ailment), width_);
      }
    }
    Missing();
  }

  void Missing() {
    constexpr size_t kMost = 8;
    const std::vector<std::string>& missing = listing_.missing;
    if (missing.empty()) return;
    std::string text;
    for (size_t i = 0; i < std::min(kMost, missing.size()); ++i) text += (i ? ", " : "") + Tame(missing[i], 60);
    if (missing.size() > kMost) text += fmt::format(" and {} more", missing.size() - kMost);
    Say("never written, though promised:", text);
  }

  const TraceListing& listing_;
  const TextOptions& options_;
  size_t width_;
  std::string out_;
};

}  // namespace

std::string TextReport(const TraceListing& listing, const TextOptions& options) {
  return ListingText(listing, options).Write();
}

}  // namespace lockstep
