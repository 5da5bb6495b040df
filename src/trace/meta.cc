#include "trace/meta.h"

#include <unistd.h>

#include <charconv>
#include <limits>
#include <set>

#include "base/json.h"
#include "base/mapped_file.h"
#include "lockstep/dtype.h"

namespace lockstep {
namespace {

constexpr int kVersion = 1;

std::string Found(const SortedJson& value) {
  // JSON text with \u escapes: what stands in a damaged file must not reach a terminal.
  std::string text = value.dump(-1, ' ', true, SortedJson::error_handler_t::replace);
  return text.size() <= 100 ? text : text.substr(0, 100) + "...";
}

// A value of trace.json with the path that leads to it: `trace.json: arithmetic.storage`.
class Node {
 public:
  Node(const SortedJson* value, std::string where) : value_(value), where_(std::move(where)) {}

  bool present() const { return value_ != nullptr; }
  const SortedJson& value() const { return *value_; }

  [[noreturn]] void Fail(const std::string& expected) const {
    throw Error(where_ + ": expected " + expected + ", found " + (present() ? Found(*value_) : "nothing"));
  }

  // A member of an object; absent where the object is.
  Node operator[](const char* key) const {
    if (!present()) return {nullptr, Below(key)};
    const auto member = Object().find(key);
    return {member == value_->end() ? nullptr : &*member, Below(key)};
  }

  const SortedJson& Object() const {
    if (!present() || !value_->is_object()) Fail("an object");
    return *value_;
  }
  template <typename F>
  void ForEachMember(F&& f) const {
    if (!present()) return;
    for (const auto& [key, value] : Object().items()) f(key, Node(&value, Below(key)));
  }
  template <typename F>
  void ForEachElement(F&& f) const {
    if (!present()) return;
    if (!value_->is_array()) Fail("a list");
    size_t i = 0;
    for (const SortedJson& value : *value_) f(Node(&value, where_ + "[" + std::to_string(i++) + "]"));
  }

  std::string String(const char* fallback) const {
    if (!present() && fallback) return fallback;
    if (!present() || !value_->is_string()) Fail("a string");
    return value_->get<std::string>();
  }
  std::vector<std::string> Strings() const {
    std::vector<std::string> out;
    ForEachElement([&](const Node& node) { out.push_back(node.String(nullptr)); });
    return out;
  }
  bool Bool(bool fallback) const {
    if (!present()) return fallback;
    if (!value_->is_boolean()) Fail("true or false");
    return value_->get<bool>();
  }
  int64_t Int(int64_t least, int64_t most, std::optional<int64_t> fallback = std::nullopt) const {
    if (!present() && fallback) return *fallback;
    const bool fits = present() && value_->is_number_integer() &&
                      !(value_->is_number_unsigned() && value_->get<uint64_t>() > static_cast<uint64_t>(most)) &&
                      value_->get<int64_t>() >= least && value_->get<int64_t>() <= most;
    if (!fits) Fail("a whole number from " + std::to_string(least) + " to " + std::to_string(most));
    return value_->get<int64_t>();
  }
  DType Type(std::optional<DType> fallback = std::nullopt) const {
    if (!present() && fallback) return *fallback;
    const std::optional<DType> dtype = ParseDType(String(nullptr));
    if (!dtype) Fail("the name of a dtype such as \"BF16\"");
    return *dtype;
  }

 private:
  std::string Below(const std::string& key) const {
    const std::string shown = key.size() <= 100 ? key : key.substr(0, 100) + "...";
    return where_ + (where_.ends_with(".json") ? ": " : ".") + shown;
  }

  const SortedJson* value_;
  std::string where_;
};

constexpr int kMaxRank = 1 << 20;

// Numbers go through double and come back in their shortest form, so that 1e-6 and 0.000001 are one value.
std::string Normalised(const SortedJson& value) {
  if (value.is_number()) {
    char text[64];
    const auto result = std::to_chars(text, text + sizeof(text), value.get<double>());
    return {text, result.ptr};
  }
  std::string out;
  if (value.is_array()) {
    for (const SortedJson& element : value) out += (out.empty() ? "" : ",") + Normalised(element);
    return "[" + out + "]";
  }
  if (value.is_object()) {
    for (const auto& [key, member] : value.items()) {
      out += (out.empty() ? "" : ",") + SortedJson(key).dump() + ":" + Normalised(member);
    }
    return "{" + out + "}";
  }
  return value.dump();
}

void CheckFormat(const Node& root) {
  root.Object();
  if (!root["format"].present() || root["format"].value() != "lockstep-trace")
    root["format"].Fail("\"lockstep-trace\"");
  const int64_t version = root["version"].Int(1, std::numeric_limits<int64_t>::max());
  if (version > kVersion) {
    root["version"].Fail("version " + std::to_string(kVersion) +
                         " (a newer Lockstep wrote this trace: update Lockstep to read it)");
  }
}

WeightFingerprint ReadWeight(const Node& node) {
  WeightFingerprint weight;
  weight.dtype = node["dtype"].Type();
  node["shape"].ForEachElement(
      [&](const Node& extent) { weight.shape.push_back(extent.Int(0, std::numeric_limits<int64_t>::max())); });
  weight.hash = node["hash"].String(nullptr);
  if (weight.hash.size() != 16 || weight.hash.find_first_not_of("0123456789abcdef") != std::string::npos) {
    node["hash"].Fail("16 hex digits");
  }
  return weight;
}

void ReadOverrides(const Node& node, TraceMeta* meta) {
  node.ForEachMember([&](const std::string& pattern, const Node& entry) {
    entry.Object();
    const auto type = [&](const char* key) {
      return entry[key].present() ? std::optional(entry[key].Type()) : std::nullopt;
    };
    meta->overrides.push_back({pattern, type("storage"), type("operands"), type("accumulate"), type("cache")});
  });
}

void ReadArithmetic(const Node& node, TraceMeta* meta) {
  meta->has_arithmetic = node["storage"].present();
  Arithmetic& arithmetic = meta->arithmetic;
  arithmetic.storage = node["storage"].Type(DType::kF32);
  arithmetic.operands = node["operands"].Type(arithmetic.storage);
  arithmetic.cache = node["cache"].Type(arithmetic.storage);
  arithmetic.accumulate = node["accumulate"].Type(DType::kF32);
  ReadOverrides(node["overrides"], meta);
}

void ReadSelection(const Node& node, const std::string& path, TraceMeta* meta) {
  meta->select_points = node["points"].String("");
  meta->select_layers = node["layers"].String("");
  meta->select_steps = node["steps"].String("");
  meta->select_rows = node["rows"].String("");
  try {
    Selection(meta->select_points, meta->select_layers, meta->select_steps, meta->select_rows);
  } catch (const std::invalid_argument& error) {
    throw Error(path + ": " + error.what());
  }
}

TraceMeta ReadMeta(const Node& root, const std::string& path) {
  TraceMeta meta;
  meta.producer = root["producer"]["name"].String("");
  meta.producer_version = root["producer"]["version"].String("");
  meta.model_type = root["model"]["type"].String("");
  root["model"]["config"].ForEachMember(
      [&](const std::string& key, const Node& value) { meta.config[key] = Normalised(value.value()); });
  ReadArithmetic(root["arithmetic"], &meta);
  meta.points = root["points"].Strings();
  meta.not_observable = root["not_observable"].Strings();
  ReadSelection(root["selection"], path, &meta);
  root["weights"].ForEachMember(
      [&](const std::string& name, const Node& weight) { meta.weights[name] = ReadWeight(weight); });
  meta.errors = root["errors"].Strings();
  meta.rank = static_cast<int>(root["rank"].Int(0, kMaxRank, 0));
  meta.closed = root["closed"].Bool(false);
  return meta;
}

TensorRule ReadRule(const std::string& pattern, const Node& node) {
  TensorRule rule;
  rule.pattern = pattern;
  node.Object();
  rule.axes = node["axes"].Strings();
  const std::set<std::string> names(rule.axes.begin(), rule.axes.end());
  if (!rule.axes.empty() && (names.size() != rule.axes.size() || !names.count("token"))) {
    node["axes"].Fail("different names of axes, with \"token\" among them");
  }
  rule.layout = node["layout"].String("");
  rule.partial = node["partial"].Bool(false);
  const Node shard = node["shard"];
  if (!shard.present()) return rule;
  rule.shard_axis = shard["axis"].String(nullptr);
  if (rule.shard_axis.empty()) shard["axis"].Fail("the name of an axis");
  rule.shard_count = static_cast<int>(shard["count"].Int(1, kMaxRank));
  if (shard["index"].present()) rule.shard_index = static_cast<int>(shard["index"].Int(0, rule.shard_count - 1));
  return rule;
}

// `names` are those of the files so far.
ListedStep ReadStep(const Node& node, int default_rank, std::set<std::string>* names) {
  ListedStep step;
  const std::string phase = node["phase"].String("prefill");
  if (phase != "prefill" && phase != "decode") node["phase"].Fail("\"prefill\" or \"decode\"");
  step.phase = phase == "decode" ? Phase::kDecode : Phase::kPrefill;
  node["files"].ForEachElement([&](const Node& entry) {
    const std::string file = entry["file"].String(nullptr);
    // A trace never reaches out of its directory.
    if (file.empty() || file == "." || file == ".." || file.find('/') != file.npos || file.find('\0') != file.npos) {
      entry["file"].Fail("the plain name of a file in the directory of the trace");
    }
    if (!names->insert(file).second) entry["file"].Fail("a file that is listed once");
    step.files.push_back({file, static_cast<int>(entry["rank"].Int(0, kMaxRank, default_rank))});
  });
  return step;
}

}  // namespace

Arithmetic TraceMeta::ArithmeticOf(const std::string& name) const {
  const ArithmeticOverride* best = nullptr;
  for (const ArithmeticOverride& entry : overrides) {
    const bool matches = MatchesPattern(entry.pattern, name);
    if (matches && (!best || detail::IsNarrower(entry.pattern, best->pattern))) best = &entry;
  }
  if (!best) return arithmetic;
  return {best->storage.value_or(arithmetic.storage), best->operands.value_or(arithmetic.operands),
          best->accumulate.value_or(arithmetic.accumulate), best->cache.value_or(arithmetic.cache)};
}

const TensorRule* TraceJson::RuleFor(const std::string& name) const {
  const TensorRule* best = nullptr;
  for (const TensorRule& rule : rules) {
    if (MatchesPattern(rule.pattern, name) && (!best || detail::IsNarrower(rule.pattern, best->pattern))) best = &rule;
  }
  return best;
}

TraceMeta MetaOf(const TraceInfo& info) {
  TraceMeta meta;
  meta.producer = info.producer;
  meta.producer_version = info.producer_version;
  meta.model_type = info.model_type;
  const SortedJson config = ParseSortedJson(info.config_json, "TraceInfo::config_json");
  Node(&config, "TraceInfo::config_json").ForEachMember([&](const std::string& key, const Node& value) {
    meta.config[key] = Normalised(value.value());
  });
  meta.has_arithmetic = true;
  meta.arithmetic = {info.storage, info.operands.value_or(info.storage), info.accumulate,
                     info.cache.value_or(info.storage)};
  if (!info.overrides_json.empty()) {
    const SortedJson overrides = ParseSortedJson(info.overrides_json, "TraceInfo::overrides_json");
    ReadOverrides(Node(&overrides, "TraceInfo::overrides_json"), &meta);
  }
  meta.points = info.points;
  meta.not_observable = info.not_observable;
  meta.select_points = info.select_points;
  meta.select_layers = info.select_layers;
  meta.select_steps = info.select_steps;
  meta.select_rows = info.select_rows;
  meta.rank = info.rank;
  return meta;
}

TraceJson ReadTraceJson(const std::string& directory) {
  const std::string path = directory + "/trace.json";
  if (access(path.c_str(), F_OK) != 0) throw Error(directory + ": expected a trace, found no trace.json in it");
  const SortedJson json = ParseSortedJson(ReadTextFile(path, kMaxTraceJsonBytes), path);
  const Node root(&json, path);
  CheckFormat(root);
  TraceJson trace;
  trace.meta = ReadMeta(root, path);
  root["tensors"].ForEachMember(
      [&](const std::string& pattern, const Node& rule) { trace.rules.push_back(ReadRule(pattern, rule)); });
  std::set<std::string> names;
  root["steps"].ForEachElement(
      [&](const Node& step) { trace.steps.push_back(ReadStep(step, trace.meta.rank, &names)); });
  return trace;
}

}  // namespace lockstep
