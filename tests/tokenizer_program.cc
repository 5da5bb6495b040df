// The tokenizer for the tests in Python: answers requests on stdin until it ends. Usage: tokenizer_program FILE
//
// A request is a line "OPERATION BYTES" and so many bytes: a text to `encode`, or int32 ids to `decode` or `stream`
// (`decode_skip` and `stream_skip` leave special tokens out). The answer is a line "ok BYTES" or "error BYTES", and so
// many bytes: ids, text, or a message.
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "lockstep/tokenizer.h"

namespace {

using lockstep::Tokenizer;

std::string Bytes(const std::vector<int32_t>& ids) {
  return {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)};
}

std::vector<int32_t> Ids(const std::string& bytes) {
  std::vector<int32_t> ids(bytes.size() / sizeof(int32_t));
  if (!ids.empty()) std::memcpy(ids.data(), bytes.data(), ids.size() * sizeof(int32_t));
  return ids;
}

std::string Stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip_special) {
  lockstep::StreamDecoder decoder(tokenizer, skip_special);
  std::string text;
  for (const int32_t id : ids) text += decoder.Add(id);
  return text + decoder.Finish();
}

std::string Answer(const Tokenizer& tokenizer, const std::string& operation, const std::string& payload) {
  const bool skip = operation.ends_with("_skip");
  if (operation == "encode") return Bytes(tokenizer.Encode(payload));
  if (operation.starts_with("decode")) return tokenizer.Decode(Ids(payload), skip);
  if (operation.starts_with("stream")) return Stream(tokenizer, Ids(payload), skip);
  throw lockstep::Error(operation + ": expected encode, decode or stream");
}

void Write(const char* status, const std::string& payload) {
  std::cout << status << ' ' << payload.size() << '\n' << payload << std::flush;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::ios::sync_with_stdio(false);
  try {
    const Tokenizer tokenizer = Tokenizer::FromFile(argv[1]);
    Write("ok", std::to_string(tokenizer.vocab_size()));
    std::string operation;
    size_t bytes = 0;
    while (std::cin >> operation >> bytes && std::cin.get() == '\n') {
      std::string payload(bytes, '\0');
      if (!std::cin.read(payload.data(), static_cast<std::streamsize>(bytes))) return 2;
      try {
        Write("ok", Answer(tokenizer, operation, payload));
      } catch (const lockstep::Error& error) {
        Write("error", error.what());
      }
    }
  } catch (const lockstep::Error& error) {
    Write("error", error.what());
  }
  return 0;
}
