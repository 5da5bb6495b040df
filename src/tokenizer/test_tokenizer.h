// Test only: a small tokenizer.json, whole or damaged.
#pragma once

#include <string>

#include "checkpoint/test_files.h"
#include "lockstep/tokenizer.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/words.h"

namespace lockstep::test {

// Byte b has id b; then "th" 256, "Ġth" 257, "the" 258, "Ġthe" 259, "ll" 260, and two added tokens.
inline Json TinyTokenizer() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[std::string(SpellByte(static_cast<uint8_t>(byte)))] = byte;
  for (const char* token : {"th", "Ġth", "the", "Ġthe", "ll"}) vocab[token] = vocab.size();
  Json json = Json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [
      {"id": 261, "content": "<|im_end|>", "single_word": false, "lstrip": false, "rstrip": false,
       "normalized": false, "special": true},
      {"id": 262, "content": "<think>", "single_word": false, "lstrip": false, "rstrip": false,
       "normalized": false, "special": false}
    ],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": false},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}
    ]},
    "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
    "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
              "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
              "merges": [["t", "h"], ["Ġ", "th"], ["th", "e"], ["Ġth", "e"], ["l", "l"]]}
  })");
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = kQwen2Pattern;
  json["model"]["vocab"] = vocab;
  return json;
}

inline Tokenizer TokenizerOf(const std::string& text) {
  const TempDir dir;
  WriteText(dir / "tokenizer.json", text);
  return Tokenizer::Load(dir.path());
}

inline Tokenizer TokenizerOf(const Json& json) { return TokenizerOf(json.dump()); }

}  // namespace lockstep::test
