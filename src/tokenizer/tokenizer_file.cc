#include "tokenizer/tokenizer_file.h"

#include <string_view>

#include "base/mapped_file.h"
#include "lockstep/error.h"
#include "tokenizer/normalize.h"
#include "tokenizer/vocabulary_json.h"

namespace lockstep {
namespace {

constexpr size_t kMaxFileBytes = size_t{256} << 20;

constexpr const char* kCorrect = "correct the file, or download it again";
constexpr const char* kFamily = "only the byte-level BPE of the Qwen family is supported";

std::string Shown(const SortedJson& value) {
  const std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true);
  return text.size() <= 200 ? text : text.substr(0, 197) + "...";
}

// An object of tokenizer.json; null counts as absent.
class Section {
 public:
  // `name` stands before the keys in messages ("model."). Throws Error if the value is no object.
  Section(const SortedJson& object, const std::string& path, std::string name)
      : object_(object), path_(path), name_(std::move(name)) {
    if (!object.is_object()) {
      const std::string what = name_.empty() ? "" : name_.substr(0, name_.size() - 1) + ": ";
      throw Error(path + ": " + what + "expected an object, found " + Shown(object) + "; " + kFamily);
    }
  }

  [[noreturn]] void Fail(const std::string& key, const std::string& expected, const std::string& way_out) const {
    const auto found = object_.find(key);
    throw Error(path_ + ": " + name_ + key + ": expected " + expected + ", found " +
                (found == object_.end() ? "nothing" : Shown(*found)) + "; " + way_out);
  }

  const SortedJson* Find(const std::string& key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  Section Inner(const std::string& key) const {
    const SortedJson* value = Find(key);
    return {value == nullptr ? SortedJson() : *value, path_, name_ + key + "."};
  }

  const SortedJson& List(const std::string& key) const {
    const SortedJson* value = Find(key);
    if (value == nullptr || !value->is_array()) Fail(key, "a list", kCorrect);
    return *value;
  }

  bool Boolean(const std::string& key, bool if_absent) const {
    const SortedJson* value = Find(key);
    if (value == nullptr) return if_absent;
    if (!value->is_boolean()) Fail(key, "true or false", kCorrect);
    return value->get<bool>();
  }

  // REQUIRES: the key, unlike in Boolean.
  bool Flag(const std::string& key) const {
    if (Find(key) == nullptr) Fail(key, "true or false", kCorrect);
    return Boolean(key, false);
  }

  std::string Type() const {
    const SortedJson* value = Find("type");
    return value != nullptr && value->is_string() ? value->get<std::string>() : "";
  }

  void RequireType(const std::string& type) const {
    if (Type() != type) Fail("type", '"' + type + '"', kFamily);
  }

  void RequireBoolean(const std::string& key, bool wanted, bool if_absent) const {
    if (Boolean(key, if_absent) != wanted) Fail(key, wanted ? "true" : "false", kFamily);
  }

  void RequireAbsent(const std::string& key, const std::string& way_out) const {
    if (Find(key) != nullptr) Fail(key, "null", way_out);
  }

  void RequireNoText(const std::string& key) const {
    const SortedJson* value = Find(key);
    if (value != nullptr && *value != "") Fail(key, "null or \"\"", kFamily);
  }

  const std::string& path() const { return path_; }

 private:
  SortedJson object_;  // a copy: these are small
  std::string path_;
  std::string name_;
};

bool ReadNormalizer(const Section& root) {
  if (root.Find("normalizer") == nullptr) return false;
  const Section normalizer = root.Inner("normalizer");
  normalizer.RequireType("NFC");
  return true;
}

WordPattern ReadSplit(const Section& split) {
  split.RequireType("Split");
  const Section pattern = split.Inner("pattern");
  const SortedJson* regex = pattern.Find("Regex");
  const bool is_qwen2 = regex != nullptr && *regex == kQwen2Pattern;
  if (!is_qwen2 && (regex == nullptr || *regex != kGpt2Pattern)) {
    pattern.Fail("Regex", "the pattern of Qwen2 or GPT-2", "other patterns are not supported");
  }
  const SortedJson* behavior = split.Find("behavior");
  if (behavior == nullptr || *behavior != "Isolated") split.Fail("behavior", "\"Isolated\"", kFamily);
  split.RequireBoolean("invert", false, /*if_absent=*/true);
  return is_qwen2 ? WordPattern::kQwen2 : WordPattern::kGpt2;
}

// Sequence[Split, ByteLevel without its regex], or ByteLevel with it.
WordPattern ReadPreTokenizer(const Section& root) {
  const Section pre = root.Inner("pre_tokenizer");
  const auto require_byte_level = [](const Section& section, bool use_regex) {
    section.RequireType("ByteLevel");
    section.RequireBoolean("add_prefix_space", false, /*if_absent=*/true);
    section.RequireBoolean("use_regex", use_regex, /*if_absent=*/true);
  };
  if (pre.Type() == "ByteLevel") {
    require_byte_level(pre, /*use_regex=*/true);
    return WordPattern::kGpt2;
  }
  if (pre.Type() != "Sequence") pre.Fail("type", "\"Sequence\" or \"ByteLevel\"", kFamily);
  const SortedJson& parts = pre.List("pretokenizers");
  if (parts.size() != 2) pre.Fail("pretokenizers", "Split and ByteLevel", kFamily);
  const WordPattern pattern = ReadSplit({parts[0], root.path(), "pre_tokenizer.pretokenizers[0]."});
  require_byte_level({parts[1], root.path(), "pre_tokenizer.pretokenizers[1]."}, /*use_regex=*/false);
  return pattern;
}

// What would change the ids or the text afterwards.
void RequirePlainEnds(const Section& root) {
  root.RequireAbsent("truncation", "a cut text would be compared unnoticed; set it to null");
  root.RequireAbsent("padding", "padding is not supported; set it to null");
  if (root.Find("post_processor") != nullptr && root.Inner("post_processor").Type() != "ByteLevel") {
    root.Fail("post_processor", "null or ByteLevel",
              "post-processors that add tokens are not supported; set it to null and write the tokens into the text");
  }
  root.Inner("decoder").RequireType("ByteLevel");
}

bool ReadModel(const Section& model) {
  model.RequireType("BPE");
  model.RequireBoolean("byte_fallback", false, /*if_absent=*/false);
  model.RequireNoText("continuing_subword_prefix");
  model.RequireNoText("end_of_word_suffix");
  const SortedJson* dropout = model.Find("dropout");
  if (dropout != nullptr && *dropout != 0) model.Fail("dropout", "null", "it makes ids random; set it to null");
  if (model.Find("vocab") == nullptr || !model.Find("vocab")->is_object()) model.Fail("vocab", "an object", kCorrect);
  model.List("merges");
  return model.Boolean("ignore_merges", false);
}

AddedToken ReadAddedToken(const Section& token, bool nfc) {
  for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
    if (token.Flag(flag)) token.Fail(flag, "false", "tokens that depend on what stands beside them are not supported");
  }
  const SortedJson* content = token.Find("content");
  if (content == nullptr || !content->is_string() || content->get_ref<const std::string&>().empty()) {
    token.Fail("content", "a text that is not empty", kCorrect);
  }
  const SortedJson* id = token.Find("id");
  if (id == nullptr || !id->is_number_unsigned() || id->get<uint64_t>() >= uint64_t{TokenizerFile::kMaxIds}) {
    token.Fail("id", "an id from 0 to " + std::to_string(TokenizerFile::kMaxIds - 1), kCorrect);
  }
  AddedToken out{content->get<std::string>(), id->get<int32_t>(), token.Flag("special"), token.Flag("normalized")};
  std::string storage;
  if (nfc && out.normalized && Nfc(out.content, storage) != out.content) {
    token.Fail("content", "text in NFC, since it is looked for in normalized text",
               "versions of the tokenizers package disagree about it; write it in NFC");
  }
  return out;
}

}  // namespace

TokenizerFile ReadTokenizerFile(const std::string& path) {
  const MappedFile mapped(path);
  const auto bytes = mapped.bytes();
  if (bytes.size() > kMaxFileBytes) {
    throw Error(path + ": expected at most " + std::to_string(kMaxFileBytes) + " bytes, found " +
                std::to_string(bytes.size()) + "; is it a tokenizer.json?");
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  VocabularyJson json = ParseVocabularyJson(text, path, TokenizerFile::kMaxIds);

  const Section root(json.rest, path, "");
  TokenizerFile file;
  file.ignore_merges = ReadModel(root.Inner("model"));
  file.nfc = ReadNormalizer(root);
  file.pattern = ReadPreTokenizer(root);
  RequirePlainEnds(root);
  if (root.Find("added_tokens") != nullptr) {
    const SortedJson& added = root.List("added_tokens");
    for (size_t k = 0; k < added.size(); ++k) {
      file.added.push_back(ReadAddedToken({added[k], path, "added_tokens[" + std::to_string(k) + "]."}, file.nfc));
    }
  }
  file.vocabulary = std::move(json.vocabulary);
  file.merges = std::move(json.merges);
  return file;
}

}  // namespace lockstep
