// Reading JSON from files that are not trusted: bounded depth, no exceptions of the library's own, duplicate keys
// reported.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace lockstep {

using Json = nlohmann::ordered_json;
// Sorted by key, so that an object of a million keys is no attack.
using SortedJson = nlohmann::json;

// Parses `text`; `what` names it in messages. Throws Error on syntax errors, invalid UTF-8 and nesting deeper than 64.
// `on_duplicate` is told of every key that an object holds twice at the top level (the last one wins); without it that
// is an Error.
Json ParseJson(std::string_view text, const std::string& what,
               const std::function<void(const std::string& key)>& on_duplicate = nullptr);
SortedJson ParseSortedJson(std::string_view text, const std::string& what,
                           const std::function<void(const std::string& key)>& on_duplicate = nullptr);

}  // namespace lockstep
