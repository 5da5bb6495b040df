#include "trace/meta.h"

#include <unistd.h>

#include <charconv>
#include <limits>
#include <set>

#include "base/json.h"
#include "base/mapped_file.h"
#include "lockstep/dtype.h"
#include "trace/json_node.h"

namespace lockstep {
namespace {

constexpr int kVersion = 1;

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

void CheckFormat(const JsonNode& root) {
  root.Object();
  if (!root["format"].present() || root["format"].value() != "lockstep-trace")
    root["format"].Fail("\"lockstep-trace\"");
  const int64_t version = root["version"].Int(1, std::numeric_limits<int64_t>::max());
  if (version > kVersion) {
    root["version"].Fail("version " + std::to_string(kVersion) +
                         " (a newer Lockstep wrote this trace: update Lockstep to read it)");
  }
}

WeightFingerprint ReadWeight(const JsonNode& node) {
  WeightFingerprint weight;
  weight.dtype = node["dtype"].Type();
  node["shape"].ForEachElement(
      [&](const JsonNode& extent) { weight.shape.push_back(extent.Int(0, std::numeric_limits<int64_t>::max())); });
  weight.hash = node["hash"].String(nullptr);
  if (weight.hash.size() != 16 || weight.hash.find_first_not_of("0123456789abcdef") != std::string::npos) {
    node["hash"].Fail("16 hex digits");
  }
  return weight;
}

void ReadOverrides(const JsonNode& node, TraceMeta* meta) {
  node.ForEachMember([&](const std::string& pattern, const JsonNode& entry) {
    entry.Object();
    const auto type = [&](const char* key) {
      return entry[key].present() ? std::optional(entry[key].Type()) : std::nullopt;
    };
    meta->overrides.push_back({pattern, type("storage"), type("operands"), type("accumulate"), type("cache")});
  });
}

void ReadArithmetic(const JsonNode& node, TraceMeta* meta) {
  meta->has_arithmetic = node["storage"].present();
  Arithmetic& arithmetic = meta->arithmetic;
  arithmetic.storage = node["storage"].Type(DType::kF32);
  arithmetic.operands = node["operands"].Type(arithmetic.storage);
  arithmetic.cache = node["cache"].Type(arithmetic.storage);
  arithmetic.accumulate = node["accumulate"].Type(DType::kF32);
  ReadOverrides(node["overrides"], meta);
}

void ReadSelection(const JsonNode& node, const std::string& path, TraceMeta* meta) {
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

TraceMeta ReadMeta(const JsonNode& root, const std::string& path) {
  TraceMeta meta;
  meta.producer = root["producer"]["name"].String("");
  meta.producer_version = root["producer"]["version"].String("");
  meta.model_type = root["model"]["type"].String("");
  root["model"]["config"].ForEachMember(
      [&](const std::string& key, const JsonNode& value) { meta.config[key] = Normalised(value.value()); });
  ReadArithmetic(root["arithmetic"], &meta);
  meta.points = root["points"].Strings();
  meta.not_observable = root["not_observable"].Strings();
  ReadSelection(root["selection"], path, &meta);
  root["weights"].ForEachMember(
      [&](const std::string& name, const JsonNode& weight) { meta.weights[name] = ReadWeight(weight); });
  meta.errors = root["errors"].Strings();
  meta.rank = static_cast<int>(root["rank"].Int(0, kMaxRank, 0));
  meta.closed = root["closed"].Bool(false);
  return meta;
}

TensorRule ReadRule(const std::string& pattern, const JsonNode& node) {
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
  const JsonNode shard = node["shard"];
  if (!shard.present()) return rule;
  rule.shard_axis = shard["axis"].String(nullptr);
  if (rule.shard_axis.empty()) shard["axis"].Fail("the name of an axis");
  rule.shard_count = static_cast<int>(shard["count"].Int(1, kMaxRank));
  if (shard["index"].present()) rule.shard_index = static_cast<int>(shard["index"].Int(0, rule.shard_count - 1));
  return rule;
}

// `names` are those of the files so far.
ListedStep ReadStep(const JsonNode& node, int default_rank, std::set<std::string>* names) {
  ListedStep step;
  const std::string phase = node["phase"].String("prefill");
  if (phase != "prefill" && phase != "decode") node["phase"].Fail("\"prefill\" or \"decode\"");
  step.phase = phase == "decode" ? Phase::kDecode : Phase::kPrefill;
  node["files"].ForEachElement([&](const JsonNode& entry) {
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
  JsonNode(&config, "TraceInfo::config_json").ForEachMember([&](const std::string& key, const JsonNode& value) {
    meta.config[key] = Normalised(value.value());
  });
  meta.has_arithmetic = true;
  meta.arithmetic = {info.storage, info.operands.value_or(info.storage), info.accumulate,
                     info.cache.value_or(info.storage)};
  if (!info.overrides_json.empty()) {
    const SortedJson overrides = ParseSortedJson(info.overrides_json, "TraceInfo::overrides_json");
    ReadOverrides(JsonNode(&overrides, "TraceInfo::overrides_json"), &meta);
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
  const JsonNode root(&json, path);
  CheckFormat(root);
  TraceJson trace;
  trace.meta = ReadMeta(root, path);
  root["tensors"].ForEachMember(
      [&](const std::string& pattern, const JsonNode& rule) { trace.rules.push_back(ReadRule(pattern, rule)); });
  std::set<std::string> names;
  root["steps"].ForEachElement(
      [&](const JsonNode& step) { trace.steps.push_back(ReadStep(step, trace.meta.rank, &names)); });
  return trace;
}

}  // namespace lockstep
