// Reading a JSON file that is not trusted, member by member: every message says where in the file, what was expected
// and what was found.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "lockstep/dtype.h"
#include "lockstep/error.h"

namespace lockstep {

inline std::string FoundText(const SortedJson& value) {
  // JSON text with \u escapes: what stands in a damaged file must not reach a terminal.
  std::string text = value.dump(-1, ' ', true, SortedJson::error_handler_t::replace);
  return text.size() <= 100 ? text : text.substr(0, 100) + "...";
}

// A value of trace.json with the path that leads to it: `trace.json: arithmetic.storage`.
class JsonNode {
 public:
  JsonNode(const SortedJson* value, std::string where) : value_(value), where_(std::move(where)) {}

  bool present() const { return value_ != nullptr; }
  const SortedJson& value() const { return *value_; }
  const std::string& where() const { return where_; }

  [[noreturn]] void Fail(const std::string& expected) const {
    throw Error(where_ + ": expected " + expected + ", found " + (present() ? FoundText(*value_) : "nothing"));
  }

  // A member of an object; absent where the object is.
  JsonNode operator[](const char* key) const {
    if (!present()) return {nullptr, Below(key)};
    const auto member = Object().find(key);
    return {member == value_->end() ? nullptr : &*member, Below(key)};
  }

  const SortedJson& Object() const {
    if (!present() || !value_->is_object()) Fail("an object");
    return *value_;
  }
  template <typename F>
  void ForEachMember(F&& f) const {
    if (!present()) return;
    for (const auto& [key, value] : Object().items()) f(key, JsonNode(&value, Below(key)));
  }
  template <typename F>
  void ForEachElement(F&& f) const {
    if (!present()) return;
    if (!value_->is_array()) Fail("a list");
    size_t i = 0;
    for (const SortedJson& value : *value_) f(JsonNode(&value, where_ + "[" + std::to_string(i++) + "]"));
  }

  std::string String(const char* fallback) const {
    if (!present() && fallback) return fallback;
    if (!present() || !value_->is_string()) Fail("a string");
    return value_->get<std::string>();
  }
  std::vector<std::string> Strings() const {
    std::vector<std::string> out;
    ForEachElement([&](const JsonNode& node) { out.push_back(node.String(nullptr)); });
    return out;
  }
  bool Bool(bool fallback) const {
    if (!present()) return fallback;
    if (!value_->is_boolean()) Fail("true or false");
    return value_->get<bool>();
  }
  int64_t Int(int64_t least, int64_t most, std::optional<int64_t> fallback = std::nullopt) const {
    if (!present() && fallback) return *fallback;
    const bool fits = present() && value_->is_number_integer() &&
                      !(value_->is_number_unsigned() && value_->get<uint64_t>() > static_cast<uint64_t>(most)) &&
                      value_->get<int64_t>() >= least && value_->get<int64_t>() <= most;
    if (!fits) Fail("a whole number from " + std::to_string(least) + " to " + std::to_string(most));
    return value_->get<int64_t>();
  }
  DType Type(std::optional<DType> fallback = std::nullopt) const {
    if (!present() && fallback) return *fallback;
    const std::optional<DType> dtype = ParseDType(String(nullptr));
    if (!dtype) Fail("the name of a dtype such as \"BF16\"");
    return *dtype;
  }

 private:
  std::string Below(const std::string& key) const {
    const std::string shown = key.size() <= 100 ? key : key.substr(0, 100) + "...";
    return where_ + (where_.ends_with(".json") ? ": " : ".") + shown;
  }

  const SortedJson* value_;
  std::string where_;
};

}  // namespace lockstep
