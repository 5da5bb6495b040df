#include "cli/html_options.h"

#include <fstream>
#include <iterator>
#include <memory>

#include "lockstep/error.h"
#ifdef LOCKSTEP_ENGINE
#include "lockstep/tokenizer.h"
#endif

namespace lockstep::cli {
namespace {

// As a shell reads it back.
std::string Quoted(const std::string& word) {
  constexpr const char* kPlain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-./:=,+@%";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string CommandLine() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string line;
  for (std::string word; std::getline(file, word, '\0');) line += (line.empty() ? "" : " ") + Quoted(word);
  return line;
}

std::function<std::string(int32_t)> TokenText([[maybe_unused]] const std::string& model) {
#ifdef LOCKSTEP_ENGINE
  if (model.empty()) return nullptr;
  try {
    const auto tokenizer = std::make_shared<const Tokenizer>(Tokenizer::Load(model));
    return [tokenizer](int32_t id) {
      // A model's vocabulary may be larger than its tokenizer's.
      return id >= 0 && id < tokenizer->vocab_size() ? tokenizer->Decode({&id, 1}) : std::string();
    };
  } catch (const Error&) {
    // No tokenizer, or none of a known family: then the page shows ids.
  }
#endif
  return nullptr;
}

}  // namespace

HtmlOptions PageOptions(const std::string& model) { return {CommandLine(), TokenText(model)}; }

}  // namespace lockstep::cli
