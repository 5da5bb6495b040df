// Text to token ids and back: the byte-level BPE of the Qwen family, from a Hugging Face tokenizer.json. Ids and texts
// are those of the `tokenizers` Python package.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lockstep/error.h"

namespace lockstep {

// May be used by several threads at once.
class Tokenizer {
 public:
  // Reads MODEL/tokenizer.json. Throws Error naming what is missing, malformed, or of another family (WordPiece,
  // Unigram, byte fallback, other normalizers, pre-tokenizers and post-processors).
  static Tokenizer Load(const std::string& model_dir);
  // A tokenizer.json itself.
  static Tokenizer FromFile(const std::string& path);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Text to ids. Invalid UTF-8 is first replaced as Python's bytes.decode("utf-8", errors="replace") does. Added tokens
  // inside the text ("<|im_start|>") become their ids. Throws Error for texts of 1 GiB and more. Time grows with
  // n log n at most, whatever the text.
  std::vector<int32_t> Encode(std::string_view text) const;

  // The inverse. Special tokens are written out unless skip_special. Bytes that are no UTF-8 become U+FFFD, as above.
  // Throws Error for an id that is not known.
  std::string Decode(std::span<const int32_t> ids, bool skip_special = false) const;

  // Of an added token or one of the vocabulary, as tokenizer.json spells it ("<|im_start|>", "Ġthe").
  std::optional<int32_t> TokenId(std::string_view token) const;
  // False also for an id that is not known.
  bool IsSpecial(int32_t id) const;
  // One past the largest id.
  int32_t vocab_size() const;

 private:
  friend class StreamDecoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

// Decoding token by token: Add gives the text that is complete by now (never half a character), Finish the rest.
// Concatenated they equal Decode of all ids, to the byte.
class StreamDecoder {
 public:
  // REQUIRES: the tokenizer outlives the decoder and is not moved.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false);
  // Throws Error for an id that is not known, and then is as before.
  std::string Add(int32_t id);
  // The decoder is then as new.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;  // the beginning of a character
};

}  // namespace lockstep
