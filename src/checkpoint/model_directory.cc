#include "checkpoint/model_directory.h"

#include <algorithm>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <vector>

#include "lockstep/error.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

struct OtherFormat {
  std::string_view prefix;
  std::string_view suffix;
  std::string_view advice;
};

constexpr std::string_view kConvert =
    "convert it with transformers: AutoModelForCausalLM.from_pretrained(\"MODEL\").save_pretrained(\"OUT\")";

// The first format of which a file is there is the one that the message names.
constexpr OtherFormat kOtherFormats[] = {
    {"adapter_model", "", "it is an adapter, not a model: merge it into its base model with peft's merge_and_unload()"},
    {"model-0", ".safetensors", "its model.safetensors.index.json is missing: download that too"},
    {"", ".safetensors", "rename it to model.safetensors if it holds the whole model"},
    {"", ".gguf",
     "GGUF weights are renamed and mostly quantized: take the Hugging Face checkpoint that it was made from"},
    {"", ".bin", kConvert},
    {"", ".pt", kConvert},
    {"", ".pth", kConvert},
};

std::vector<std::string> SortedFileNames(const std::string& dir) {
  std::vector<std::string> names;
  std::error_code ignored;  // an unreadable directory has no advice to give
  for (fs::directory_iterator it(dir, ignored), end; !ignored && it != end; it.increment(ignored)) {
    names.push_back(it->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool Matches(const OtherFormat& format, const std::string& name) {
  return name.starts_with(format.prefix) && name.ends_with(format.suffix);
}

std::string AdviceOn(const std::string& file_name) {
  for (const OtherFormat& format : kOtherFormats) {
    if (Matches(format, file_name)) return "; " + file_name + ": " + std::string(format.advice);
  }
  return "";
}

}  // namespace

void RequireModelDirectory(const std::string& dir) {
  std::error_code error;
  const fs::file_status status = fs::status(dir, error);
  if (fs::is_directory(status)) return;
  if (!fs::exists(status)) {
    const std::string why = error && status.type() == fs::file_type::none ? error.message() : "no such directory";
    throw Error(dir + ": expected the directory of a Hugging Face checkpoint, found " + why);
  }
  const fs::path path(dir);
  const std::string parent = path.has_parent_path() ? path.parent_path().string() : ".";
  const bool in_checkpoint = FileExists(parent + "/config.json");
  throw Error(dir + ": expected the directory of a Hugging Face checkpoint, found a file" +
              (in_checkpoint ? "; pass its directory, " + parent : AdviceOn(path.filename().string())));
}

bool FileExists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

std::string AdviceOnOtherFormats(const std::string& dir) {
  const std::vector<std::string> names = SortedFileNames(dir);
  for (const OtherFormat& format : kOtherFormats) {
    const auto found =
        std::find_if(names.begin(), names.end(), [&](const auto& name) { return Matches(format, name); });
    if (found != names.end()) return AdviceOn(*found);
  }
  return "";
}

}  // namespace lockstep
