#include "cli/inputs.h"

#include <algorithm>
#include <charconv>
#include <map>

#include "cli/text_files.h"
#include "lockstep/checkpoint.h"
#include "lockstep/error.h"
#include "lockstep/tokenizer.h"
#include "lockstep/trace.h"

namespace lockstep::cli {
namespace {

Tokenizer LoadTokenizer(const std::string& model) {
  ReadConfig(model);  // so that a wrong directory is called so
  try {
    return Tokenizer::Load(model);
  } catch (const Error& e) {
    throw Error(std::string(e.what()) + "; --tokens 1,2,3 needs none");
  }
}

std::vector<std::vector<int32_t>> Tokenized(const InputOptions& options, const std::string& model) {
  std::vector<std::pair<std::string, std::string>> texts;  // where it came from, the text
  for (const std::string& text : options.texts) texts.emplace_back("--input", text);
  if (!options.file.empty()) {
    for (const std::string& line : ReadPrompts(options.file)) {
      const size_t number = texts.size() - options.texts.size() + 1;
      texts.emplace_back(options.file + ":" + std::to_string(number), line);
    }
  }
  if (texts.empty()) texts.emplace_back("--input", kDefaultInput);
  const Tokenizer tokenizer = LoadTokenizer(model);
  std::vector<std::vector<int32_t>> prompts;
  for (const auto& [name, text] : texts) {
    CheckUtf8(name, text);
    prompts.push_back(tokenizer.Encode(text));
    if (prompts.back().empty()) throw Error(name + ": expected at least one token, found an empty prompt");
  }
  return prompts;
}

}  // namespace

void InputOptions::AddTo(CLI::App& command) {
  command.add_option("--input", texts, "A prompt; repeat it for a batch")->allow_extra_args(false);
  command.add_option("--input-file", file, "A file with one prompt a line: a batch");
  command.add_option("--tokens", tokens, "A prompt as token ids: 1,2,3; repeat it for a batch")
      ->allow_extra_args(false)
      ->delimiter('\0');
  command.add_option("--input-embeddings", embeddings,
                     "A .npy file [tokens, hidden], or zeros, tiny, huge: used instead of the embedding's rows");
  command.add_option("--decode", decode, "Decode this many tokens after the prompt")->check(CLI::NonNegativeNumber);
}

std::vector<std::string> InputOptions::ForPython(const std::vector<std::vector<int32_t>>& prompts) const {
  std::vector<std::string> out;
  for (const std::vector<int32_t>& prompt : prompts) {
    std::string ids;
    for (const int32_t id : prompt) ids += (ids.empty() ? "" : ",") + std::to_string(id);
    out.insert(out.end(), {"--tokens", ids});
  }
  if (!embeddings.empty()) out.insert(out.end(), {"--input-embeddings", embeddings});
  if (decode > 0) out.insert(out.end(), {"--decode", std::to_string(decode)});
  return out;
}

void ModelArguments::AddTo(CLI::App& command) {
  command.add_option("model", model, "A Hugging Face Qwen3 directory")->required();
  command.add_option("--dtype", dtype, "Storage of weights and activations: f32, bf16, f16")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  command.add_option("--num-layers", num_layers, "Only the first N layers")->check(CLI::PositiveNumber);
}

void ModelRunOptions::AddTo(CLI::App& command) {
  ModelArguments::AddTo(command);
  command.add_option("--points", points,
                     "Capture only these points: attn_*,logits (attn_scores and attn_probs must be named)");
  command.add_option("--layers", layers, "Capture only these layers: 0,2-4");
  command.add_option("--steps", steps, "Capture only these steps: 0,5-7");
  command.add_option("--rows", rows, "Capture only these tokens of a step: last:16, or positions 0-3,100");
}

std::vector<int32_t> ParseTokens(const std::string& text) {
  std::vector<int32_t> out;
  const char* at = text.data();
  const char* end = at + text.size();
  while (true) {
    while (at != end && *at == ' ') ++at;
    int32_t id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || id < 0) {
      throw Error("--tokens: expected ids such as 1,2,3, found \"" + text + "\"");
    }
    out.push_back(id);
    if (next == end) return out;
    if (*next != ',') throw Error("--tokens: expected commas between ids, found \"" + text + "\"");
    at = next + 1;
  }
}

std::vector<std::vector<int32_t>> PromptTokens(const InputOptions& options, const std::string& model) {
  const bool has_text = !options.texts.empty() || !options.file.empty();
  if (!options.tokens.empty() && has_text) {
    throw Error("--tokens cannot stand beside --input or --input-file; give the whole batch in one way");
  }
  const bool from_file_alone = !has_text && options.embeddings.ends_with(".npy");
  if (options.tokens.empty()) return from_file_alone ? std::vector<std::vector<int32_t>>() : Tokenized(options, model);
  std::vector<std::vector<int32_t>> prompts;
  for (const std::string& ids : options.tokens) prompts.push_back(ParseTokens(ids));
  return prompts;
}

std::vector<SequenceInput> SequencesOf(const std::string& trace) {
  const TraceReader reader = TraceReader::Open(trace);
  // By sequence, by position: the id, and whether it came in a decode step.
  std::map<int, std::map<int, std::pair<int32_t, bool>>> tokens;
  for (const TraceStep& step : reader.steps()) {
    for (size_t t = 0; t < step.positions.size(); ++t) {
      if (step.sequences[t] < 0) continue;
      const int32_t id = step.input_ids.empty() ? -1 : step.input_ids[t];
      tokens[step.sequences[t]][step.positions[t]] = {id, step.phase == Phase::kDecode};
    }
  }
  if (tokens.empty()) throw Error(trace + ": holds no tokens that could be run again");
  std::vector<SequenceInput> out;
  for (const auto& [sequence, positions] : tokens) {
    SequenceInput input;
    int expected = 0;
    for (const auto& [position, token] : positions) {
      if (position != expected++) {
        throw Error(trace + ": sequence " + std::to_string(sequence) + " has no token at position " +
                    std::to_string(expected - 1) + "; a run needs every position from 0");
      }
      (token.second ? input.forced : input.prompt).push_back(token.first);
    }
    if (input.prompt.empty()) {
      throw Error(trace + ": sequence " + std::to_string(sequence) + " has no prefill step, only decode steps");
    }
    out.push_back(std::move(input));
  }
  return out;
}

}  // namespace lockstep::cli
