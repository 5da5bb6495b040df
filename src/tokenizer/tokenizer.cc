#include "lockstep/tokenizer.h"

#include <filesystem>
#include <utility>

#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/normalize.h"
#include "tokenizer/tokenizer_file.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"
#include "tokenizer/word_cache.h"
#include "tokenizer/words.h"

namespace lockstep {
namespace {

constexpr size_t kMaxText = (size_t{1} << 30) - 1;  // ICU counts bytes in int32_t, and marks may grow

using AddedTexts = std::vector<std::pair<std::string, int32_t>>;

AddedTexts TextsOf(const TokenizerFile& file, bool normalized) {
  AddedTexts texts;
  for (const AddedToken& token : file.added) {
    if (token.normalized == normalized) texts.emplace_back(token.content, token.id);
  }
  return texts;
}

// Calls on_token(id) for the added tokens in `text`, and on_text(part) for what lies between.
template <typename OnToken, typename OnText>
void SplitAtTokens(const AddedTokenFinder& finder, std::string_view text, OnToken&& on_token, OnText&& on_text) {
  for (size_t at = 0; at < text.size();) {
    const AddedTokenFinder::Match match = finder.Find(text, at);
    if (match.begin > at) on_text(text.substr(at, match.begin - at));
    if (match.size > 0) on_token(match.id);
    at = match.begin + match.size;
  }
}

std::string Repaired(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  if (AppendRepaired(bytes, text) > 0) text += kReplacement;
  return text;
}

std::string AdviceOnDirectory(const std::string& dir) {
  std::error_code ignored;
  for (const char* name : {"vocab.json", "tokenizer.model"}) {
    if (std::filesystem::exists(dir + "/" + name, ignored)) {
      return std::string("; ") + name +
             " is there: transformers makes one of it with "
             "AutoTokenizer.from_pretrained(\"MODEL\").save_pretrained(\"OUT\")";
    }
  }
  return "; download it with the checkpoint";
}

}  // namespace

struct Tokenizer::Impl {
  Impl(const TokenizerFile& file, const std::string& path)
      : vocabulary(file, path),
        bpe(vocabulary.byte_ids(), vocabulary.merges()),
        pattern(file.pattern),
        nfc(file.nfc),
        ignore_merges(file.ignore_merges),
        added(TextsOf(file, /*normalized=*/false)),
        added_normalized(TextsOf(file, /*normalized=*/true)) {}

  const Vocabulary::Token& Get(int32_t id) const {
    const Vocabulary::Token* token = vocabulary.Find(id);
    if (token == nullptr) {
      throw Error("token " + std::to_string(id) + ": expected an id of the tokenizer, which has those below " +
                  std::to_string(vocabulary.size()) + "; are these ids of another model?");
    }
    return *token;
  }

  void AppendWord(std::string_view word, std::vector<int32_t>& ids) const {
    if (ignore_merges) {
      if (const auto id = vocabulary.IdOf(SpellBytes(word))) return ids.push_back(*id);
    }
    bpe.Encode(word, ids);
  }

  Vocabulary vocabulary;
  Bpe bpe;
  WordPattern pattern;
  bool nfc;
  bool ignore_merges;
  AddedTokenFinder added;
  AddedTokenFinder added_normalized;
};

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::Load(const std::string& model_dir) {
  const std::string path = model_dir + "/tokenizer.json";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    throw Error(path + ": expected the tokenizer.json of a Hugging Face checkpoint, found no such file" +
                AdviceOnDirectory(model_dir));
  }
  return FromFile(path);
}

Tokenizer Tokenizer::FromFile(const std::string& path) {
  return Tokenizer(std::make_unique<const Impl>(ReadTokenizerFile(path), path));
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text) const {
  std::string repaired;
  if (ValidPrefix(text) < text.size()) text = repaired = Repaired(text);
  if (text.size() > kMaxText) {
    throw Error("text to encode: expected at most " + std::to_string(kMaxText) + " bytes of UTF-8, found " +
                std::to_string(text.size()) + "; encode it in parts");
  }
  std::vector<int32_t> ids;
  WordCache cache(text.size());
  const auto on_token = [&](int32_t id) { ids.push_back(id); };
  const auto on_words = [&](std::string_view words) {
    while (!words.empty()) {
      const std::string_view word = words.substr(0, FirstWord(impl_->pattern, words));
      cache.Append(word, ids, [&] { impl_->AppendWord(word, ids); });
      words.remove_prefix(word.size());
    }
  };
  std::string normalized;
  SplitAtTokens(impl_->added, text, on_token, [&](std::string_view part) {
    SplitAtTokens(impl_->added_normalized, impl_->nfc ? Nfc(part, normalized) : part, on_token, on_words);
  });
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    const Vocabulary::Token& token = impl_->Get(id);
    if (!skip_special || !token.special) bytes += token.bytes;
  }
  return Repaired(bytes);
}

std::optional<int32_t> Tokenizer::TokenId(std::string_view token) const { return impl_->vocabulary.IdOf(token); }

bool Tokenizer::IsSpecial(int32_t id) const {
  const Vocabulary::Token* token = impl_->vocabulary.Find(id);
  return token != nullptr && token->special;
}

int32_t Tokenizer::vocab_size() const { return impl_->vocabulary.size(); }

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

std::string StreamDecoder::Add(int32_t id) {
  const Vocabulary::Token& token = tokenizer_->impl_->Get(id);
  if (skip_special_ && token.special) return "";
  pending_ += token.bytes;
  std::string text;
  const size_t tail = AppendRepaired(pending_, text);
  pending_.erase(0, pending_.size() - tail);
  return text;
}

std::string StreamDecoder::Finish() { return Repaired(std::exchange(pending_, {})); }

}  // namespace lockstep
