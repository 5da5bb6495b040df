// The file "lockstep-golden/1" (docs/golden.md). One line a point's head and one a block, so that a diff shows what
// changed. Who reads it trusts nothing in it.
#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <set>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/ranges.h"
#include "base/safetensors.h"
#include "golden/sketch.h"
#include "lockstep/golden.h"
#include "lockstep/points.h"
#include "trace/json_node.h"

namespace lockstep {
namespace {

constexpr const char* kSchema = "lockstep-golden/1";
constexpr size_t kMaxBytes = size_t{1} << 28;
constexpr size_t kMaxRows = size_t{1} << 26;  // of all points together
constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr std::string_view kLayerPrefix = "model.layers.";

std::string Hex(uint64_t value, int digits) {
  char text[17];
  std::snprintf(text, sizeof(text), "%0*llx", digits, static_cast<unsigned long long>(value));
  return text;
}

// ---- writing

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// Nine digits tell any two f32 apart, and are the same however a sum's last bit fell.
double Rounded(double value) {
  char text[64];
  const auto [end, error] = std::to_chars(text, text + sizeof(text), value, std::chars_format::general, 9);
  double rounded = 0;
  std::from_chars(text, end, rounded);
  return rounded;
}

std::string BlockText(const GoldenBlock& block) {
  std::string text = Hex(block.hash, 16) + " " + Hex(std::bit_cast<uint32_t>(block.norm), 8) + " ";
  for (const float value : block.sketch) text += Hex(std::bit_cast<uint32_t>(value), 8);
  return text;
}

// Weights of the layers that share all but the layer's number stand together.
struct WeightGroup {
  std::string name;  // with * for the layer
  WeightFingerprint first;
  std::vector<int> layers;
  std::vector<std::string> hashes;
};

// "model.layers.12.mlp.up_proj.weight": {12, "model.layers.*.mlp.up_proj.weight"}; -1 and the name for others.
std::pair<int, std::string> SplitWeightName(const std::string& name) {
  if (name.starts_with(kLayerPrefix)) {
    const size_t begin = kLayerPrefix.size(), end = name.find('.', begin);
    int layer = -1;
    if (end != name.npos) std::from_chars(name.data() + begin, name.data() + end, layer);
    if (layer >= 0 && std::to_string(layer) == name.substr(begin, end - begin)) {
      return {layer, std::string(kLayerPrefix) + "*" + name.substr(end)};
    }
  }
  return {-1, name};
}

std::vector<WeightGroup> GroupWeights(const std::map<std::string, WeightFingerprint>& weights) {
  std::map<int, std::vector<std::pair<std::string, const WeightFingerprint*>>> by_layer;
  for (const auto& [name, weight] : weights) {
    auto [layer, pattern] = SplitWeightName(name);
    by_layer[layer].emplace_back(std::move(pattern), &weight);
  }
  std::map<std::tuple<std::string, DType, std::vector<int64_t>, bool>, WeightGroup> groups;
  for (const auto& [layer, list] : by_layer) {
    for (const auto& [pattern, weight] : list) {
      WeightGroup& group = groups[{pattern, weight->dtype, weight->shape, layer >= 0}];
      group.name = pattern;
      group.first = *weight;
      if (layer >= 0) group.layers.push_back(layer);
      group.hashes.push_back(weight->hash);
    }
  }
  std::vector<WeightGroup> out;
  for (auto& [key, group] : groups) out.push_back(std::move(group));
  return out;
}

Json WeightJson(const WeightGroup& group) {
  Json json = {{"name", group.name}, {"dtype", DTypeName(group.first.dtype)}, {"shape", group.first.shape}};
  if (!group.layers.empty()) json["layers"] = RangesText(group.layers);
  json["hashes"] = group.hashes;
  return json;
}

Json ArithmeticJson(const TraceMeta& meta) {
  if (!meta.has_arithmetic) return nullptr;
  const Arithmetic& a = meta.arithmetic;
  return {{"storage", DTypeName(a.storage)},
          {"operands", DTypeName(a.operands)},
          {"accumulate", DTypeName(a.accumulate)},
          {"cache", DTypeName(a.cache)}};
}

std::vector<std::string> SequenceLines(const Golden& golden) {
  std::vector<std::string> lines;
  for (size_t i = 0; i < golden.tokens.size();) {
    const int32_t sequence = golden.tokens[i].sequence;
    std::vector<int32_t> positions, ids;
    for (; i < golden.tokens.size() && golden.tokens[i].sequence == sequence; ++i) {
      positions.push_back(golden.tokens[i].position);
      ids.push_back(golden.tokens[i].id);
    }
    lines.push_back(Dump({{"sequence", sequence}, {"positions", RangesText(positions)}, {"ids", ids}}));
  }
  return lines;
}

std::string PointText(const GoldenPoint& point) {
  const SideStats& stats = point.stats;
  Json head = {{"name", point.name},
               {"dtype", DTypeName(stats.dtype)},
               {"row_shape", point.row_shape},
               {"rows", RangesText(point.rows)},
               {"block_rows", point.block_rows},
               {"mean", Rounded(stats.mean)},
               {"std", Rounded(stats.std)},
               {"min", Rounded(stats.min)},
               {"max", Rounded(stats.max)},
               {"nan", stats.nan_count},
               {"inf", stats.inf_count}};
  std::string text = Dump(head);
  text.back() = ',';  // the object goes on
  text += "\"blocks\":[";
  for (size_t i = 0; i < point.blocks.size(); ++i)
    text += (i > 0 ? ",\n\"" : "\n\"") + BlockText(point.blocks[i]) + "\"";
  return text + "]}";
}

std::string ListText(const std::vector<std::string>& items) {
  std::string text = "[";
  for (size_t i = 0; i < items.size(); ++i) text += (i > 0 ? ",\n" : "\n") + items[i];
  return text + "]";
}

// ---- reading

// "0-2, 5": ascending integers without repetition, at most `most` of them.
std::vector<int32_t> ParseRanges(const JsonNode& node, size_t most) {
  const std::string text = node.String(nullptr);
  std::vector<int32_t> out;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto number = [&] {
    int32_t value = -1;
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc() || value < 0 || *at == '-') node.Fail("ascending ranges such as \"0-2, 5\"");
    at = next;
    return int64_t{value};
  };
  while (at != end) {
    const int64_t first = number();
    int64_t last = first;
    if (at != end && *at == '-') ++at, last = number();
    if (last < first || (!out.empty() && first <= out.back())) node.Fail("ascending ranges such as \"0-2, 5\"");
    if (static_cast<size_t>(last - first) >= most - out.size()) node.Fail("at most " + std::to_string(most) + " rows");
    for (int64_t i = first; i <= last; ++i) out.push_back(static_cast<int32_t>(i));
    if (at == end) break;
    if (std::string_view(at, static_cast<size_t>(end - at)).substr(0, 2) != ", ") {
      node.Fail("ascending ranges such as \"0-2, 5\"");
    }
    at += 2;
    if (at == end) node.Fail("ascending ranges such as \"0-2, 5\"");
  }
  return out;
}

uint64_t ParseHex(const JsonNode& node, std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size()) node.Fail("hexadecimal digits");
  return value;
}

float ParseFloat(const JsonNode& node, std::string_view text) {
  const auto value = std::bit_cast<float>(static_cast<uint32_t>(ParseHex(node, text)));
  if (!std::isfinite(value)) node.Fail("finite numbers");
  return value;
}

GoldenBlock ReadBlock(const JsonNode& node) {
  const std::string text = node.String(nullptr);
  constexpr size_t kLength = 16 + 1 + 8 + 1 + 8 * kProjections;
  if (text.size() != kLength || text[16] != ' ' || text[25] != ' ') {
    node.Fail("a hash, a norm and " + std::to_string(kProjections) + " projections as hexadecimal digits");
  }
  const std::string_view view = text;
  GoldenBlock block;
  block.hash = ParseHex(node, view.substr(0, 16));
  block.norm = ParseFloat(node, view.substr(17, 8));
  if (block.norm < 0) node.Fail("a norm of 0 or more");
  for (size_t k = 0; k < kProjections; ++k) block.sketch[k] = ParseFloat(node, view.substr(26 + 8 * k, 8));
  return block;
}

double ReadNumber(const JsonNode& node) {
  if (!node.present() || !node.value().is_number()) node.Fail("a number");
  return node.value().get<double>();
}

std::vector<int64_t> ReadShape(const JsonNode& node) {
  std::vector<int64_t> shape;
  node.ForEachElement([&](const JsonNode& extent) { shape.push_back(extent.Int(0, kMaxInt)); });
  if (shape.size() > 8 || !NumElements(shape)) node.Fail("a shape that fits into memory");
  return shape;
}

void ReadWeight(const JsonNode& node, std::map<std::string, WeightFingerprint>* weights) {
  const std::string name = node["name"].String(nullptr);
  WeightFingerprint weight{node["dtype"].Type(), ReadShape(node["shape"]), ""};
  const std::vector<std::string> hashes = node["hashes"].Strings();
  const JsonNode layers_node = node["layers"];
  std::vector<int32_t> layers;
  if (layers_node.present()) layers = ParseRanges(layers_node, hashes.size());
  const size_t star = name.find('*');
  if (hashes.size() != (layers_node.present() ? layers.size() : 1)) node["hashes"].Fail("one a layer");
  if (layers_node.present() && star == name.npos) node["name"].Fail("a name with * for the layer");
  for (size_t i = 0; i < hashes.size(); ++i) {
    weight.hash = hashes[i];
    const std::string full =
        layers_node.present() ? name.substr(0, star) + std::to_string(layers[i]) + name.substr(star + 1) : name;
    if (!weights->emplace(full, weight).second) node["name"].Fail("every weight once");
  }
}

void ReadMeta(const JsonNode& root, TraceMeta* meta) {
  meta->producer = root["producer"]["name"].String("");
  meta->producer_version = root["producer"]["version"].String("");
  meta->model_type = root["model"]["type"].String("");
  root["model"]["config"].ForEachMember(
      [&](const std::string& key, const JsonNode& value) { meta->config[key] = value.String(nullptr); });
  const JsonNode arithmetic = root["arithmetic"];
  meta->has_arithmetic = arithmetic.present() && !arithmetic.value().is_null();
  if (meta->has_arithmetic) {
    meta->arithmetic = {arithmetic["storage"].Type(), arithmetic["operands"].Type(), arithmetic["accumulate"].Type(),
                        arithmetic["cache"].Type()};
  }
  root["weights"].ForEachElement([&](const JsonNode& weight) { ReadWeight(weight, &meta->weights); });
  meta->closed = true;
}

void ReadSequence(const JsonNode& node, std::vector<GoldenToken>* tokens) {
  const auto sequence = static_cast<int32_t>(node["sequence"].Int(0, kMaxInt));
  if (!tokens->empty() && sequence <= tokens->back().sequence) node["sequence"].Fail("ascending numbers");
  std::vector<int32_t> ids;
  node["ids"].ForEachElement([&](const JsonNode& id) { ids.push_back(static_cast<int32_t>(id.Int(-1, kMaxInt))); });
  const std::vector<int32_t> positions = ParseRanges(node["positions"], ids.size());
  if (ids.empty() || positions.size() != ids.size()) {
    node["positions"].Fail("as many as the " + std::to_string(ids.size()) + " ids, and at least one");
  }
  for (size_t i = 0; i < ids.size(); ++i) tokens->push_back({sequence, positions[i], ids[i]});
}

GoldenPoint ReadPoint(const JsonNode& node, const std::vector<GoldenToken>& tokens) {
  GoldenPoint point;
  point.name = node["name"].String(nullptr);
  point.stats.dtype = node["dtype"].Type();
  point.row_shape = ReadShape(node["row_shape"]);
  point.rows = ParseRanges(node["rows"], tokens.size());
  if (point.rows.empty() || static_cast<size_t>(point.rows.back()) >= tokens.size()) {
    node["rows"].Fail("rows of the " + std::to_string(tokens.size()) + " tokens");
  }
  point.block_rows = static_cast<int32_t>(node["block_rows"].Int(1, kMaxInt));
  point.stats.mean = ReadNumber(node["mean"]);
  point.stats.std = ReadNumber(node["std"]);
  point.stats.min = ReadNumber(node["min"]);
  point.stats.max = ReadNumber(node["max"]);
  point.stats.nan_count = node["nan"].Int(0, std::numeric_limits<int64_t>::max());
  point.stats.inf_count = node["inf"].Int(0, std::numeric_limits<int64_t>::max());
  node["blocks"].ForEachElement([&](const JsonNode& block) { point.blocks.push_back(ReadBlock(block)); });
  std::vector<int32_t> sequences;
  for (const int32_t row : point.rows) sequences.push_back(tokens[static_cast<size_t>(row)].sequence);
  const size_t expected = BlocksOf(sequences, point.block_rows).size();
  if (point.blocks.size() != expected) {
    throw Error(node["blocks"].where() + ": expected " + std::to_string(expected) + " blocks for " +
                std::to_string(point.rows.size()) + " rows, found " + std::to_string(point.blocks.size()));
  }
  return point;
}

void ReadPoints(const JsonNode& node, Golden* golden) {
  std::map<std::string, GoldenPoint> points;
  std::vector<std::string> names;
  size_t rows = 0;
  node.ForEachElement([&](const JsonNode& element) {
    GoldenPoint point = ReadPoint(element, golden->tokens);
    rows += point.rows.size();
    if (rows > kMaxRows) element.Fail("at most " + std::to_string(kMaxRows) + " rows in all");
    names.push_back(point.name);
    if (!points.emplace(names.back(), std::move(point)).second) element["name"].Fail("every point once");
  });
  if (names.empty()) node.Fail("at least one point");
  for (const std::string& name : InExecutionOrder(names)) golden->points.push_back(std::move(points.at(name)));
}

Golden ReadFile(const std::string& path) {
  const SortedJson json = ParseSortedJson(ReadTextFile(path, kMaxBytes), path);
  const JsonNode root(&json, path);
  root.Object();
  if (root["schema"].String("") != kSchema) root["schema"].Fail("\"" + std::string(kSchema) + "\"");
  Golden golden;
  golden.path = path;
  ReadMeta(root, &golden.meta);
  root["sequences"].ForEachElement([&](const JsonNode& node) { ReadSequence(node, &golden.tokens); });
  if (golden.tokens.empty()) root["sequences"].Fail("at least one sequence");
  ReadPoints(root["points"], &golden);
  return golden;
}

}  // namespace

std::string GoldenText(const Golden& golden) {
  const TraceMeta& meta = golden.meta;
  std::vector<std::string> weights, points;
  for (const WeightGroup& group : GroupWeights(meta.weights)) weights.push_back(Dump(WeightJson(group)));
  for (const GoldenPoint& point : golden.points) points.push_back(PointText(point));
  const Json producer = {{"name", meta.producer}, {"version", meta.producer_version}};
  const Json model = {{"type", meta.model_type}, {"config", meta.config}};
  return "{\"schema\":\"" + std::string(kSchema) + "\",\n\"producer\":" + Dump(producer) +
         ",\n\"model\":" + Dump(model) + ",\n\"arithmetic\":" + Dump(ArithmeticJson(meta)) +
         ",\n\"weights\":" + ListText(weights) + ",\n\"sequences\":" + ListText(SequenceLines(golden)) +
         ",\n\"points\":" + ListText(points) + "}\n";
}

Golden ReadGolden(const std::string& path) {
  try {
    return ReadFile(path);
  } catch (const Error& e) {
    throw Error(std::string(e.what()) + "; lockstep record writes a new one");
  }
}

}  // namespace lockstep
