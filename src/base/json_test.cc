#include "base/json.h"

#include <gmock/gmock.h>

#include "lockstep/error.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

std::string ErrorOf(const std::string& text) {
  std::string ordered, sorted;
  try {
    ParseJson(text, "x.json");
  } catch (const Error& error) {
    ordered = error.what();
  }
  try {
    ParseSortedJson(text, "x.json");
  } catch (const Error& error) {
    sorted = error.what();
  }
  EXPECT_EQ(ordered, sorted);
  return ordered;
}

std::string Nested(int depth) { return std::string(depth, '[') + std::string(depth, ']'); }

TEST(ParseJson, ReadsInOrder) {
  const Json json = ParseJson(R"({"b": 1, "a": [true, null, "ä"]})", "x.json");
  EXPECT_EQ(json.dump(), R"({"b":1,"a":[true,null,"ä"]})");
}

TEST(ParseJson, LimitsDepth) {
  EXPECT_EQ(ErrorOf(Nested(64)), "");
  EXPECT_THAT(ErrorOf(Nested(66)), HasSubstr("nested deeper than 64"));
  EXPECT_THAT(ErrorOf(std::string(5'000'000, '[')), HasSubstr("nested deeper than 64"));
  std::string objects;
  for (int i = 0; i < 1000; ++i) objects += R"({"a":)";
  EXPECT_THAT(ErrorOf(objects), HasSubstr("nested deeper than 64"));
}

TEST(ParseJson, NamesDuplicateKeys) {
  EXPECT_THAT(ErrorOf(R"({"a": 1, "a": 2})"), HasSubstr("x.json: key \"a\" stands twice"));
  EXPECT_THAT(ErrorOf(R"({"a": 1, "\u0061": 2})"), HasSubstr("key \"a\" stands twice"));
  EXPECT_EQ(ErrorOf(R"({"a": {"b": 1}, "b": {"a": 2}, "c": [{"a": 1}, {"a": 1}]})"), "");
}

TEST(ParseJson, TellsDuplicatesOfTheTopLevelWhereAsked) {
  std::vector<std::string> seen;
  const auto note = [&](const std::string& key) { seen.push_back(key); };
  const SortedJson json = ParseSortedJson(R"({"a": {"x": 1}, "b": 0, "a": {"x": 2}})", "x.json", note);
  EXPECT_THAT(seen, ElementsAre("a"));
  EXPECT_EQ(json["a"]["x"], 2);
  EXPECT_THROW(ParseSortedJson(R"({"a": {"x": 1, "x": 1}})", "x.json", note), Error);
}

TEST(ParseJson, RefusesWhatIsNotJson) {
  for (const char* text :
       {"", "{", "{\"a\":}", "[1,]", "nul", "1 2", "{\"a\":1}x", "\"\xFF\"", "[\"\\ud800\"]", "1e999", "// c\n1"}) {
    EXPECT_THAT(ErrorOf(text), StartsWith("x.json: expected valid JSON")) << text;
  }
}

}  // namespace
}  // namespace lockstep
