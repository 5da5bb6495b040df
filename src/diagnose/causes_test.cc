// Causes named from values that the tests compute by themselves, and mistakes that resemble them and must stay
// unexplained.
#include <algorithm>

#include "diagnose/test_model.h"

namespace lockstep::test {
namespace {

constexpr int kTokens = 40;

// --- The ops, written out ---

Values Mapped(const Values& x, const Values& y, double (*f)(double, double)) {
  Values out;
  for (size_t i = 0; i < x.size(); ++i) out.push_back(f(x[i], y[i]));
  return out;
}

// Rows of `group` divided by `divisor(sum of squares, sum of magnitudes)`.
template <typename F>
Values Normed(const Values& x, const Values& weight, size_t group, F&& divisor) {
  Values out(x.size());
  for (size_t begin = 0; begin < x.size(); begin += group) {
    double squares = 0, magnitudes = 0;
    for (size_t i = begin; i < begin + group; ++i) squares += x[i] * x[i], magnitudes += std::abs(x[i]);
    for (size_t i = begin; i < begin + group; ++i) {
      out[i] = x[i] / divisor(squares, magnitudes) * weight[i % weight.size()];
    }
  }
  return out;
}

Values Product(const Values& x, const Values& w, int64_t columns) {
  const auto k = static_cast<size_t>(columns);
  Values out;
  for (size_t t = 0; t < x.size(); t += k) {
    for (size_t n = 0; n < w.size(); n += k) {
      double sum = 0;
      for (size_t i = 0; i < k; ++i) sum += x[t + i] * w[n + i];
      out.push_back(sum);
    }
  }
  return out;
}

struct Turn {
  double theta = kTheta;
  bool interleaved = false;
  double minus = -1;
  std::function<double(int)> position = [](int t) { return t; };
};

Values Rotated(const Values& x, int64_t heads, const Turn& turn) {
  Values out = x;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < kDim / 2; ++i) {
        const auto base = static_cast<size_t>((t * heads + h) * kDim);
        const size_t a = base + static_cast<size_t>(turn.interleaved ? 2 * i : i);
        const size_t b = base + static_cast<size_t>(turn.interleaved ? 2 * i + 1 : i + kDim / 2);
        const double angle = turn.position(static_cast<int>(t)) * std::pow(turn.theta, -2.0 * i / kDim);
        out[a] = x[a] * std::cos(angle) + turn.minus * x[b] * std::sin(angle);
        out[b] = x[b] * std::cos(angle) + x[a] * std::sin(angle);
      }
    }
  }
  return out;
}

struct Look {
  double scale = 1 / std::sqrt(static_cast<double>(kDim));
  std::function<int64_t(int64_t)> kv_head = [](int64_t h) { return h * kKvHeads / kHeads; };
  int64_t window = kTokens;
  double slope = 0;  // of a penalty by distance
};

Values Attended(const Values& q, const Values& k, const Values& v, const Look& look) {
  Values out(q.size());
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t h = 0; h < kHeads; ++h) {
      const double* query = q.data() + (t * kHeads + h) * kDim;
      double* result = out.data() + (t * kHeads + h) * kDim;
      double sum = 0;
      for (int64_t j = std::max<int64_t>(0, t + 1 - look.window); j <= t; ++j) {
        const int64_t at = (j * kKvHeads + look.kv_head(h)) * kDim;
        double dot = 0;
        for (int64_t c = 0; c < kDim; ++c) dot += query[c] * k[static_cast<size_t>(at + c)];
        const double p = std::exp(dot * look.scale - look.slope * static_cast<double>(t - j));
        sum += p;
        for (int64_t c = 0; c < kDim; ++c) result[c] += p * v[static_cast<size_t>(at + c)];
      }
      for (int64_t c = 0; c < kDim; ++c) result[c] /= sum;
    }
  }
  return out;
}

// --- RMSNorm ---

class NormTest : public DiagnoseTest {
 protected:
  template <typename F>
  std::string Cause(F&& divisor, double size = 1) {
    const Values x = Random(kTokens * kHidden, size);
    return CauseOf({{"layer_0_input_hidden_states", x},
                    {"layer_0_attn_norm_output", Normed(x, Weight(0, "input_layernorm"), kHidden, divisor)}},
                   kTokens);
  }
};

TEST_F(NormTest, RightIsClean) {
  EXPECT_EQ(Cause([](double squares, double) { return std::sqrt(squares / kHidden + kEps); }), "0 findings");
}

TEST_F(NormTest, Eps) {
  EXPECT_EQ(Cause([](double squares, double) { return std::sqrt(squares / kHidden + 1e-5); }), "norm-eps");
  EXPECT_EQ(text_, "eps 1e-05 instead of 1e-06");
}

TEST_F(NormTest, EpsOfNoRecipeIsMeasured) {
  EXPECT_EQ(Cause([](double squares, double) { return std::sqrt(squares / kHidden + 3.3e-4); }), "norm-eps");
  EXPECT_EQ(text_, "eps 0.00033 instead of 1e-06");
}

TEST_F(NormTest, EpsOutsideTheRoot) {
  EXPECT_EQ(Cause([](double squares, double) { return std::sqrt(squares / kHidden) + kEps; }, 0.01),
            "norm-eps-outside-root");
}

TEST_F(NormTest, MeanOfMagnitudesStaysUnexplained) {
  EXPECT_EQ(Cause([](double, double magnitudes) { return magnitudes / kHidden; }), "unexplained");
}

TEST_F(NormTest, WeightOfAnotherNorm) {
  const Values x = Random(kTokens * kHidden);
  const auto divisor = [](double squares, double) { return std::sqrt(squares / kHidden + kEps); };
  EXPECT_EQ(CauseOf({{"layer_1_input_hidden_states", x},
                     {"layer_1_attn_norm_output", Normed(x, Weight(2, "post_attention_layernorm"), kHidden, divisor)}},
                    kTokens),
            "norm-other-weight");
  EXPECT_EQ(text_, "multiplies by the weight of the next layer's mlp_norm_output");
}

// --- RoPE ---

class RopeTest : public DiagnoseTest {
 protected:
  std::string Cause(const Turn& turn) {
    const Values x = Random(kTokens * kHeads * kDim);
    return CauseOf({{"layer_0_attn_q_normed", x}, {"layer_0_attn_q_rope", Rotated(x, kHeads, turn)}}, kTokens);
  }
};

TEST_F(RopeTest, RightIsClean) { EXPECT_EQ(Cause({}), "0 findings"); }
TEST_F(RopeTest, Interleaved) { EXPECT_EQ(Cause({.interleaved = true}), "rope-interleaved"); }

TEST_F(RopeTest, ThetaIsMeasured) {
  EXPECT_EQ(Cause({.theta = 123400}), "rope-theta");
  EXPECT_EQ(text_, "theta 123400 instead of 1000000");
}

TEST_F(RopeTest, PositionsAreMeasured) {
  EXPECT_EQ(Cause({.position = [](int t) { return t + 37; }}), "rope-position-offset");
  EXPECT_EQ(text_, "uses position + 37");
  EXPECT_EQ(Cause({.position = [](int t) { return t * t % 61; }}), "rope-position-other");
}

TEST_F(RopeTest, TwoMistakesAtOnce) {
  EXPECT_EQ(Cause({.theta = 1e4, .interleaved = true}), "rope-interleaved");
  EXPECT_NE(text_.find("theta 10000"), text_.npos) << text_;
}

TEST_F(RopeTest, LostMinusStaysUnexplained) { EXPECT_EQ(Cause({.minus = 1}), "unexplained"); }

TEST_F(RopeTest, OneHeadOnly) {
  const Values x = Random(kTokens * kHeads * kDim), wrong = Rotated(x, kHeads, {.interleaved = true});
  Values y = Rotated(x, kHeads, {});
  for (size_t i = 0; i < y.size(); ++i) {
    if (i / kDim % kHeads == 2) y[i] = wrong[i];
  }
  EXPECT_EQ(CauseOf({{"layer_0_attn_q_normed", x}, {"layer_0_attn_q_rope", y}}, kTokens), "rope-interleaved");
}

// q and k in the order that interleaved pairs need: the scores are those of the right engine.
TEST_F(RopeTest, PermutedBasisIsALayout) {
  const Values x = Random(kTokens * kHidden);
  const auto permuted = [](const Values& y) {
    Values out(y.size());
    for (size_t i = 0; i < y.size(); ++i) {
      const size_t c = i % kDim;
      out[i] = y[i - c + c / 2 + c % 2 * (kDim / 2)];
    }
    return out;
  };
  std::map<std::string, Values> points = {{"layer_0_attn_norm_output", x}};
  for (const auto& [name, heads] : {std::pair("q", kHeads), std::pair("k", kKvHeads)}) {
    const std::string at = std::string("layer_0_attn_") + name;
    const Values raw = Product(x, Weight(0, std::string("self_attn.") + name + "_proj"), kHidden);
    const Values normed = Normed(raw, Weight(0, std::string("self_attn.") + name + "_norm"), kDim,
                                 [](double squares, double) { return std::sqrt(squares / kDim + kEps); });
    points[at + "_proj_raw"] = permuted(raw);
    points[at + "_normed"] = permuted(normed);
    points[at + "_rope"] = permuted(Rotated(normed, heads, {}));
  }
  const Diagnosis diagnosis = Diagnosed(points, kTokens);
  EXPECT_TRUE(diagnosis.findings.empty());
  ASSERT_EQ(diagnosis.layouts.size(), 1u);
  EXPECT_NE(diagnosis.layouts[0].find("halves interleaved"), std::string::npos) << diagnosis.layouts[0];
}

// --- Linear ---

class LinearTest : public DiagnoseTest {
 protected:
  std::string Cause(const std::string& point, const std::string& input, const Values& x, const Values& w,
                    int64_t columns) {
    return CauseOf({{input, x}, {point, Product(x, w, columns)}}, kTokens);
  }
  std::string CauseOfGate(const Values& w) {
    return Cause("layer_1_mlp_gate_proj", "layer_1_mlp_norm_output", Random(kTokens * kHidden), w, kHidden);
  }
  std::string CauseOfDown(const Values& x, const Values& w) {
    return Cause("layer_1_mlp_down_proj", "layer_1_mlp_intermediate", x, w, kInter);
  }
};

TEST_F(LinearTest, RightIsClean) { EXPECT_EQ(CauseOfGate(Weight(1, "mlp.gate_proj")), "0 findings"); }

TEST_F(LinearTest, OtherWeights) {
  EXPECT_EQ(CauseOfGate(Weight(0, "mlp.gate_proj")), "linear-other-layer");
  EXPECT_EQ(text_, "uses the weight of the layer before's mlp_gate_proj");
  EXPECT_EQ(CauseOfGate(Weight(1, "mlp.up_proj")), "linear-other-weight");
  EXPECT_EQ(text_, "uses the weight of mlp_up_proj");
}

TEST_F(LinearTest, ReadAsStoredTransposed) {
  const Values& w = Weight(1, "mlp.gate_proj");
  Values other(w.size());
  for (int64_t n = 0; n < kInter; ++n) {
    for (int64_t k = 0; k < kHidden; ++k)
      other[static_cast<size_t>(n * kHidden + k)] = w[static_cast<size_t>(k * kInter + n)];
  }
  EXPECT_EQ(CauseOfGate(other), "linear-reinterpreted");
}

TEST_F(LinearTest, RowsInAnotherOrder) {
  Values w = Weight(1, "mlp.gate_proj");
  std::rotate(w.begin(), w.begin() + kInter / 2 * kHidden, w.end());
  EXPECT_EQ(CauseOfGate(w), "linear-rows-permuted");
}

TEST_F(LinearTest, RoundedToInt4) {
  Values w = Weight(1, "mlp.gate_proj");
  for (size_t begin = 0; begin < w.size(); begin += 32) {
    float largest = 0;
    for (size_t i = begin; i < begin + 32; ++i) largest = std::max(largest, std::abs(static_cast<float>(w[i])));
    const float scale = largest / 7;
    for (size_t i = begin; i < begin + 32; ++i) w[i] = std::nearbyint(static_cast<float>(w[i]) / scale) * scale;
  }
  EXPECT_EQ(CauseOfGate(w), "linear-weight-rounded");
  EXPECT_EQ(text_, "uses the weight rounded to int4, groups of 32");
}

TEST_F(LinearTest, ShardsOfTheInput) {
  const Values x = Random(kTokens * kInter), &w = Weight(1, "mlp.down_proj");
  Values missing = w, doubled = w, sliced(w.size());
  for (int64_t n = 0; n < kHidden; ++n) {
    for (int64_t k = 0; k < kInter; ++k) {
      const auto at = static_cast<size_t>(n * kInter + k);
      const int64_t half = kInter / 2;
      if (k >= half) missing[at] = 0, doubled[at] *= 2;
      sliced[at] = w[static_cast<size_t>(k / half * kHidden * half + n * half + k % half)];
    }
  }
  EXPECT_EQ(CauseOfDown(x, missing), "linear-shard-missing");
  EXPECT_EQ(CauseOfDown(x, doubled), "linear-shard-doubled");
  EXPECT_EQ(CauseOfDown(x, sliced), "linear-input-slices");
}

TEST_F(LinearTest, Bias) {
  const Values x = Random(kTokens * kHidden), bias = Random(kInter, 0.05);
  Values y = Product(x, Weight(1, "mlp.gate_proj"), kHidden);
  for (size_t i = 0; i < y.size(); ++i) y[i] += bias[i % kInter];
  EXPECT_EQ(CauseOf({{"layer_1_mlp_norm_output", x}, {"layer_1_mlp_gate_proj", y}}, kTokens), "linear-bias");
}

TEST_F(LinearTest, ReadsAnotherPoint) {
  const Values x = Random(kTokens * kHidden), other = Random(kTokens * kHidden);
  const Values y = Product(other, Weight(1, "mlp.gate_proj"), kHidden);
  EXPECT_EQ(CauseOf({{"layer_1_attn_norm_output", other}, {"layer_1_mlp_norm_output", x}, {"layer_1_mlp_gate_proj", y}},
                    kTokens),
            "linear-wrong-input");
  EXPECT_EQ(text_, "reads attn_norm_output instead of mlp_norm_output");
}

TEST_F(LinearTest, AnotherWeightThatIsNowhereStaysUnexplained) {
  Values w = Weight(1, "mlp.gate_proj");
  const Values u = Random(kInter), v = Random(kHidden);
  for (size_t i = 0; i < w.size(); ++i) w[i] += 0.01 * u[i / kHidden] * v[i % kHidden];
  EXPECT_EQ(CauseOfGate(w), "unexplained");
}

// --- Attention ---

class AttentionTest : public DiagnoseTest {
 protected:
  std::string Cause(const Look& look) {
    const Values q = Random(kTokens * kHeads * kDim), k = Random(kTokens * kKvHeads * kDim);
    const Values v = Random(kTokens * kKvHeads * kDim);
    return CauseOf({{"layer_0_attn_q_rope", q},
                    {"layer_0_attn_k_rope", k},
                    {"layer_0_attn_v_proj_raw", v},
                    {"layer_0_attn_context", Attended(q, k, v, look)}},
                   kTokens);
  }
};

TEST_F(AttentionTest, RightIsClean) { EXPECT_EQ(Cause({}), "0 findings"); }

TEST_F(AttentionTest, HeadsAreMeasured) {
  EXPECT_EQ(Cause({.kv_head = [](int64_t h) { return h % kKvHeads; }}), "attention-heads-tiled");
  EXPECT_EQ(Cause({.kv_head = [](int64_t h) { return int64_t{h == 1}; }}), "attention-heads-tiled");
  EXPECT_EQ(text_, "reads key/value heads 0,1,0,0");
}

TEST_F(AttentionTest, ScaleIsMeasured) {
  EXPECT_EQ(Cause({.scale = 0.1234}), "attention-scale");
  EXPECT_EQ(text_, "scales by 0.1234 instead of 0.1768");
}

TEST_F(AttentionTest, WindowIsMeasured) {
  EXPECT_EQ(Cause({.window = 11}), "attention-window");
  EXPECT_EQ(text_, "sees only the last 11 keys");
}

TEST_F(AttentionTest, SlotIsMeasured) {
  const Values q = Random(kTokens * kHeads * kDim), k = Random(kTokens * kKvHeads * kDim);
  const Values v = Random(kTokens * kKvHeads * kDim);
  Values stale_k = k, stale_v = v;
  const int64_t width = kKvHeads * kDim;
  for (Values* rows : {&stale_k, &stale_v}) std::copy_n(rows->begin() + 9 * width, width, rows->begin() + 4 * width);
  EXPECT_EQ(CauseOf({{"layer_0_attn_q_rope", q},
                     {"layer_0_attn_k_rope", k},
                     {"layer_0_attn_v_proj_raw", v},
                     {"layer_0_attn_context", Attended(q, stale_k, stale_v, {})}},
                    kTokens),
            "attention-stale-cache");
  EXPECT_EQ(text_, "reads the keys and values of position 9 at position 4, too");
}

TEST_F(AttentionTest, PenaltyByDistanceStaysUnexplained) { EXPECT_EQ(Cause({.slope = 0.1}), "unexplained"); }

// --- Residual ---

class ResidualTest : public DiagnoseTest {
 protected:
  std::string Cause(double (*sum)(double, double)) {
    const Values stream = Random(kTokens * kHidden), branch = Random(kTokens * kHidden);
    return CauseOf({{"layer_0_attn_residual_output", stream},
                    {"layer_0_mlp_down_proj", branch},
                    {"layer_0_layer_output", Mapped(stream, branch, sum)}},
                   kTokens, "layer_output");
  }
};

TEST_F(ResidualTest, Factors) {
  EXPECT_EQ(Cause([](double a, double b) { return a + b; }), "0 findings");
  EXPECT_EQ(Cause([](double, double b) { return b; }), "residual-missing");
  EXPECT_EQ(Cause([](double a, double b) { return a + 2 * b; }), "residual-branch-doubled");
  EXPECT_EQ(Cause([](double a, double b) { return a + 0.22 * b; }), "residual-other");
  EXPECT_EQ(text_, "gives attn_residual_output + 0.22 * mlp_down_proj");
}

TEST_F(ResidualTest, ProductStaysUnexplained) {
  EXPECT_EQ(Cause([](double a, double b) { return a + b + 0.1 * a * b; }), "unexplained");
}

// --- SwiGLU ---

class SwiGluTest : public DiagnoseTest {
 protected:
  std::string Cause(double (*f)(double, double)) {
    const Values gate = Random(kTokens * kInter, 2), up = Random(kTokens * kInter);
    return CauseOf({{"layer_0_mlp_gate_proj", gate},
                    {"layer_0_mlp_up_proj", up},
                    {"layer_0_mlp_intermediate", Mapped(gate, up, f)}},
                   kTokens);
  }
};

TEST_F(SwiGluTest, Activations) {
  EXPECT_EQ(Cause([](double g, double u) { return g / (1 + std::exp(-g)) * u; }), "0 findings");
  EXPECT_EQ(Cause([](double g, double u) { return u / (1 + std::exp(-u)) * g; }), "swiglu-swapped");
  EXPECT_EQ(Cause([](double g, double u) { return std::max(g, 0.0) * u; }), "swiglu-relu");
  EXPECT_EQ(Cause([](double g, double u) { return 0.5 * g * std::erfc(-g / std::sqrt(2.0)) * u; }), "swiglu-gelu");
  EXPECT_EQ(Cause([](double g, double u) { return g * std::clamp(g / 6 + 0.5, 0.0, 1.0) * u; }), "unexplained");
}

// --- Embedding ---

class EmbeddingTest : public DiagnoseTest {
 protected:
  std::string Cause(int (*row_of)(int)) {
    Values y;
    for (int t = 0; t < kTokens; ++t) {
      const auto row = Weight("embed_tokens").begin() + row_of((7 * t + 3) % static_cast<int>(kVocab)) * kHidden;
      y.insert(y.end(), row, row + kHidden);
    }
    return CauseOf({{"input_embeddings", y}}, kTokens);
  }
};

TEST_F(EmbeddingTest, Rows) {
  EXPECT_EQ(Cause([](int id) { return id; }), "0 findings");
  EXPECT_EQ(Cause([](int id) { return std::min(id + 1, 63); }), "embedding-id-shifted");
  EXPECT_EQ(Cause([](int id) { return 63 - id; }), "embedding-wrong-row");
  EXPECT_EQ(text_, "reads the table in reverse order");
}

// --- Several faults ---

TEST_F(DiagnoseTest, FaultsDoNotHideEachOtherAndEqualOnesAreOneFinding) {
  std::map<std::string, Values> points;
  for (int layer = 0; layer < 2; ++layer) {
    const std::string at = "layer_" + std::to_string(layer) + "_";
    const Values x = Random(kTokens * kHeads * kDim), gate = Random(kTokens * kInter), up = Random(kTokens * kInter);
    points[at + "attn_q_normed"] = x;
    points[at + "attn_q_rope"] = Rotated(x, kHeads, {.interleaved = true});
    points[at + "mlp_gate_proj"] = gate;
    points[at + "mlp_up_proj"] = up;
    points[at + "mlp_intermediate"] = Mapped(gate, up, [](double g, double u) { return std::max(g, 0.0) * u; });
  }
  const Diagnosis diagnosis = Diagnosed(points, kTokens);
  ASSERT_EQ(diagnosis.findings.size(), 2u);
  EXPECT_EQ(diagnosis.findings[0].cause->cause, "rope-interleaved");
  EXPECT_EQ(diagnosis.findings[0].layers, (std::vector<int>{0, 1}));
  EXPECT_EQ(diagnosis.findings[1].cause->cause, "swiglu-relu");
  EXPECT_EQ(diagnosis.findings[1].layers, (std::vector<int>{0, 1}));
}

TEST_F(DiagnoseTest, RowsOfAnotherWidthAreAFindingOfTheirOwn) {
  const Values x = Random(kTokens * kHidden);
  EXPECT_EQ(
      CauseOf({{"layer_0_attn_norm_output", x}, {"layer_0_attn_q_proj_raw", Random(kTokens * kHeads * 16)}}, kTokens),
      "shape");
  EXPECT_NE(text_.find("head_dim 16"), text_.npos) << text_;
}

}  // namespace
}  // namespace lockstep::test
