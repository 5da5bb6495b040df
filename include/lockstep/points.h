// The point table: the named places of a dense Qwen3 at which every implementation can be observed. It is the one map
// that the engine, the reference, the comparison and the documentation share; python/lockstep/points.json and
// docs/points.md are generated from it.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

// In execution order.
enum class Point : uint8_t {
  kInputEmbeddings,
  kInputHiddenStates,
  kAttnNormOutput,
  kAttnQProjRaw,
  kAttnKProjRaw,
  kAttnVProjRaw,
  kAttnQNormed,
  kAttnKNormed,
  kAttnQRope,
  kAttnKRope,
  kAttnScores,
  kAttnProbs,
  kAttnContext,
  kAttnOProj,
  kAttnResidualOutput,
  kMlpNormOutput,
  kMlpGateProj,
  kMlpUpProj,
  kMlpIntermediate,
  kMlpDownProj,
  kLayerOutput,
  kFinalNormOutput,
  kLogits,
};

enum class Axis : uint8_t { kToken, kHidden, kQHead, kKvHead, kHeadDim, kKey, kIntermediate, kVocab };

struct PointSpec {
  Point id;
  std::string_view name;  // without the layer: "attn_q_rope"
  bool per_layer;
  bool on_request;  // captured only when a selection names it
  std::vector<Axis> axes;
  std::string_view op;
  std::vector<std::string_view> inputs;   // points, or "input_ids" and "positions"
  std::vector<std::string_view> weights;  // checkpoint names without "model.layers.N." and ".weight"
  std::string_view meaning;
};

// A tensor name taken apart: "layer_3_attn_q_rope" is {&spec of attn_q_rope, 3}; layer is -1 for points outside the
// layers.
struct PointRef {
  const PointSpec* spec;
  int layer;
};

std::span<const PointSpec> Points();
const PointSpec& SpecOf(Point id);
std::string_view AxisName(Axis axis);

// REQUIRES: layer >= 0 exactly where the point is per layer.
std::string PointName(Point id, int layer = -1);

// Empty for a name that is not in the table (a user's own point).
std::optional<PointRef> ParsePointName(std::string_view name);

// "layer_3_my_point" -> 3; -1 where there is no such prefix. Works for users' own points too.
int LayerOf(std::string_view name);
// "layer_3_my_point" -> "my_point"; the whole name where there is no such prefix.
std::string_view WithoutLayer(std::string_view name);

// Sorts names in execution order: table points by (layer, place in the table); a user's own point after the table
// points of its layer, by name; own points outside the layers at the very end.
std::vector<std::string> InExecutionOrder(std::vector<std::string> names);

// Every point of a model with that many layers, in execution order; those on request only when asked for.
std::vector<std::string> AllPointNames(int num_layers, bool on_request = false);

// python/lockstep/points.json and the table of docs/points.md.
std::string PointsAsJson();
std::string PointsAsMarkdown();

}  // namespace lockstep
