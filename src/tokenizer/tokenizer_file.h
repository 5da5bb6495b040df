// tokenizer.json, read strictly: whatever would silently change the ids is refused by name.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/words.h"

namespace lockstep {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;
  bool normalized = false;  // looked for in the normalized text, not in the text as it is; then in NFC itself
};

// Every id is from 0 to below kMaxIds; how they agree with one another is for Vocabulary to check.
struct TokenizerFile {
  static constexpr int32_t kMaxIds = 1 << 20;  // a larger one is a damaged file

  bool nfc = false;  // otherwise texts are taken as they are
  WordPattern pattern = WordPattern::kQwen2;
  bool ignore_merges = false;                               // a word of the vocabulary is taken whole
  std::vector<std::pair<std::string, int32_t>> vocabulary;  // in GPT-2's spelling
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  std::vector<AddedToken> added;
};

// Throws Error: the path, the key, what was expected and found, the way out.
TokenizerFile ReadTokenizerFile(const std::string& path);

}  // namespace lockstep
