// `lockstep generate`: the built-in engine as a text generator. The text goes to stdout, everything about it to stderr.
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>

#include "cli/command.h"
#include "cli/run_engine.h"
#include "cli/text_files.h"
#include "lockstep/error.h"
#include "lockstep/generate.h"

namespace lockstep::cli {
namespace {

struct GenerateArguments {
  ModelArguments model;
  std::optional<std::string> prompt, prompt_file, tokens;
  bool chat = false;
  bool no_thinking = false;
  GenerateOptions options;
  std::vector<const CLI::Option*> of_draws;  // that mean nothing where nothing is drawn
};

// Qwen3's template for one turn of the user. Throws Error for a tokenizer without its tokens.
std::string ChatPrompt(const Tokenizer& tokenizer, const std::string& prompt, bool no_thinking) {
  for (const char* token : {"<|im_start|>", "<|im_end|>"}) {
    if (!tokenizer.TokenId(token)) {
      throw Error(std::string("--chat: expected a tokenizer with ") + token + ", found none; leave out --chat");
    }
  }
  return "<|im_start|>user\n" + prompt + "<|im_end|>\n<|im_start|>assistant\n" +
         (no_thinking ? "<think>\n\n</think>\n\n" : "");
}

// A file's last line end is the editor's, not the prompt's.
std::string WithoutLineEnd(std::string text) {
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

void CheckOptions(const GenerateArguments& arguments) {
  const int given = arguments.prompt.has_value() + arguments.prompt_file.has_value() + arguments.tokens.has_value();
  if (given != 1) {
    throw Error("generate: expected one of --prompt, --prompt-file and --tokens, found " + std::to_string(given));
  }
  if (arguments.chat && arguments.tokens) throw Error("--chat: expected a prompt of text, found --tokens");
  if (arguments.options.max_tokens < 1) {
    throw Error("--max-tokens: expected a number from 1, found " + std::to_string(arguments.options.max_tokens));
  }
  if (arguments.prompt) CheckUtf8("--prompt", *arguments.prompt);
  for (const std::string& stop : arguments.options.stop_strings) CheckUtf8("--stop", stop);
  for (const CLI::Option* option : arguments.of_draws) {
    if (option->count() > 0 && arguments.options.sampler.temperature == 0) {
      throw Error(option->get_name() + ": nothing is drawn at temperature 0, its default; give --temperature");
    }
  }
  const Sampler check(arguments.options.sampler);  // before anything large is read
}

std::vector<int32_t> PromptOf(const GenerateArguments& arguments, const Tokenizer& tokenizer) {
  if (arguments.tokens) return ParseTokens(*arguments.tokens);
  std::string text = arguments.prompt ? *arguments.prompt : WithoutLineEnd(ReadText(*arguments.prompt_file));
  if (text.empty()) {
    throw Error(std::string(arguments.prompt ? "--prompt" : "--prompt-file") +
                ": expected text, found an empty prompt");
  }
  if (arguments.chat) text = ChatPrompt(tokenizer, text, arguments.no_thinking);
  return tokenizer.Encode(text);
}

void Print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (std::fflush(stdout) != 0) throw Error(std::string("standard output: cannot be written: ") + std::strerror(errno));
}

std::string ReasonText(const Generation& generation, const GenerateOptions& options) {
  switch (generation.stop_reason) {
    case StopReason::kStopToken: return "end of text (token " + std::to_string(generation.tokens.back()) + ")";
    case StopReason::kStopString: return "stop string";
    case StopReason::kMaxTokens: return "max tokens (" + std::to_string(options.max_tokens) + ")";
    case StopReason::kContextFull: return "context full (" + std::to_string(generation.context) + " tokens)";
  }
  return "";
}

std::string SpeedText(int64_t tokens, double seconds) {
  char text[96];
  std::snprintf(text, sizeof(text), "%lld tokens, %.2f s, %.1f tok/s", static_cast<long long>(tokens), seconds,
                tokens > 0 ? static_cast<double>(tokens) / seconds : 0.0);
  return text;
}

void GenerateText(const GenerateArguments& arguments) {
  CheckOptions(arguments);
  ReadConfig(arguments.model.model);  // so that a wrong directory is called so, and not for lack of a tokenizer
  const Tokenizer tokenizer = Tokenizer::Load(arguments.model.model);
  const std::vector<int32_t> prompt = PromptOf(arguments, tokenizer);
  GenerateOptions options = arguments.options;
  options.stop_tokens = StopTokens(arguments.model.model);
  const Model model = LoadModel(arguments.model);

  const Generation generation = Generate(model, tokenizer, prompt, options, Print);
  Print("\n");
  std::fprintf(stderr, "stopped: %s\nprefill: %s; decode: %s; last logits %s\n",
               ReasonText(generation, options).c_str(),
               SpeedText(static_cast<int64_t>(prompt.size()), generation.prefill_seconds).c_str(),
               SpeedText(generation.decode_steps, generation.decode_seconds).c_str(), generation.logits_hash.c_str());
}

// CLI11 takes -1 for the largest number. Empty where all is well.
std::string SeedError(const std::string& text) {
  uint64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  const bool good = error == std::errc() && end == text.data() + text.size();
  return good ? "" : "expected a number from 0 to 2^64 - 1, found " + text;
}

// Returns those that mean nothing where nothing is drawn.
std::vector<const CLI::Option*> AddSamplerOptions(CLI::App& command, SamplerOptions& sampler) {
  command.add_option("--temperature", sampler.temperature, "0 (default): greedy; generation_config.json is not asked");
  std::vector<const CLI::Option*> of_draws = {
      command.add_option("--top-k", sampler.top_k, "Draw from this many of the likeliest tokens; 0: all"),
      command.add_option("--top-p", sampler.top_p, "Draw from the likeliest tokens that hold this share together"),
      command.add_option("--min-p", sampler.min_p, "Draw from tokens at least this likely, relative to the likeliest"),
      command.add_option("--seed", sampler.seed, "Of the draws (default: 0); the same seed gives the same text")
          ->check(SeedError),
  };
  command.add_option("--repetition-penalty", sampler.repetition_penalty,
                     "Divide the logits of tokens that were there already, prompt included; 1: off");
  return of_draws;
}

}  // namespace

void AddGenerate(CLI::App& app, int& exit_code) {
  auto arguments = std::make_shared<GenerateArguments>();
  CLI::App* command = app.add_subcommand("generate", "Let the built-in C++ engine continue a text");
  arguments->model.AddTo(*command);
  command->add_option("--prompt", arguments->prompt,
                      "The text; tokens such as <|im_start|> in it become special tokens");
  command->add_option("--prompt-file", arguments->prompt_file,
                      "A file with the text; its last line end does not count");
  command->add_option("--tokens", arguments->tokens, "The prompt as token ids: 1,2,3");
  CLI::Option* chat = command->add_flag("--chat", arguments->chat, "Put the prompt into Qwen3's chat template");
  command->add_flag("--no-thinking", arguments->no_thinking, "With an empty <think> block")->needs(chat);
  command->add_option("--max-tokens", arguments->options.max_tokens, "Stop after this many tokens (default: 128)");
  command->add_option("--stop", arguments->options.stop_strings, "Stop before this string; repeat it for several")
      ->allow_extra_args(false);
  arguments->of_draws = AddSamplerOptions(*command, arguments->options.sampler);
  command->footer(
      "Also stops at eos_token_id of generation_config.json, or else of config.json. Special tokens are printed.");
  command->callback([arguments, &exit_code] {
    GenerateText(*arguments);
    exit_code = kSame;
  });
}

}  // namespace lockstep::cli
