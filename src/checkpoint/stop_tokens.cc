#include <limits>

#include "base/json.h"
#include "base/mapped_file.h"
#include "checkpoint/model_directory.h"
#include "lockstep/checkpoint.h"

namespace lockstep {
namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;

bool IsToken(const SortedJson& value) {
  return value.is_number_integer() && value >= 0 && value <= std::numeric_limits<int32_t>::max();
}

// eos_token_id of a JSON file: an id or a list of them. Empty where the file or the key is missing.
std::vector<int32_t> EosTokens(const std::string& path) {
  if (!FileExists(path)) return {};
  const SortedJson json = ParseSortedJson(ReadTextFile(path, kMaxConfigBytes), path);
  if (!json.is_object()) throw Error(path + ": expected a JSON object, found " + json.type_name());
  const auto found = json.find("eos_token_id");
  if (found == json.end() || found->is_null()) return {};
  const SortedJson ids = found->is_array() ? *found : SortedJson::array({*found});
  std::vector<int32_t> out;
  for (const SortedJson& id : ids) {
    if (!IsToken(id)) {
      throw Error(path + ": eos_token_id: expected a token id or a list of them, found " +
                  id.dump(-1, ' ', /*ensure_ascii=*/true).substr(0, 80) + "; correct the file, or download it again");
    }
    out.push_back(id.get<int32_t>());
  }
  return out;
}

}  // namespace

std::vector<int32_t> StopTokens(const std::string& model_dir) {
  std::vector<int32_t> tokens = EosTokens(model_dir + "/generation_config.json");
  return tokens.empty() ? EosTokens(model_dir + "/config.json") : tokens;
}

}  // namespace lockstep
