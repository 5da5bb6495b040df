#include "lockstep/points.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <tuple>

namespace lockstep {
namespace {

using enum Axis;
using enum Point;

const std::vector<PointSpec>& Table() {
  static const std::vector<PointSpec> table = {
      {kInputEmbeddings,
       "input_embeddings",
       false,
       false,
       {kToken, kHidden},
       "embedding",
       {"input_ids"},
       {"embed_tokens"},
       "embedding row of the token"},
      {kInputHiddenStates,
       "input_hidden_states",
       true,
       false,
       {kToken, kHidden},
       "identity",
       {"layer_output"},
       {},
       "input of the layer: the output of the one before, or input_embeddings"},
      {kAttnNormOutput,
       "attn_norm_output",
       true,
       false,
       {kToken, kHidden},
       "rms_norm",
       {"input_hidden_states"},
       {"input_layernorm"},
       "after the norm before attention"},
      {kAttnQProjRaw,
       "attn_q_proj_raw",
       true,
       false,
       {kToken, kQHead, kHeadDim},
       "linear",
       {"attn_norm_output"},
       {"self_attn.q_proj"},
       "query projection"},
      {kAttnKProjRaw,
       "attn_k_proj_raw",
       true,
       false,
       {kToken, kKvHead, kHeadDim},
       "linear",
       {"attn_norm_output"},
       {"self_attn.k_proj"},
       "key projection"},
      {kAttnVProjRaw,
       "attn_v_proj_raw",
       true,
       false,
       {kToken, kKvHead, kHeadDim},
       "linear",
       {"attn_norm_output"},
       {"self_attn.v_proj"},
       "value projection"},
      {kAttnQNormed,
       "attn_q_normed",
       true,
       false,
       {kToken, kQHead, kHeadDim},
       "rms_norm",
       {"attn_q_proj_raw"},
       {"self_attn.q_norm"},
       "query after the norm of each head"},
      {kAttnKNormed,
       "attn_k_normed",
       true,
       false,
       {kToken, kKvHead, kHeadDim},
       "rms_norm",
       {"attn_k_proj_raw"},
       {"self_attn.k_norm"},
       "key after the norm of each head"},
      {kAttnQRope,
       "attn_q_rope",
       true,
       false,
       {kToken, kQHead, kHeadDim},
       "rope",
       {"attn_q_normed", "positions"},
       {},
       "query after the rotation by its position"},
      {kAttnKRope,
       "attn_k_rope",
       true,
       false,
       {kToken, kKvHead, kHeadDim},
       "rope",
       {"attn_k_normed", "positions"},
       {},
       "key after the rotation; new tokens only, as written to the cache"},
      {kAttnScores,
       "attn_scores",
       true,
       true,
       {kToken, kQHead, kKey},
       "attention_scores",
       {"attn_q_rope", "attn_k_rope"},
       {},
       "q·k / sqrt(head_dim), masked; on request"},
      {kAttnProbs,
       "attn_probs",
       true,
       true,
       {kToken, kQHead, kKey},
       "softmax",
       {"attn_scores"},
       {},
       "softmax over the keys; on request"},
      {kAttnContext,
       "attn_context",
       true,
       false,
       {kToken, kQHead, kHeadDim},
       "attention",
       {"attn_q_rope", "attn_k_rope", "attn_v_proj_raw"},
       {},
       "output of attention, before o_proj"},
      {kAttnOProj,
       "attn_o_proj",
       true,
       false,
       {kToken, kHidden},
       "linear",
       {"attn_context"},
       {"self_attn.o_proj"},
       "output projection, before the residual"},
      {kAttnResidualOutput,
       "attn_residual_output",
       true,
       false,
       {kToken, kHidden},
       "add",
       {"input_hidden_states", "attn_o_proj"},
       {},
       "residual stream after attention"},
      {kMlpNormOutput,
       "mlp_norm_output",
       true,
       false,
       {kToken, kHidden},
       "rms_norm",
       {"attn_residual_output"},
       {"post_attention_layernorm"},
       "after the norm before the MLP"},
      {kMlpGateProj,
       "mlp_gate_proj",
       true,
       false,
       {kToken, kIntermediate},
       "linear",
       {"mlp_norm_output"},
       {"mlp.gate_proj"},
       "gate projection, before SiLU"},
      {kMlpUpProj,
       "mlp_up_proj",
       true,
       false,
       {kToken, kIntermediate},
       "linear",
       {"mlp_norm_output"},
       {"mlp.up_proj"},
       "up projection"},
      {kMlpIntermediate,
       "mlp_intermediate",
       true,
       false,
       {kToken, kIntermediate},
       "swiglu",
       {"mlp_gate_proj", "mlp_up_proj"},
       {},
       "silu(gate) · up"},
      {kMlpDownProj,
       "mlp_down_proj",
       true,
       false,
       {kToken, kHidden},
       "linear",
       {"mlp_intermediate"},
       {"mlp.down_proj"},
       "down projection, before the residual"},
      {kLayerOutput,
       "layer_output",
       true,
       false,
       {kToken, kHidden},
       "add",
       {"attn_residual_output", "mlp_down_proj"},
       {},
       "residual stream after the MLP"},
      {kFinalNormOutput,
       "final_norm_output",
       false,
       false,
       {kToken, kHidden},
       "rms_norm",
       {"layer_output"},
       {"norm"},
       "after the final norm"},
      {kLogits,
       "logits",
       false,
       false,
       {kToken, kVocab},
       "linear",
       {"final_norm_output"},
       {"lm_head"},
       "logits of the rows computed"},
  };
  return table;
}

constexpr std::string_view kLayerPrefix = "layer_";

// Splits "layer_12_rest" into (12, "rest"); (-1, name) where it does not have that form.
std::pair<int, std::string_view> SplitLayer(std::string_view name) {
  if (!name.starts_with(kLayerPrefix)) return {-1, name};
  std::string_view rest = name.substr(kLayerPrefix.size());
  const size_t digits = rest.find_first_not_of("0123456789");
  constexpr size_t kMaxDigits = 6;
  if (digits == 0 || digits == rest.npos || digits > kMaxDigits || rest[digits] != '_') return {-1, name};
  if (digits > 1 && rest[0] == '0') return {-1, name};
  return {std::stoi(std::string(rest.substr(0, digits))), rest.substr(digits + 1)};
}

std::string Quoted(std::string_view text) { return '"' + std::string(text) + '"'; }

template <typename List, typename ToText>
std::string Joined(const List& items, const char* separator, ToText to_text) {
  std::string out;
  for (const auto& item : items) {
    if (!out.empty()) out += separator;
    out += to_text(item);
  }
  return out;
}

}  // namespace

std::span<const PointSpec> Points() { return Table(); }

const PointSpec& SpecOf(Point id) { return Table()[static_cast<size_t>(id)]; }

std::string_view AxisName(Axis axis) {
  static constexpr std::array<std::string_view, 8> names = {"token",    "hidden", "q_head",       "kv_head",
                                                            "head_dim", "key",    "intermediate", "vocab"};
  return names[static_cast<size_t>(axis)];
}

std::string PointName(Point id, int layer) {
  const PointSpec& spec = SpecOf(id);
  assert(spec.per_layer == (layer >= 0));
  if (!spec.per_layer) return std::string(spec.name);
  return std::string(kLayerPrefix) + std::to_string(layer) + '_' + std::string(spec.name);
}

std::optional<PointRef> ParsePointName(std::string_view name) {
  const auto [layer, rest] = SplitLayer(name);
  for (const PointSpec& spec : Table()) {
    if (spec.name == rest && spec.per_layer == (layer >= 0)) return PointRef{&spec, layer};
  }
  return std::nullopt;
}

int LayerOf(std::string_view name) { return SplitLayer(name).first; }

std::string_view WithoutLayer(std::string_view name) { return SplitLayer(name).second; }

std::vector<std::string> InExecutionOrder(std::vector<std::string> names) {
  // Layers lie between input_embeddings and final_norm_output; own points follow what they belong to.
  constexpr int kAfterLayers = 1 << 30;
  auto key = [](const std::string& name) {
    const std::optional<PointRef> ref = ParsePointName(name);
    const int place = ref ? static_cast<int>(ref->spec->id) : static_cast<int>(Table().size());
    const bool first = ref && ref->spec->id == kInputEmbeddings;
    const int layer = LayerOf(name);
    return std::tuple(first ? -1 : layer < 0 ? kAfterLayers : layer, place, name);
  };
  std::sort(names.begin(), names.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
  return names;
}

std::vector<std::string> AllPointNames(int num_layers, bool on_request) {
  std::vector<std::string> names;
  auto wanted = [&](const PointSpec& spec) { return on_request || !spec.on_request; };
  names.push_back(PointName(kInputEmbeddings));
  for (int layer = 0; layer < num_layers; ++layer) {
    for (const PointSpec& spec : Table()) {
      if (spec.per_layer && wanted(spec)) names.push_back(PointName(spec.id, layer));
    }
  }
  names.push_back(PointName(kFinalNormOutput));
  names.push_back(PointName(kLogits));
  return names;
}

std::string PointsAsJson() {
  auto axis_name = [](Axis axis) { return Quoted(AxisName(axis)); };
  auto line = [&](const PointSpec& spec) {
    return "  {\"name\": " + Quoted(spec.name) + ", \"per_layer\": " + (spec.per_layer ? "true" : "false") +
           ", \"on_request\": " + (spec.on_request ? "true" : "false") + ", \"axes\": [" +
           Joined(spec.axes, ", ", axis_name) + "], \"op\": " + Quoted(spec.op) + ", \"inputs\": [" +
           Joined(spec.inputs, ", ", Quoted) + "], \"weights\": [" + Joined(spec.weights, ", ", Quoted) + "]}";
  };
  return "[\n" + Joined(Table(), ",\n", line) + "\n]\n";
}

std::string PointsAsMarkdown() {
  auto code = [](std::string_view text) { return '`' + std::string(text) + '`'; };
  auto line = [&](const PointSpec& spec) {
    return "| " + code((spec.per_layer ? "layer_N_" : "") + std::string(spec.name)) + " | " +
           Joined(spec.axes, ", ", [](Axis axis) { return std::string(AxisName(axis)); }) + " | " +
           std::string(spec.op) + " | " + Joined(spec.inputs, ", ", code) + " | " + Joined(spec.weights, ", ", code) +
           " | " + std::string(spec.meaning) + " |";
  };
  return "| point | axes | op | inputs | weights | meaning |\n|---|---|---|---|---|---|\n" +
         Joined(Table(), "\n", line) + "\n";
}

}  // namespace lockstep
