// Test only: a small random Qwen3 on disk, and traces of values that the test computes itself.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/test_files.h"
#include "lockstep/capture.hpp"
#include "lockstep/diagnose.h"

namespace lockstep::test {

using Values = std::vector<double>;

constexpr int64_t kHidden = 64, kHeads = 4, kKvHeads = 2, kDim = 32, kInter = 128, kVocab = 64, kLayers = 3;
constexpr double kEps = 1e-6, kTheta = 1e6;

class DiagnoseTest : public testing::Test {
 protected:
  DiagnoseTest() {
    Json config = TinyConfig();
    config["hidden_size"] = kHidden, config["num_hidden_layers"] = kLayers, config["head_dim"] = kDim;
    config["num_attention_heads"] = kHeads, config["num_key_value_heads"] = kKvHeads;
    config["intermediate_size"] = kInter, config["vocab_size"] = kVocab, config["torch_dtype"] = "float32";
    WriteText(dir_ / "config.json", config.dump());
    Add("model.embed_tokens.weight", {kVocab, kHidden});
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::string at = "model.layers." + std::to_string(layer) + ".";
      Add(at + "self_attn.q_proj.weight", {kHeads * kDim, kHidden});
      Add(at + "self_attn.k_proj.weight", {kKvHeads * kDim, kHidden});
      Add(at + "self_attn.v_proj.weight", {kKvHeads * kDim, kHidden});
      Add(at + "self_attn.o_proj.weight", {kHidden, kHeads * kDim});
      Add(at + "self_attn.q_norm.weight", {kDim});
      Add(at + "self_attn.k_norm.weight", {kDim});
      Add(at + "mlp.gate_proj.weight", {kInter, kHidden});
      Add(at + "mlp.up_proj.weight", {kInter, kHidden});
      Add(at + "mlp.down_proj.weight", {kHidden, kInter});
      Add(at + "input_layernorm.weight", {kHidden});
      Add(at + "post_attention_layernorm.weight", {kHidden});
    }
    Add("model.norm.weight", {kHidden});
    WriteText(dir_ / "model.safetensors", SafetensorsText(HeaderOf(tensors_).dump(), data_));
  }

  // Normal numbers times `size`.
  Values Random(int64_t count, double size = 1) {
    std::normal_distribution<double> normal;
    Values out;
    for (int64_t i = 0; i < count; ++i) out.push_back(static_cast<float>(size * normal(random_)));
    return out;
  }

  const Values& Weight(const std::string& name) const { return weights_.at("model." + name + ".weight"); }
  const Values& Weight(int layer, const std::string& name) const {
    return Weight("layers." + std::to_string(layer) + "." + name);
  }

  // One call of tokens 0, 1, ... with these points; [tokens, ...] each. `judged`: a selection of points.
  Diagnosis Diagnosed(const std::map<std::string, Values>& points, int tokens, const std::string& judged = "") {
    const std::string path = dir_ / ("t" + std::to_string(traces_++) + ".trace");
    {
      TraceInfo info;
      info.producer = "test";
      Trace trace(path, info);
      std::vector<int32_t> positions, sequences, ids;
      // Without ids nothing can be recomputed from the embedding on: each op has its inputs or none.
      const bool has_ids = points.count("input_embeddings") > 0;
      for (int t = 0; t < tokens; ++t) {
        positions.push_back(t), sequences.push_back(0);
        ids.push_back(has_ids ? static_cast<int32_t>((7 * t + 3) % kVocab) : -1);
      }
      auto step = trace.BeginStep(ids.data(), positions.data(), sequences.data(), tokens, Phase::kPrefill);
      for (const auto& [name, values] : points) {
        const std::vector<float> floats(values.begin(), values.end());
        step.Record(name, floats.data(), DType::kF32, {tokens, static_cast<int64_t>(values.size()) / tokens});
      }
      step.End();
    }
    ReplayOptions options;
    options.points = judged;
    return Diagnose({path}, dir_.path(), options);
  }

  // The id of the only finding's cause; "unexplained", or what is wrong with it.
  std::string CauseOf(const std::map<std::string, Values>& points, int tokens, const std::string& judged = "") {
    const Diagnosis diagnosis = Diagnosed(points, tokens, judged);
    if (diagnosis.findings.size() != 1) return std::to_string(diagnosis.findings.size()) + " findings";
    const Finding& finding = diagnosis.findings.front();
    text_ = finding.cause ? finding.cause->text : "";
    return finding.cause ? finding.cause->cause : "unexplained";
  }

  std::string text_;  // of the last cause

 private:
  void Add(const std::string& name, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    Values values = Random(count, shape.size() == 1 ? 0.3 : 0.1);
    for (double& value : values) value = static_cast<float>(value + (shape.size() == 1 ? 1 : 0));
    for (const double value : values) {
      const auto single = static_cast<float>(value);
      data_.append(reinterpret_cast<const char*>(&single), sizeof(single));
    }
    tensors_.push_back({name, "F32", shape});
    weights_[name] = std::move(values);
  }

  TempDir dir_;
  std::mt19937 random_{1};
  std::vector<TestTensor> tensors_;
  std::string data_;
  std::map<std::string, Values> weights_;
  int traces_ = 0;
};

}  // namespace lockstep::test
