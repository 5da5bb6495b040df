// Parses a tokenizer.json. Its two giants, model.vocab and model.merges, go straight into vectors; as a tree of JSON
// values they would take half a second, most of the time of loading.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"

namespace lockstep {

struct VocabularyJson {
  SortedJson rest;  // what else there is; the two are left behind as an empty object and list
  std::vector<std::pair<std::string, int32_t>> vocabulary;  // ids from 0 to below `max_ids`
  std::vector<std::pair<std::string, std::string>> merges;
};

// Throws Error on syntax errors, deep nesting, keys that stand twice in one object (but for model.vocab, whose keys
// are not compared here), ids that are none and merges that are no pairs.
VocabularyJson ParseVocabularyJson(std::string_view text, const std::string& what, int32_t max_ids);

}  // namespace lockstep
