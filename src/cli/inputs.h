// What goes into a model: prompts as text or as tokens, or embeddings that bypass the embedding table.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace lockstep::cli {

inline constexpr const char* kDefaultInput = "In the beginning God created the heaven and the earth.";

struct InputOptions {
  std::vector<std::string> texts;
  std::string file;                 // one prompt a line
  std::vector<std::string> tokens;  // "1,2,3"
  std::string embeddings;           // a .npy file, "zeros", "tiny" or "huge"
  int decode = 0;

  void AddTo(CLI::App& command);
  // As arguments of `python -m lockstep.reference`. prompts: of PromptTokens.
  std::vector<std::string> ForPython(const std::vector<std::vector<int32_t>>& prompts) const;
};

struct ModelArguments {
  std::string model;
  std::string dtype = "f32";
  int num_layers = -1;

  void AddTo(CLI::App& command);
};

// Options that both sides know.
struct ModelRunOptions : ModelArguments {
  std::string points, layers, steps, rows;  // what is captured

  void AddTo(CLI::App& command);
};

// One sequence to run: a prompt in one or more prefill calls, then tokens that are fed one a step.
struct SequenceInput {
  std::vector<int32_t> prompt;    // [T]
  std::vector<int32_t> forced;    // tokens of the decode steps; empty: the engine's own greedy choice
  std::vector<float> embeddings;  // [T, hidden] to use for the prompt, or empty
};

// "1,2,3". Throws Error that names --tokens.
std::vector<int32_t> ParseTokens(const std::string& text);

// The prompts of the options as token ids; none where a .npy file of embeddings is all there is. Throws Error.
std::vector<std::vector<int32_t>> PromptTokens(const InputOptions& options, const std::string& model);

// Every sequence of a trace, so that another implementation can be fed exactly the same. Throws Error if the trace has
// no ids.
std::vector<SequenceInput> SequencesOf(const std::string& trace);

}  // namespace lockstep::cli
