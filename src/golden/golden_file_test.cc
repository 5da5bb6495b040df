#include <gmock/gmock.h>

#include <vector>

#include "lockstep/golden.h"
#include "trace/test_trace.h"

namespace lockstep {
namespace {

using testing::AllOf;
using testing::HasSubstr;

Golden Example() {
  Golden golden;
  golden.meta.producer = "my \"engine\"";
  golden.meta.model_type = "qwen3";
  golden.meta.config = {{"hidden_size", "4"}, {"rms_norm_eps", "1e-06"}};
  golden.meta.has_arithmetic = true;
  golden.meta.arithmetic.storage = DType::kBF16;
  for (const int layer : {0, 1, 2, 11}) {
    const std::string name = "model.layers." + std::to_string(layer) + ".mlp.up_proj.weight";
    golden.meta.weights[name] = {
        DType::kBF16, {8, layer == 11 ? 5 : 4}, "000000000000000" + std::to_string(layer % 10)};
  }
  golden.meta.weights["model.layers.007.x"] = {DType::kF32, {4}, "00000000000000aa"};
  golden.meta.weights["model.norm.weight"] = {DType::kF32, {4}, "00000000000000bb"};
  for (int i = 0; i < 3; ++i) golden.tokens.push_back({0, i, 100 + i});
  golden.tokens.push_back({4, 7, -1});
  GoldenPoint point;
  point.name = "layer_1_layer_output";
  point.row_shape = {4};
  point.rows = {0, 2, 3};
  point.block_rows = 5;
  point.stats.mean = 1.0 / 3;
  point.blocks = {{0x123456789abcdef0, 1.5f, {1, -2, 3, 4e-30f}}, {1, 0, {}}, {~uint64_t{0}, 2, {}}};
  golden.points = {point};
  return golden;
}

class GoldenFile : public TraceTest {
 protected:
  std::string file_ = root_ + "/golden.json";

  std::string ErrorOfText(const std::string& text) {
    WriteFile(file_, text);
    return ErrorOf([&] { ReadGolden(file_); });
  }
};

TEST_F(GoldenFile, ReadsWhatItWrote) {
  const Golden golden = Example();
  WriteFile(file_, GoldenText(golden));
  const Golden read = ReadGolden(file_);
  EXPECT_EQ(GoldenText(read), GoldenText(golden));
  EXPECT_EQ(read.meta.config, golden.meta.config);
  EXPECT_EQ(read.meta.arithmetic, golden.meta.arithmetic);
  ASSERT_EQ(read.meta.weights.size(), golden.meta.weights.size());
  for (const auto& [name, weight] : golden.meta.weights) {
    EXPECT_EQ(read.meta.weights.at(name).hash, weight.hash) << name;
    EXPECT_EQ(read.meta.weights.at(name).shape, weight.shape) << name;
  }
  EXPECT_EQ(read.tokens.back().position, 7);
  EXPECT_EQ(read.tokens.back().id, -1);
  EXPECT_EQ(read.points[0].rows, golden.points[0].rows);
  EXPECT_EQ(read.points[0].blocks[0].hash, golden.points[0].blocks[0].hash);
  EXPECT_EQ(read.points[0].blocks[0].sketch, golden.points[0].blocks[0].sketch);
}

TEST_F(GoldenFile, EveryCutIsAnError) {
  const std::string text = GoldenText(Example());
  for (size_t length = 0; length + 2 < text.size(); length += 7) {
    EXPECT_THAT(ErrorOfText(text.substr(0, length)), HasSubstr("golden.json")) << length;
  }
}

TEST_F(GoldenFile, HostileFilesAreErrorsThatSayWhere) {
  const std::string text = GoldenText(Example());
  const struct {
    const char *from, *to, *where, *expected;
  } kCases[] = {
      {"lockstep-golden/1", "lockstep-golden/2", "schema", "lockstep-golden/1"},
      {"\"rows\":\"0, 2-3\"", "\"rows\":\"0-99999999\"", "points[0].rows", "at most 4"},
      {"\"rows\":\"0, 2-3\"", "\"rows\":\"0, 2-4\"", "points[0].rows", "4 tokens"},
      {"\"rows\":\"0, 2-3\"", "\"rows\":\"2, 0\"", "points[0].rows", "ascending"},
      {"\"rows\":\"0, 2-3\"", "\"rows\":\"-1\"", "points[0].rows", "ascending"},
      {"\"rows\":\"0, 2-3\"", "\"rows\":\"0, \"", "points[0].rows", "ascending"},
      {"\"rows\":\"0, 2-3\"", "\"rows\":\"\"", "points[0].rows", "rows of the 4"},
      {"\"block_rows\":5", "\"block_rows\":0", "points[0].block_rows", "from 1"},
      {"\"block_rows\":5", "\"block_rows\":1e99", "points[0].block_rows", "whole number"},
      {"\"row_shape\":[4]", "\"row_shape\":[-4]", "points[0].row_shape", "whole number"},
      {"\"row_shape\":[4]", "\"row_shape\":[2147483647,2147483647,2147483647]", "row_shape", "fits into memory"},
      {"\"std\":0.0", "\"std\":\"NaN\"", "points[0].std", "a number"},
      {"\"std\":0.0", "\"std\":NaN", "golden.json", "valid JSON"},
      {"123456789abcdef0", "123456789abcdefg", "blocks[0]", "hexadecimal"},
      {"123456789abcdef0", "123456789abcdef", "blocks[0]", "projections"},
      {"3fc00000", "7f800000", "blocks[0]", "finite"},
      {"3fc00000", "bfc00000", "blocks[0]", "0 or more"},
      {"\"blocks\":[", "\"blocks\":[7,", "blocks[0]", "a string"},
      {"\"sequence\":4", "\"sequence\":0", "sequences[1]", "ascending"},
      {"\"positions\":\"0-2\"", "\"positions\":\"0-1\"", "positions", "3 ids"},
      {"\"positions\":\"0-2\"", "\"positions\":\"0-2147483647\"", "positions", "at most 3"},
      {"[100,101,102]", "[100,101,9999999999]", "ids[2]", "whole number"},
      {"\"layers\":\"0-2\"", "\"layers\":\"0-1\"", "hashes", "one a layer"},
      {"\"arithmetic\":{", "\"arithmetic\":{\"x\":[[", "golden.json", "valid JSON"},
      {"\"storage\":\"BF16\"", "\"storage\":\"BF17\"", "arithmetic.storage", "dtype"},
      {"\"points\":[", "\"points\":{},\"other\":[", "points", "a list"},
      {"\"points\":[", "\"points\":[],\"other\":[", "points", "at least one"},
  };
  for (const auto& hostile : kCases) {
    EXPECT_THAT(ErrorOfText(Replaced(text, hostile.from, hostile.to)),
                AllOf(HasSubstr("golden.json"), HasSubstr(hostile.where), HasSubstr(hostile.expected)))
        << hostile.from << " -> " << hostile.to;
  }
  EXPECT_THAT(ErrorOfText(std::string(100000, '[')), HasSubstr("nested deeper"));
  EXPECT_THAT(ErrorOfText("[]"), HasSubstr("an object"));
  const std::string point = text.substr(text.find("{\"name\":\"layer_1"));
  const std::string twice = text.substr(0, text.rfind("]}\n")) + "," + point;
  EXPECT_THAT(ErrorOfText(twice), HasSubstr("every point once"));
  EXPECT_THAT(ErrorOf([&] { ReadGolden(root_); }), HasSubstr(root_));
}

}  // namespace
}  // namespace lockstep
