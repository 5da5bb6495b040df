#include "tokenizer/vocabulary.h"

#include <algorithm>

#include "base/json.h"
#include "lockstep/error.h"
#include "tokenizer/byte_level.h"

namespace lockstep {
namespace {

std::string Quoted(std::string_view token) {
  return Json(token.substr(0, 200)).dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
}

}  // namespace

Vocabulary::Vocabulary(const TokenizerFile& file, const std::string& path) : path_(path) {
  AddVocabulary(file);
  AddBytes();
  AddMerges(file);
  AddAdded(file);
}

const Vocabulary::Token* Vocabulary::Find(int32_t id) const {
  return id >= 0 && id < size() && by_id_[id].known ? &by_id_[id] : nullptr;
}

std::optional<int32_t> Vocabulary::IdOf(std::string_view spelling) const {
  const auto found = ids_.find(spelling);
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

void Vocabulary::Fail(const std::string& key, const std::string& message) const {
  throw Error(path_ + ": " + key + ": " + message + "; correct the file, or download it again");
}

void Vocabulary::AddNew(const std::string& spelling, int32_t id, const std::string& key) {
  if (!ids_.emplace(spelling, id).second) Fail(key, "expected every token once, found " + Quoted(spelling) + " twice");
  if (id >= size()) by_id_.resize(static_cast<size_t>(id) + 1);
  if (by_id_[id].known)
    Fail(key, "expected every id once, found " + std::to_string(id) + " twice, also for " + Quoted(spelling));
  // Added tokens too are read as spelled bytes where that is possible, as the `tokenizers` package does.
  by_id_[id] = {.known = true, .bytes = UnspellBytes(spelling).value_or(spelling)};
}

void Vocabulary::AddVocabulary(const TokenizerFile& file) {
  ids_.reserve(file.vocabulary.size() + file.added.size());
  by_id_.reserve(file.vocabulary.size() + file.added.size());
  for (const auto& [spelling, id] : file.vocabulary) AddNew(spelling, id, "model.vocab");
}

void Vocabulary::AddBytes() {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string_view spelling = SpellByte(static_cast<uint8_t>(byte));
    const auto id = IdOf(spelling);
    if (!id) {
      Fail("model.vocab", "expected a token for each of the 256 bytes, found none for byte " + std::to_string(byte) +
                              ", spelled " + Quoted(spelling));
    }
    byte_ids_[byte] = *id;
  }
}

void Vocabulary::AddMerges(const TokenizerFile& file) {
  merges_.reserve(file.merges.size());
  std::string merged;
  for (const auto& merge : file.merges) {
    const auto id_of = [&](const std::string& token) {
      const auto found = ids_.find(token);
      if (found == ids_.end()) {
        Fail("model.merges[" + std::to_string(merges_.size()) + "]", "expected tokens of model.vocab, found " +
                                                                         Quoted(token) + ", of " + Quoted(merge.first) +
                                                                         " and " + Quoted(merge.second));
      }
      return found->second;
    };
    merged.assign(merge.first).append(merge.second);
    merges_.push_back({id_of(merge.first), id_of(merge.second), id_of(merged)});
  }
}

// An added token that the vocabulary holds has the id of that; any other gets the next free one, whatever the file
// says, so a file that says otherwise means other ids in C++ than in Python.
void Vocabulary::AddAdded(const TokenizerFile& file) {
  auto next = static_cast<int32_t>(file.vocabulary.size());
  std::unordered_map<int32_t, const AddedToken*> seen;
  for (const AddedToken& token : file.added) {
    const std::string key = "added_tokens, " + Quoted(token.content);
    const auto known = IdOf(token.content);
    const int32_t expected = known.value_or(next);
    if (!seen.emplace(expected, &token).second) Fail(key, "expected every token once, found it twice");
    if (token.id != expected) {
      Fail(key, "expected id " + std::to_string(expected) +
                    (known ? ", as model.vocab has it" : ", the next that is free") + ", found " +
                    std::to_string(token.id));
    }
    if (!known) AddNew(token.content, token.id, key);
    by_id_[token.id].special = token.special;
    next = std::max(next, token.id + 1);
  }
}

}  // namespace lockstep
