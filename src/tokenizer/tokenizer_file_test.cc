// Files of other families and hostile ones: each is refused by name.
#include <gmock/gmock.h>

#include <functional>
#include <random>

#include "tokenizer/test_tokenizer.h"

namespace lockstep {
namespace {

using test::ErrorOf;
using test::Json;
using test::TempDir;
using test::TinyTokenizer;
using test::TokenizerOf;
using test::WriteText;
using testing::HasSubstr;

using Edit = std::function<void(Json&)>;

// `pointer` is a JSON pointer ("/model/type").
Edit Set(const std::string& pointer, const std::string& json_text) {
  return [=](Json& json) { json[Json::json_pointer(pointer)] = Json::parse(json_text); };
}
Edit Erase(const std::string& pointer) {
  return [=](Json& json) {
    const Json::json_pointer at(pointer);
    json[at.parent_pointer()].erase(at.back());
  };
}
Edit Add(const std::string& pointer, const std::string& json_text) { return Set(pointer + "/-", json_text); }

Edit AddToken(int64_t id, const std::string& content, const std::string& flag = "", bool value = true) {
  return [=](Json& json) {
    Json token = json["added_tokens"][0];
    token["id"] = id;
    token["content"] = content;
    if (!flag.empty()) token[flag] = value;
    json["added_tokens"].push_back(token);
  };
}

struct BadFile {
  const char* name;
  Edit edit;
  std::vector<std::string> wanted;  // all must stand in the message
};

class BadFileTest : public testing::TestWithParam<BadFile> {};

TEST_P(BadFileTest, IsRefusedByName) {
  Json json = TinyTokenizer();
  GetParam().edit(json);
  const std::string message = ErrorOf([&] { TokenizerOf(json); });
  EXPECT_THAT(message, HasSubstr("/tokenizer.json: "));
  for (const std::string& part : GetParam().wanted) EXPECT_THAT(message, HasSubstr(part));
}

const std::string kSplit = "/pre_tokenizer/pretokenizers/0";
const std::string kByteLevel = "/pre_tokenizer/pretokenizers/1";

const BadFile kBadFiles[] = {
    {"NoModel", Erase("/model"), {"model: expected an object, found null"}},
    {"ModelText", Set("/model", "\"BPE\""), {"model: expected an object, found \"BPE\""}},
    {"WordPiece", Set("/model/type", "\"WordPiece\""), {"model.type: expected \"BPE\", found \"WordPiece\"", "Qwen"}},
    {"Unigram", Set("/model", R"({"type": "Unigram", "vocab": [["a", -1.5]]})"), {"model.type", "\"Unigram\""}},
    {"NoType", Erase("/model/type"), {"model.type: expected \"BPE\", found nothing"}},
    {"ByteFallback", Set("/model/byte_fallback", "true"), {"model.byte_fallback: expected false, found true"}},
    {"Prefix", Set("/model/continuing_subword_prefix", "\"##\""), {"model.continuing_subword_prefix", "##"}},
    {"Suffix", Set("/model/end_of_word_suffix", "\"</w>\""), {"model.end_of_word_suffix", "</w>"}},
    {"Dropout", Set("/model/dropout", "0.1"), {"model.dropout: expected null, found 0.1"}},
    {"IgnoreMergesText", Set("/model/ignore_merges", "\"x\""), {"model.ignore_merges: expected true or false"}},

    {"NoVocab", Erase("/model/vocab"), {"model.vocab: expected an object, found nothing"}},
    {"VocabList", Set("/model/vocab", "[1]"), {"model.vocab: expected an object, found [1]"}},
    {"NegativeId", Set("/model/vocab/x", "-1"), {"model.vocab[\"x\"]: expected an id from 0 to 1048575, found -1"}},
    {"HugeId", Set("/model/vocab/x", "1048576"), {"model.vocab[\"x\"]", "found 1048576"}},
    {"WrappingId", Set("/model/vocab/x", "4294967296"), {"model.vocab[\"x\"]", "found 4294967296"}},
    {"FloatId", Set("/model/vocab/x", "1.0"), {"model.vocab[\"x\"]", "found 1.0"}},
    {"TextId", Set("/model/vocab/x", "\"1\""), {"model.vocab[\"x\"]", "found \"1\""}},
    {"ListId", Set("/model/vocab/x", "[1]"), {"model.vocab[\"x\"]", "found a list or object"}},
    {"ObjectId", Set("/model/vocab/x", R"({"a": 1})"), {"model.vocab[\"x\"]", "found a list or object"}},
    {"NullId", Set("/model/vocab/x", "null"), {"model.vocab[\"x\"]", "found null"}},
    {"IdTwice", Set("/model/vocab/zz", "97"), {"model.vocab: expected every id once, found 97 twice"}},
    {"NoByte", Erase("/model/vocab/Ġ"), {"model.vocab: expected a token for each of the 256 bytes", "byte 32"}},
    {"EmptyVocab", Set("/model/vocab", "{}"), {"none for byte 0"}},

    {"NoMerges", Erase("/model/merges"), {"model.merges: expected a list, found nothing"}},
    {"MergesObject", Set("/model/merges", R"({"a": 1})"), {"model.merges: expected a list"}},
    {"UnknownLeft", Add("/model/merges", R"(["zz", "a"])"), {"model.merges[5]", "found \"zz\""}},
    {"UnknownRight", Add("/model/merges", R"(["a", "zz"])"), {"model.merges[5]", "found \"zz\""}},
    {"UnknownMerged", Add("/model/merges", R"(["a", "b"])"), {"model.merges[5]", "found \"ab\""}},
    {"UnknownLine", Add("/model/merges", R"("a b")"), {"model.merges[5]", "found \"ab\""}},
    {"NoBlank", Add("/model/merges", R"("ab")"), {"model.merges[5]: expected two tokens", "found \"ab\""}},
    {"TwoBlanks", Add("/model/merges", R"("a b c")"), {"model.merges[5]", "found \"a b c\""}},
    {"Triple", Add("/model/merges", R"(["a", "b", "c"])"), {"model.merges[5]", "found 3 strings"}},
    {"Single", Add("/model/merges", R"(["a"])"), {"model.merges[5]", "found 1 strings"}},
    {"EmptyPair", Add("/model/merges", "[]"), {"model.merges[5]", "found 0 strings"}},
    {"NumberPair", Add("/model/merges", "[1, 2]"), {"model.merges[5]", "found 1"}},
    {"NestedPair", Add("/model/merges", R"([["a"], "b"])"), {"model.merges[5]", "found a list or object"}},
    {"ObjectPair", Add("/model/merges", R"({"a": "b"})"), {"model.merges[5]", "found a list or object"}},
    {"NullMerge", Add("/model/merges", "null"), {"model.merges[5]", "found null"}},

    {"Nfkc", Set("/normalizer/type", "\"NFKC\""), {"normalizer.type: expected \"NFC\", found \"NFKC\""}},
    {"NormalizerText", Set("/normalizer", "\"NFC\""), {"normalizer: expected an object, found \"NFC\""}},
    {"NoPreTokenizer", Set("/pre_tokenizer", "null"), {"pre_tokenizer: expected an object, found null"}},
    {"Metaspace", Set("/pre_tokenizer", R"({"type": "Metaspace"})"), {"pre_tokenizer.type", "Metaspace"}},
    {"OnePart", Set("/pre_tokenizer/pretokenizers", "[{}]"), {"pre_tokenizer.pretokenizers: expected Split and"}},
    {"PartText", Set(kSplit, "1"), {"pre_tokenizer.pretokenizers[0]: expected an object, found 1"}},
    {"Digits", Set(kSplit, R"({"type": "Digits"})"), {"pretokenizers[0].type: expected \"Split\", found \"Digits\""}},
    {"OtherPattern", Set(kSplit + "/pattern/Regex", R"("\\s+")"), {"pattern.Regex: expected the pattern of Qwen2"}},
    {"StringPattern", Set(kSplit + "/pattern", R"({"String": " "})"), {"pattern.Regex", "found nothing"}},
    {"Removed", Set(kSplit + "/behavior", "\"Removed\""), {"pretokenizers[0].behavior: expected \"Isolated\""}},
    {"Inverted", Set(kSplit + "/invert", "true"), {"pretokenizers[0].invert: expected false, found true"}},
    {"TwoRegexes", Set(kByteLevel + "/use_regex", "true"), {"pretokenizers[1].use_regex: expected false"}},
    {"PrefixSpace", Set(kByteLevel + "/add_prefix_space", "true"), {"pretokenizers[1].add_prefix_space"}},
    {"NoSplit",
     Set("/pre_tokenizer", R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false})"),
     {"pre_tokenizer.use_regex: expected true, found false"}},
    {"NoDecoder", Set("/decoder", "null"), {"decoder: expected an object, found null"}},
    {"Fuse", Set("/decoder/type", "\"Fuse\""), {"decoder.type: expected \"ByteLevel\", found \"Fuse\""}},
    {"Template", Set("/post_processor/type", "\"TemplateProcessing\""), {"post_processor", "TemplateProcessing"}},
    {"Truncation", Set("/truncation", R"({"max_length": 512})"), {"truncation: expected null", "512"}},
    {"Padding", Set("/padding", R"({"pad_id": 0})"), {"padding: expected null"}},

    {"AddedObject", Set("/added_tokens", "{}"), {"added_tokens: expected a list, found {}"}},
    {"AddedText", Add("/added_tokens", "\"x\""), {"added_tokens[2]: expected an object, found \"x\""}},
    {"AddedGap", AddToken(300, "<x>"), {"<x>", "expected id 263, the next that is free, found 300"}},
    {"AddedAgain", AddToken(263, "<think>"), {"<think>", "expected every token once"}},
    {"AddedOther", AddToken(263, "the"), {"\"the\"", "expected id 258, as model.vocab has it, found 263"}},
    {"AddedTaken", AddToken(97, "<x>"), {"<x>", "expected id 263", "found 97"}},
    {"AddedNegative", AddToken(-1, "<x>"), {"added_tokens[2].id: expected an id from 0", "found -1"}},
    {"AddedHuge", AddToken(int64_t{1} << 40, "<x>"), {"added_tokens[2].id", "found 1099511627776"}},
    {"AddedEmpty", AddToken(263, ""), {"added_tokens[2].content: expected a text that is not empty"}},
    {"LStrip", AddToken(263, "<x>", "lstrip"), {"added_tokens[2].lstrip: expected false, found true"}},
    {"RStrip", AddToken(263, "<x>", "rstrip"), {"added_tokens[2].rstrip: expected false, found true"}},
    {"SingleWord", AddToken(263, "<x>", "single_word"), {"added_tokens[2].single_word: expected false"}},
    {"NotNfc", AddToken(263, "e\u0301", "normalized"), {"added_tokens[2].content: expected text in NFC"}},
    {"NoSpecial", Erase("/added_tokens/0/special"), {"added_tokens[0].special: expected true or false, found nothing"}},
    {"CollidingIds", Set("/model/vocab/far", "262"), {"<|im_end|>", "expected id 262"}},
};

INSTANTIATE_TEST_SUITE_P(All, BadFileTest, testing::ValuesIn(kBadFiles),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST(TokenizerFile, AcceptsWhatChangesNothing) {
  for (const Edit& edit :
       {Erase("/version"), Erase("/truncation"), Erase("/added_tokens"), Set("/normalizer", "null"),
        Set("/post_processor", "null"), Set("/model/dropout", "0.0"), Erase("/model/byte_fallback"),
        Set("/model/unk_token", "\"<unk>\""), AddToken(263, "ée", "normalized"), AddToken(258, "the"),
        Set("/model/merges", "[]"), Set("/model/merges", R"(["#version: 0.2", "t h"])")}) {
    Json json = TinyTokenizer();
    edit(json);
    EXPECT_NO_THROW(TokenizerOf(json));
  }
}

TEST(TokenizerFile, RefusesWhatIsNoJsonObject) {
  for (const std::string text : {"", "{", "[]", "null", "1", "\xFF", "{} {}", R"({"model": {"vocab": {"a": 1,}}})"}) {
    EXPECT_THAT(ErrorOf([&] { TokenizerOf(text); }), HasSubstr("/tokenizer.json: ")) << text;
  }
}

TEST(TokenizerFile, RefusesKeysThatStandTwice) {
  std::string text = TinyTokenizer().dump();
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string out = text;
    return out.replace(out.find(from), from.size(), to);
  };
  EXPECT_THAT(ErrorOf([&] { TokenizerOf(with("\"model\":", "\"model\":{},\"model\":")); }), HasSubstr("stands twice"));
  EXPECT_THAT(ErrorOf([&] { TokenizerOf(with("\"vocab\":", "\"vocab\":{},\"vocab\":")); }), HasSubstr("stands twice"));
  EXPECT_THAT(ErrorOf([&] { TokenizerOf(with("\"th\":256", "\"th\":256,\"th\":300")); }),
              HasSubstr("model.vocab: expected every token once, found \"th\" twice"));
}

TEST(TokenizerFile, RefusesDeepNestingWithoutOverflowingTheStack) {
  for (const std::string before : {"", R"({"model":)", R"({"model":{"vocab":{"a":)", R"({"model":{"merges":[)"}) {
    for (const std::string step : {"[", R"({"a":)"}) {
      std::string text = before;
      for (int k = 0; k < 200'000; ++k) text += step;
      EXPECT_THAT(ErrorOf([&] { TokenizerOf(text); }), HasSubstr("/tokenizer.json: "));
    }
  }
}

TEST(TokenizerFile, RefusesEveryTruncation) {
  const std::string text = TinyTokenizer().dump();
  for (size_t length = 0; length < text.size(); length += 37) EXPECT_THROW(TokenizerOf(text.substr(0, length)), Error);
}

// Whatever happens to the bytes, the file is refused or it works.
TEST(TokenizerFile, SurvivesDamage) {
  const std::string whole = TinyTokenizer().dump();
  std::mt19937 random(1);
  int refused = 0;
  for (int round = 0; round < 500; ++round) {
    std::string text = whole;
    for (uint32_t k = 1 + random() % 3; k > 0; --k) {
      const size_t from = random() % text.size();
      const size_t to = random() % text.size();
      switch (random() % 3) {
        case 0: text[from] = "\"{}[]:,0-9e\\\0\xFFnt"[random() % 16]; break;
        case 1: text.erase(from, random() % 20); break;
        default: text.insert(from, text.substr(to, random() % 40)); break;
      }
    }
    try {
      const Tokenizer tokenizer = TokenizerOf(text);
      tokenizer.Decode(tokenizer.Encode("the\xFF <think>\u0301 12"));
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 300);
}

TEST(TokenizerFile, SaysWhatIsWrongWithTheDirectory) {
  const TempDir dir;
  EXPECT_THAT(
      ErrorOf([&] { Tokenizer::Load(dir.path()); }),
      HasSubstr("/tokenizer.json: expected the tokenizer.json of a Hugging Face checkpoint, found no such file"));
  WriteText(dir / "vocab.json", "{}");
  EXPECT_THAT(ErrorOf([&] { Tokenizer::Load(dir.path()); }), HasSubstr("vocab.json is there: transformers makes one"));
  std::filesystem::create_directory(dir / "tokenizer.json");
  EXPECT_THAT(ErrorOf([&] { Tokenizer::Load(dir.path()); }), HasSubstr("tokenizer.json: expected a regular file"));
}

}  // namespace
}  // namespace lockstep
