#include "base/json.h"

#include <set>
#include <vector>

#include "lockstep/error.h"

namespace lockstep {
namespace {

constexpr int kMaxDepth = 64;

using OnDuplicate = std::function<void(const std::string&)>;

template <typename J>
J Parse(std::string_view text, const std::string& what, const OnDuplicate& on_duplicate) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto watch = [&](int depth, typename J::parse_event_t event, J& value) {
    using Event = typename J::parse_event_t;
    if (depth > kMaxDepth) throw Error(what + ": JSON nested deeper than " + std::to_string(kMaxDepth) + " levels");
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.template get<std::string>()).second) {
      const auto key = value.template get<std::string>();
      if (keys.size() > 1 || !on_duplicate)
        throw Error(what + ": key \"" + key.substr(0, 200) + "\" stands twice in one object");
      on_duplicate(key);
    }
    return true;
  };
  try {
    return J::parse(text, watch);
  } catch (const nlohmann::detail::exception& e) {
    throw Error(what + ": expected valid JSON: " + e.what());
  }
}

}  // namespace

Json ParseJson(std::string_view text, const std::string& what, const OnDuplicate& on_duplicate) {
  return Parse<Json>(text, what, on_duplicate);
}

SortedJson ParseSortedJson(std::string_view text, const std::string& what, const OnDuplicate& on_duplicate) {
  return Parse<SortedJson>(text, what, on_duplicate);
}

}  // namespace lockstep
