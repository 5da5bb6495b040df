#include "tokenizer/vocabulary_json.h"

#include <set>

#include "lockstep/error.h"

namespace lockstep {
namespace {

constexpr int kMaxDepth = 64;
// Depths at which the parser reports model's keys, and what lies in model.vocab and model.merges.
constexpr int kModelDepth = 2;
constexpr int kItemDepth = 3;

using Event = SortedJson::parse_event_t;

std::string Shown(const SortedJson& value) {
  const std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

class Reader {
 public:
  Reader(std::string what, int32_t max_ids) : what_(std::move(what)), max_ids_(max_ids) {}

  // The parser's callback; false: what was parsed does not go into the tree. The parser reports nothing inside a list
  // whose beginning was refused, and wants an answer of true for the value of a key that was.
  bool Take(int depth, Event event, SortedJson& value) {
    if (depth > kMaxDepth) throw Error(what_ + ": JSON nested deeper than " + std::to_string(kMaxDepth) + " levels");
    if (depth >= kItemDepth && where_ == Where::kVocabulary) return TakeToken(event, value);
    if (depth >= kItemDepth && where_ == Where::kMerges) return TakeMerge(depth, event, value);
    where_ = Where::kElsewhere;
    if (event == Event::key) TakeKey(depth, value.get_ref<const std::string&>());
    if (event == Event::object_start) keys_.emplace_back();
    if (event == Event::object_end) keys_.pop_back();
    if (in_model_ && depth == kModelDepth) {
      if (event == Event::object_start && model_key_ == "vocab") where_ = Where::kVocabulary;
      if (event == Event::array_start && model_key_ == "merges") where_ = Where::kMerges;
    }
    return true;
  }

  VocabularyJson out;

 private:
  enum class Where { kElsewhere, kVocabulary, kMerges };

  [[noreturn]] void Fail(const std::string& key, const std::string& expected, const std::string& found) const {
    throw Error(what_ + ": model." + key + ": expected " + expected + ", found " + found +
                "; correct the file, or download it again");
  }

  void TakeKey(int depth, const std::string& key) {
    if (!keys_.back().insert(key).second) {
      throw Error(what_ + ": key \"" + key.substr(0, 200) + "\" stands twice in one object");
    }
    if (depth < kModelDepth) in_model_ = key == "model";
    if (depth == kModelDepth) model_key_ = key;
  }

  bool TakeToken(Event event, SortedJson& value) {
    if (event == Event::key) {
      token_ = std::move(value.get_ref<std::string&>());
      return false;
    }
    const bool good =
        event == Event::value && value.is_number_unsigned() && value.get<uint64_t>() < static_cast<uint64_t>(max_ids_);
    if (!good) {
      Fail("vocab[" + Shown(token_) + "]", "an id from 0 to " + std::to_string(max_ids_ - 1),
           event == Event::value ? Shown(value) : "a list or object");
    }
    out.vocabulary.emplace_back(std::move(token_), value.get<int32_t>());
    return true;
  }

  // "a b", as older files have it, or ["a", "b"].
  bool TakeMerge(int depth, Event event, SortedJson& value) {
    const bool in_pair = depth > kItemDepth;
    const bool text = event == Event::value && value.is_string();
    if (text && in_pair) {
      pair_.push_back(std::move(value.get_ref<std::string&>()));
    } else if (text) {
      TakeLine(value.get_ref<const std::string&>());
    } else if (event == Event::array_start && !in_pair) {
      pair_.clear();
      return true;
    } else if (event == Event::array_end && !in_pair) {
      if (pair_.size() != 2) FailMerge(std::to_string(pair_.size()) + " strings");
      out.merges.emplace_back(std::move(pair_[0]), std::move(pair_[1]));
    } else {
      FailMerge(event == Event::value ? Shown(value) : "a list or object");
    }
    return false;
  }

  void TakeLine(const std::string& line) {
    if (line.starts_with("#version")) return;
    const size_t blank = line.find(' ');
    if (blank == std::string::npos || line.find(' ', blank + 1) != std::string::npos) FailMerge(Shown(line));
    out.merges.emplace_back(line.substr(0, blank), line.substr(blank + 1));
  }

  [[noreturn]] void FailMerge(const std::string& found) const {
    Fail("merges[" + std::to_string(out.merges.size()) + "]", "two tokens, as \"a b\" or [\"a\", \"b\"]", found);
  }

  std::string what_;
  int32_t max_ids_;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
  bool in_model_ = false;
  std::string model_key_;
  Where where_ = Where::kElsewhere;
  std::string token_;
  std::vector<std::string> pair_;
};

}  // namespace

VocabularyJson ParseVocabularyJson(std::string_view text, const std::string& what, int32_t max_ids) {
  Reader reader(what, max_ids);
  try {
    reader.out.rest = SortedJson::parse(
        text, [&](int depth, Event event, SortedJson& value) { return reader.Take(depth, event, value); });
  } catch (const nlohmann::detail::exception& e) {
    throw Error(what + ": expected valid JSON: " + e.what());
  }
  return std::move(reader.out);
}

}  // namespace lockstep
