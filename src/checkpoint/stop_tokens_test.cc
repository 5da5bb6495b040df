#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/test_files.h"
#include "lockstep/checkpoint.h"

namespace lockstep {
namespace {

using test::ErrorOf;
using test::TempDir;
using test::WriteText;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(StopTokens, OfGenerationConfigFirst) {
  const TempDir dir;
  EXPECT_THAT(StopTokens(dir.path()), IsEmpty()) << "missing files are fine";
  WriteText(dir / "config.json", R"({"eos_token_id": 7})");
  EXPECT_THAT(StopTokens(dir.path()), ElementsAre(7));
  WriteText(dir / "generation_config.json", R"({"do_sample": true})");
  EXPECT_THAT(StopTokens(dir.path()), ElementsAre(7));
  WriteText(dir / "generation_config.json", R"({"eos_token_id": null})");
  EXPECT_THAT(StopTokens(dir.path()), ElementsAre(7));
  WriteText(dir / "generation_config.json", R"({"eos_token_id": [3, 5]})");
  EXPECT_THAT(StopTokens(dir.path()), ElementsAre(3, 5));
  WriteText(dir / "generation_config.json", R"({"eos_token_id": 0})");
  EXPECT_THAT(StopTokens(dir.path()), ElementsAre(0));
}

TEST(StopTokens, RefusesWhatIsNoToken) {
  for (const char* bad : {"-1", "2147483648", "18446744073709551615", "1.5", "true", "\"<|im_end|>\"", "[1, [2]]"}) {
    const TempDir dir;
    WriteText(dir / "generation_config.json", std::string(R"({"eos_token_id": )") + bad + "}");
    EXPECT_THAT(ErrorOf([&] { StopTokens(dir.path()); }),
                AllOf(HasSubstr("generation_config.json: eos_token_id"), HasSubstr("expected a token id")))
        << bad;
  }
}

TEST(StopTokens, RefusesWhatIsNoObject) {
  const TempDir dir;
  WriteText(dir / "generation_config.json", "[1]");
  EXPECT_THAT(ErrorOf([&] { StopTokens(dir.path()); }), HasSubstr("generation_config.json: expected a JSON object"));
  WriteText(dir / "generation_config.json", "{");
  EXPECT_THAT(ErrorOf([&] { StopTokens(dir.path()); }), HasSubstr("generation_config.json"));
}

}  // namespace
}  // namespace lockstep
