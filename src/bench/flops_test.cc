// Counted work against figures worked out by hand, and against the published numbers of parameters.
#include "bench/flops.h"

#include <gtest/gtest.h>

#include "bench/shapes.h"
#include "lockstep/bench.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

// One of everything, all different: D 10, H 3, K 1, d 4, I 7, V 100, 2 layers.
Config Small(bool tied) {
  Config config;
  config.hidden_size = 10;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 3;
  config.num_key_value_heads = 1;
  config.head_dim = 4;
  config.intermediate_size = 7;
  config.vocab_size = 100;
  config.tie_word_embeddings = tied;
  return config;
}

// Of a layer: q 10·12, k and v 10·4 each, o 12·10, gate, up and down 10·7 each.
constexpr int64_t kLayerMatrices = 120 + 40 + 40 + 120 + 3 * 70;
constexpr int64_t kLayerNorms = 10 + 10 + 4 + 4;

TEST(FlopsTest, CountsTheElementsOfASmallModel) {
  EXPECT_EQ(PackedElements(Small(true)), 2 * (kLayerMatrices + kLayerNorms) + 10 + 1000);
  EXPECT_EQ(PackedElements(Small(false)), PackedElements(Small(true)));
}

TEST(FlopsTest, CountsAPrompt) {
  // Five tokens look at 1 + 2 + 3 + 4 + 5 keys; a key costs each of 3 heads 4 products for the score and 4 for the sum.
  const double layer = 2.0 * 5 * kLayerMatrices + 2.0 * 3 * (4 + 4) * 15;
  EXPECT_EQ(PrefillFlops(Small(true), 5, 1), 2 * layer + 2.0 * 1000);
  EXPECT_EQ(PrefillFlops(Small(true), 5, 5), 2 * layer + 2.0 * 5000);
  EXPECT_EQ(PrefillFlops(Small(false), 5, 5), 2 * layer + 2.0 * 5000);
}

TEST(FlopsTest, CountsTheBytesOfADecodedToken) {
  // The embedding counts one row, tied or not; a cached token is a key and a value of 4 channels in 2 layers.
  const double elements = 2 * (kLayerMatrices + kLayerNorms) + 10 + 1000 + 10;
  const double cached = 2 * 2 * 4;
  EXPECT_EQ(DecodeBytes(Small(true), DType::kBF16, 6), 2 * (elements + 6 * cached));
  EXPECT_EQ(DecodeBytes(Small(false), DType::kF32, 1), 4 * (elements + cached));
  EXPECT_EQ(CacheBytes(Small(true), DType::kF16, 6), static_cast<int64_t>(2 * 6 * cached));
}

TEST(ShapesTest, HaveThePublishedNumbersOfParameters) {
  EXPECT_EQ(PackedElements(ConfigOfShape("qwen3-0.6b")), 596'049'920);
  EXPECT_EQ(PackedElements(ConfigOfShape("qwen3-1.7b")), 1'720'574'976);
  EXPECT_EQ(PackedElements(ConfigOfShape("qwen3-4b")), 4'022'468'096);
  EXPECT_EQ(PackedElements(ConfigOfShape("qwen3-8b")), 8'190'735'360 - 151'936 * 4096);  // less the embedding
}

TEST(ShapesTest, RefusesAnUnknownName) {
  try {
    ConfigOfShape("qwen3-9b");
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "shape qwen3-9b: expected one of qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b");
  }
}

}  // namespace
}  // namespace lockstep
