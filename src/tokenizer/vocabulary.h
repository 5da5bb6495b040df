// Which token has which id, and the other way round; and the merges in terms of ids.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/bpe.h"
#include "tokenizer/tokenizer_file.h"

namespace lockstep {

class Vocabulary {
 public:
  // Throws Error about the file at `path`: tokens or ids that stand twice, bytes without a token, merges of unknown
  // tokens, and added tokens to which the `tokenizers` package would give other ids than the file does.
  Vocabulary(const TokenizerFile& file, const std::string& path);

  struct Token {
    bool known = false;
    bool special = false;
    std::string bytes;  // what it decodes to
  };

  // nullptr: not known.
  const Token* Find(int32_t id) const;
  // By its spelling in the file.
  std::optional<int32_t> IdOf(std::string_view spelling) const;
  // One past the largest id.
  int32_t size() const { return static_cast<int32_t>(by_id_.size()); }

  const std::array<int32_t, 256>& byte_ids() const { return byte_ids_; }
  const std::vector<Merge>& merges() const { return merges_; }  // by rank

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };

  void AddVocabulary(const TokenizerFile& file);
  void AddBytes();
  void AddMerges(const TokenizerFile& file);
  void AddAdded(const TokenizerFile& file);
  void AddNew(const std::string& spelling, int32_t id, const std::string& key);
  [[noreturn]] void Fail(const std::string& key, const std::string& message) const;

  std::string path_;
  std::vector<Token> by_id_;
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
  std::array<int32_t, 256> byte_ids_{};
  std::vector<Merge> merges_;
};

}  // namespace lockstep
