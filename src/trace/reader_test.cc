// What a reader does with traces that others wrote, or damaged.
#include "trace/test_trace.h"

namespace lockstep {
namespace {

using testing::AnyOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using testing::StartsWith;

// The least that is a trace; `members` are further members of trace.json.
std::string Minimal(const std::string& members = "",
                    const std::string& steps = R"([{"files": [{"file": "a.safetensors"}]}])") {
  return R"({"format": "lockstep-trace", "version": 1, "closed": true, "steps": )" + steps +
         (members.empty() ? "" : ", " + members) + "}";
}

struct Tensor {
  std::string name;
  std::string dtype;
  std::string shape;
  std::string data;
};

std::string Ints(const std::vector<int32_t>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(int32_t)};
}

Tensor IntTensor(const std::string& name, const std::vector<int32_t>& values) {
  return {name, "I32", "[" + std::to_string(values.size()) + "]", Ints(values)};
}

std::string StepFileOf(const std::vector<Tensor>& tensors) {
  std::string header, data;
  for (const Tensor& tensor : tensors) {
    header += (header.empty() ? "\"" : ",\"") + tensor.name + "\":{\"dtype\":\"" + tensor.dtype +
              "\",\"shape\":" + tensor.shape + ",\"data_offsets\":[" + std::to_string(data.size()) + ",";
    data += tensor.data;
    header += std::to_string(data.size()) + "]}";
  }
  header = "{" + header + "}";
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

// Two tokens.
std::vector<Tensor> Step(const std::vector<Tensor>& more = {}) {
  std::vector<Tensor> tensors = {IntTensor("positions", {0, 1}), IntTensor("sequences", {0, 0}),
                                 IntTensor("input_ids", {7, 8})};
  tensors.insert(tensors.end(), more.begin(), more.end());
  return tensors;
}

class ReaderTest : public TraceTest {
 protected:
  ReaderTest() {
    std::filesystem::create_directory(path_);
    WriteFile(path_ + "/trace.json", Minimal());
    WriteFile(path_ + "/a.safetensors", StepFileOf(Step()));
  }
  std::string ErrorWithJson(const std::string& json) {
    WriteFile(path_ + "/trace.json", json);
    return OpenError(path_);
  }
  std::string ErrorWithMembers(const std::string& members) { return ErrorWithJson(Minimal(members)); }
  std::string ErrorWithTensors(const std::vector<Tensor>& tensors) {
    WriteFile(path_ + "/a.safetensors", StepFileOf(tensors));
    return OpenError(path_);
  }
};

TEST_F(ReaderTest, TakesTheLeast) {
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_THAT(reader.steps(), SizeIs(1));
  EXPECT_THAT(reader.warnings(), IsEmpty());
  EXPECT_FALSE(reader.meta().has_arithmetic);
  EXPECT_EQ(reader.meta().rank, 0);
  EXPECT_EQ(ErrorWithJson(R"({"format": "lockstep-trace", "version": 1})"), "");
}

TEST_F(ReaderTest, NamesWhatIsNoTrace) {
  EXPECT_THAT(OpenError(root_ + "/no"),
              HasSubstr("expected a trace (a directory with trace.json in it): No such file"));
  EXPECT_THAT(OpenError(path_ + "/trace.json"), HasSubstr("Not a directory"));
  std::filesystem::remove(path_ + "/trace.json");
  EXPECT_THAT(OpenError(path_), HasSubstr("found no trace.json"));
  std::filesystem::create_directory(path_ + "/trace.json");
  EXPECT_THAT(OpenError(path_), HasSubstr("expected a regular file"));
}

TEST_F(ReaderTest, RefusesANewerVersionByName) {
  EXPECT_THAT(ErrorWithJson(R"({"format": "lockstep-trace", "version": 2})"),
              HasSubstr("expected version 1 (a newer Lockstep wrote"));
  EXPECT_THAT(ErrorWithJson(R"({"format": "lockstep-trace", "version": 2})"), HasSubstr("found 2"));
  EXPECT_THAT(ErrorWithJson(R"({"format": "lockstep-trace"})"), HasSubstr("version: expected a whole number"));
  EXPECT_THAT(ErrorWithJson(R"({"format": "lockstep-trace", "version": 0})"),
              HasSubstr("version: expected a whole number"));
  EXPECT_THAT(ErrorWithJson(R"({"format": "lockstep-trace", "version": "1"})"),
              HasSubstr("version: expected a whole number"));
  EXPECT_THAT(ErrorWithJson(R"({"format": "other", "version": 1})"),
              HasSubstr("format: expected \"lockstep-trace\", found \"other\""));
  EXPECT_THAT(ErrorWithJson(R"({"version": 1})"), HasSubstr("format: expected \"lockstep-trace\", found nothing"));
  EXPECT_THAT(ErrorWithJson("[]"), HasSubstr("trace.json: expected an object, found []"));
  EXPECT_THAT(ErrorWithJson(""), HasSubstr("trace.json: expected valid JSON"));
}

TEST_F(ReaderTest, NamesTheMemberThatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("producer": 1)", "producer: expected an object, found 1"},
      {R"("producer": {"name": []})", "producer.name: expected a string, found []"},
      {R"("model": {"config": []})", "model.config: expected an object"},
      {R"("arithmetic": {"storage": "BF17"})",
       "arithmetic.storage: expected the name of a dtype such as \"BF16\", found \"BF17\""},
      {R"("arithmetic": {"cache": 16})", "arithmetic.cache: expected a string"},
      {R"("points": {})", "points: expected a list"},
      {R"("points": ["a", 1])", "points[1]: expected a string, found 1"},
      {R"("not_observable": [null])", "not_observable[0]: expected a string"},
      {R"("selection": {"layers": "x"})", "selection of layers \"x\""},
      {R"("selection": {"steps": 3})", "selection.steps: expected a string"},
      {R"("weights": {"w": {"dtype": "F32", "shape": [1], "hash": "xyz"}})", "weights.w.hash: expected 16 hex digits"},
      {R"("weights": {"w": {"dtype": "F32", "shape": [-1], "hash": "0123456789abcdef"}})",
       "weights.w.shape[0]: expected a whole number"},
      {R"("weights": {"w": {"shape": [1], "hash": "0123456789abcdef"}})",
       "weights.w.dtype: expected a string, found nothing"},
      {R"("tensors": {"*": 1})", "tensors.*: expected an object"},
      {R"("tensors": {"*": {"axes": ["hidden"]}})",
       "tensors.*.axes: expected different names of axes, with \"token\" among them"},
      {R"("tensors": {"*": {"axes": ["token", "token"]}})", "tensors.*.axes: expected different names"},
      {R"("tensors": {"*": {"shard": {"axis": "hidden"}}})", "shard.count: expected a whole number"},
      {R"("tensors": {"*": {"shard": {"axis": "hidden", "count": 0}}})", "shard.count: expected a whole number"},
      {R"("tensors": {"*": {"shard": {"axis": "hidden", "count": 2, "index": 2}}})",
       "shard.index: expected a whole number from 0 to 1"},
      {R"("tensors": {"*": {"shard": {"axis": "", "count": 2}}})", "shard.axis: expected the name"},
      {R"("tensors": {"*": {"partial": "yes"}})", "partial: expected true or false"},
      {R"("rank": -1)", "rank: expected a whole number from 0"},
      {R"("rank": 1.5)", "rank: expected a whole number"},
      {R"("rank": 18446744073709551615)", "rank: expected a whole number"},
      {R"("errors": "none")", "errors: expected a list"},
      {R"("closed": true)", "key \"closed\" stands twice"},
  };
  for (const auto& [members, expected] : cases) EXPECT_THAT(ErrorWithMembers(members), HasSubstr(expected)) << members;
}

TEST_F(ReaderTest, NeverReachesOutOfItsDirectory) {
  for (const char* file :
       {"", ".", "..", "../x.trace/a.safetensors", "/etc/passwd", "sub/a.safetensors", "a\\u0000b"}) {
    EXPECT_THAT(ErrorWithJson(Minimal("", std::string(R"([{"files": [{"file": ")") + file + "\"}]}]")),
                HasSubstr("the plain name of a file"))
        << file;
  }
  EXPECT_THAT(ErrorWithJson(Minimal("", R"([{"files": [{"file": "a.safetensors"}, {"file": "a.safetensors"}]}])")),
              HasSubstr("steps[0].files[1].file: expected a file that is listed once"));
  EXPECT_THAT(ErrorWithJson(Minimal("", R"([{"files": [{"file": "b.safetensors"}]}])")),
              HasSubstr("b.safetensors: cannot be opened"));
  EXPECT_THAT(ErrorWithJson(Minimal("", R"([{"phase": "other"}])")),
              HasSubstr("steps[0].phase: expected \"prefill\" or \"decode\""));
  EXPECT_THAT(ErrorWithJson(Minimal("", R"([{"files": {}}])")), HasSubstr("steps[0].files: expected a list"));
  EXPECT_THAT(ErrorWithJson(Minimal("", "[1]")), HasSubstr("steps[0]: expected an object"));
}

TEST_F(ReaderTest, KeepsTerminalsSafe) {
  const std::string error = ErrorWithMembers("\"rank\": \"\\u001b[31m" + std::string(1000, 'x') + "\"");
  EXPECT_EQ(error.find('\x1b'), error.npos);
  EXPECT_LT(error.size(), 400u);
}

TEST_F(ReaderTest, ChecksTokens) {
  const auto tokens = [](const std::vector<int32_t>& positions, const std::vector<int32_t>& sequences,
                         const std::vector<int32_t>& ids) {
    return std::vector<Tensor>{IntTensor("positions", positions), IntTensor("sequences", sequences),
                               IntTensor("input_ids", ids)};
  };
  EXPECT_EQ(ErrorWithTensors(tokens({0, -5}, {0, -1}, {1, -1})), "") << "padding may have any position";
  EXPECT_THAT(ErrorWithTensors({}), HasSubstr("expected a tensor positions"));
  EXPECT_THAT(ErrorWithTensors({IntTensor("positions", {0})}), HasSubstr("expected a tensor sequences"));
  EXPECT_THAT(ErrorWithTensors(tokens({0, -5}, {0, 0}, {1, 1})),
              HasSubstr("tensor positions: expected 0 or more, found -5 at token 1"));
  EXPECT_THAT(ErrorWithTensors(tokens({0, 1}, {0, -2}, {1, 1})),
              HasSubstr("tensor sequences: expected -1 or more, found -2"));
  EXPECT_THAT(ErrorWithTensors(tokens({0, 1}, {0, 0}, {1, -9})), HasSubstr("tensor input_ids: expected -1 or more"));
  EXPECT_THAT(ErrorWithTensors(tokens({0, 1}, {0}, {1, 1})),
              HasSubstr("tensor sequences: expected I32 [2], found I32 [1]"));
  EXPECT_THAT(ErrorWithTensors({{"positions", "F32", "[1]", "1234"}, IntTensor("sequences", {0})}),
              HasSubstr("expected I32 [1], found F32"));
  EXPECT_THAT(ErrorWithTensors({{"positions", "I32", "[1,1]", "1234"}, IntTensor("sequences", {0})}),
              HasSubstr("found I32 [1, 1]"));
  EXPECT_THAT(ErrorWithTensors(tokens({2147483647, 2147483647}, {0, 1}, {1, 1})),
              HasSubstr("ask for sequences of 4294967296 tokens"));
}

TEST_F(ReaderTest, ChecksTensors) {
  const auto error = [&](const std::vector<Tensor>& tensors) { return ErrorWithTensors(Step(tensors)); };
  EXPECT_THAT(error({{"a", "U8", "[3]", "123"}}),
              HasSubstr("tensor a: expected 2 tokens along axis 0, found shape [3]"));
  EXPECT_THAT(error({{"a", "U8", "[]", "1"}}), HasSubstr("tensor a: expected a token axis"));
  EXPECT_THAT(error({{"a", "U8", "[2,0]", ""}}), HasSubstr("rows without elements"));
  EXPECT_THAT(error({{"a", "U8", "[1]", "1"}, IntTensor("rows:a", {2})}),
              HasSubstr("tensor rows:a: expected tokens from 0 to 1, found 2"));
  EXPECT_THAT(error({{"a", "U8", "[1]", "1"}, IntTensor("rows:a", {-1})}), HasSubstr("found -1"));
  EXPECT_THAT(error({{"a", "U8", "[2]", "12"}, IntTensor("rows:a", {1, 1})}), HasSubstr("token 1 stands there twice"));
  EXPECT_THAT(error({{"a", "U8", "[1]", "1"}, IntTensor("rows:a", {0, 1})}),
              HasSubstr("expected I32 [1], found I32 [2]"));
  EXPECT_THAT(error({{"a", "U8", "[2]", "12"}, IntTensor("keys:a", {0, 1})}),
              HasSubstr("tensor keys:a: expected I32 [2, 2]"));
  EXPECT_THAT(error({{"a", "U8", "[2,1]", "12"}, {"keys:a", "I32", "[2,1]", Ints({0, -2})}}),
              HasSubstr("expected -1 or more, found -2"));
  EXPECT_EQ(error({{"a", "U8", "[2,1]", "12"}, {"keys:a", "I32", "[2,1]", Ints({0, -1})}}), "");
}

TEST_F(ReaderTest, LeavesPointsOfAnotherRankWithoutAxes) {
  EXPECT_EQ(ErrorWithTensors(Step(
                {{"layer_0_attn_q_rope", "U8", "[2,2]", "1234"}, {"layer_0_layer_output", "U8", "[2,2]", "1234"}})),
            "");
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_THAT(reader.steps()[0].Find("layer_0_attn_q_rope")->axes, IsEmpty());
  EXPECT_THAT(reader.steps()[0].Find("layer_0_layer_output")->axes, ElementsAre("token", "hidden"));
}

TEST_F(ReaderTest, ChecksWhatTensorsDeclare) {
  WriteFile(path_ + "/a.safetensors", StepFileOf(Step({{"a", "U8", "[3,2]", "123456"}})));
  EXPECT_EQ(ErrorWithMembers(R"("tensors": {"*": {"layout": "all"}, "a": {"axes": ["x", "token"]}})"), "")
      << "the narrowest pattern counts";
  EXPECT_THAT(ErrorWithMembers(R"("tensors": {"a": {"axes": ["token"]}})"),
              HasSubstr("gives it 1 axes (pattern a), found shape [3, 2]"));
  EXPECT_THAT(ErrorWithMembers(R"("tensors": {"a": {"axes": ["x", "token"], "shard": {"axis": "y", "count": 2}}})"),
              HasSubstr("slices it along \"y\", which is none of its axes"));
  EXPECT_THAT(
      ErrorWithMembers(R"("rank": 2, "tensors": {"a": {"axes": ["x", "token"], "shard": {"axis": "x", "count": 2}}})"),
      HasSubstr("is slice 2 of 2"));
}

TEST_F(ReaderTest, CollectsDuplicates) {
  EXPECT_EQ(ErrorWithTensors(Step({{"a", "U8", "[2]", "12"}, {"a", "U8", "[2]", "34"}})), "");
  EXPECT_THAT(TraceReader::Open(path_).steps()[0].duplicates, ElementsAre("a"));

  WriteFile(path_ + "/a.safetensors", StepFileOf(Step({{"a", "U8", "[2]", "12"}, {"b", "U8", "[2]", "12"}})));
  WriteFile(path_ + "/a2.safetensors", StepFileOf({{"a", "U8", "[2]", "34"}}));
  WriteFile(path_ + "/b.safetensors", StepFileOf(Step({{"b", "U8", "[2]", "12"}})));
  EXPECT_EQ(
      ErrorWithJson(Minimal(
          "",
          R"([{"files": [{"file": "a.safetensors"}, {"file": "b.safetensors", "rank": 1}, {"file": "a2.safetensors"}]}])")),
      "");
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_THAT(reader.steps()[0].duplicates, ElementsAre("a"));
  EXPECT_THAT(Contents<char>(reader.steps()[0].Find("a")), ElementsAre('3', '4'));
  EXPECT_NE(reader.steps()[0].Find("b", 0), nullptr);
  EXPECT_NE(reader.steps()[0].Find("b", 1), nullptr);
  EXPECT_THAT(reader.steps()[0].files, SizeIs(3));
}

TEST_F(ReaderTest, RanksTellTheSameTokens) {
  WriteFile(path_ + "/b.safetensors", StepFileOf({IntTensor("positions", {0, 2}), IntTensor("sequences", {0, 0})}));
  EXPECT_THAT(
      ErrorWithJson(Minimal("", R"([{"files": [{"file": "a.safetensors"}, {"file": "b.safetensors", "rank": 1}]}])")),
      HasSubstr("rank 1 has other positions"));
}

TEST_F(ReaderTest, ReadsWhatAKilledWriterLeft) {
  const std::string open =
      Replaced(Minimal("", R"([{"files": [{"file": "a.safetensors"}]}, {"files": [{"file": "b.safetensors"}]},
      {"files": [{"file": "c.safetensors"}]}])"),
               "true", "false");
  WriteFile(path_ + "/a.safetensors", StepFileOf(Step({{"a", "U8", "[2]", "12"}})) + "half a tensor");
  WriteFile(path_ + "/c.safetensors", StepFileOf({IntTensor("positions", {0, 1})}));
  EXPECT_EQ(ErrorWithJson(open), "");
  {
    const TraceReader reader = TraceReader::Open(path_);
    EXPECT_THAT(reader.warnings(),
                ElementsAre(HasSubstr("not closed"), HasSubstr("13 bytes at the end belong to no tensor"),
                            HasSubstr("b.safetensors: listed but not there"),
                            HasSubstr("c.safetensors: expected a tensor sequences")));
    EXPECT_FALSE(reader.meta().closed);
    ASSERT_THAT(reader.steps(), SizeIs(3));
    EXPECT_THAT(Contents<char>(reader.steps()[0].Find("a")), ElementsAre('1', '2'));
    EXPECT_THAT(reader.steps()[1].positions, IsEmpty());
  }
  EXPECT_THAT(ErrorWithJson(Replaced(open, "false", "true")), HasSubstr("b.safetensors: cannot be opened"))
      << "a closed trace is whole";
}

TEST_F(ReaderTest, RepairMakesItPlainSafetensors) {
  const std::string good = StepFileOf(Step({{"a", "U8", "[2]", "12"}}));
  WriteFile(path_ + "/a.safetensors", good + "half a tensor");
  WriteFile(path_ + "/c.safetensors", StepFileOf({IntTensor("positions", {0, 1})}));
  WriteFile(path_ + "/step-000009.safetensors.tmp", "");
  WriteFile(path_ + "/trace.json",
            R"({"format": "lockstep-trace", "version": 1, "mine": {"z": 1, "a": 1e-6}, "closed": false,
      "steps": [{"files": [{"file": "a.safetensors"}, {"file": "b.safetensors", "rank": 1}]}, {"files": [{"file": "c.safetensors"}]}]})");
  EXPECT_THAT(RepairTrace(path_ + "/"),
              ElementsAre(HasSubstr("b.safetensors: is not there"), HasSubstr("a.safetensors: cut 13 bytes"),
                          HasSubstr("c.safetensors: holds no tokens"),
                          HasSubstr("step-000009.safetensors.tmp: removed"), HasSubstr("trace.json: closed")));
  EXPECT_EQ(ReadFile(path_ + "/a.safetensors"), good);
  EXPECT_THAT(ReadFile(path_ + "/trace.json"), HasSubstr("\"z\": 1,\n  \"a\": 1e-06"));
  const TraceReader reader = TraceReader::Open(path_);
  EXPECT_TRUE(reader.meta().closed);
  EXPECT_THAT(reader.warnings(), IsEmpty());
  EXPECT_THAT(reader.steps(), SizeIs(2));
}

TEST_F(ReaderTest, RepairLeavesGoodAndBadTracesAlone) {
  EXPECT_THAT(RepairTrace(path_), IsEmpty());
  EXPECT_EQ(ReadFile(path_ + "/trace.json"), Minimal());
  const std::string bad = StepFileOf(Step({{"a", "U8", "[3]", "123"}})) + "tail";
  WriteFile(path_ + "/a.safetensors", bad);
  EXPECT_THAT(ErrorOf([&] { RepairTrace(path_); }), HasSubstr("tensor a"));
  EXPECT_EQ(ReadFile(path_ + "/a.safetensors"), bad);
  WriteFile(path_ + "/a.safetensors", StepFileOf(Step({{"a", "U8", "[2]", "12"}, {"a", "U8", "[2]", "12"}})) + "tail");
  EXPECT_THAT(ErrorOf([&] { RepairTrace(path_); }), HasSubstr("can not be repaired"));
}

// ---- Mutations: an Error or a trace, whatever is changed ----

class MutationTest : public ReaderTest {
 protected:
  MutationTest() {
    WriteFile(
        path_ + "/trace.json",
        Minimal(R"("points": ["a"], "rank": 0, "arithmetic": {"storage": "F32"}, "model": {"config": {"x": [1e-6]}},
                         "weights": {"w": {"dtype": "F32", "shape": [1], "hash": "0123456789abcdef"}}, "selection": {"rows": "last:3"},
                         "tensors": {"a": {"axes": ["token", "x"], "shard": {"axis": "x", "count": 2}}})"));
    WriteFile(path_ + "/a.safetensors", StepFileOf(Step({IntTensor("rows:a", {1}),
                                                         {"keys:a", "I32", "[1,3]", Ints({5, 6, 7})},
                                                         {"a", "U8", "[1,3]", "123"}})));
    EXPECT_EQ(OpenError(path_), "");
  }

  // Reads everything that a reader hands out.
  void Probe() {
    ++tried_;
    try {
      const TraceReader reader = TraceReader::Open(path_);
      for (const TraceStep& step : reader.steps()) {
        for (const TraceTensor& tensor : step.tensors) {
          unsigned sum = 0;
          for (size_t i = 0; i < tensor.bytes; ++i) sum += static_cast<unsigned>(tensor.data[i]);
          ASSERT_LE(sum, 255u * tensor.bytes);
          ASSERT_EQ(static_cast<int64_t>(tensor.rows.size()), tensor.shape.at(static_cast<size_t>(tensor.token_axis)));
          for (const int32_t row : tensor.rows) ASSERT_LT(static_cast<size_t>(row), step.positions.size());
        }
      }
      reader.Sequences();
      ++valid_;
    } catch (const Error& error) {
      ASSERT_THAT(error.what(), StartsWith(path_));
    }
  }

  void Mutate(const std::string& file) {
    const std::string good = ReadFile(file);
    for (size_t length = good.size(); length-- > 0;) {
      std::filesystem::resize_file(file, length);
      Probe();
    }
    WriteFile(file, good);
    std::fstream stream(file, std::ios::binary | std::ios::in | std::ios::out);
    const auto put = [&](size_t at, char value) { stream.seekp(static_cast<std::streamoff>(at)).put(value).flush(); };
    for (size_t at = 0; at < good.size(); ++at) {
      for (const char value : std::string("\0\x01\xFF\x7F 09-9e\"{}[],:.aF", 20)) {
        put(at, value);
        Probe();
      }
      for (int bit = 0; bit < 8; ++bit) {
        put(at, static_cast<char>(good[at] ^ (1 << bit)));
        Probe();
      }
      put(at, good[at]);
    }
    EXPECT_GT(valid_, 0);
    EXPECT_LT(valid_, tried_);
  }

  int tried_ = 0;
  int valid_ = 0;
};

TEST_F(MutationTest, OfTheJson) { Mutate(path_ + "/trace.json"); }
TEST_F(MutationTest, OfAStep) { Mutate(path_ + "/a.safetensors"); }

}  // namespace
}  // namespace lockstep
