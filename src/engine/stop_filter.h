// Ends a text before a stop string.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

// The same text comes out, whatever pieces it goes in by: the stop string that is complete first ends it, the longest
// of several that are complete at once.
class StopFilter {
 public:
  // Throws Error for an empty stop string.
  explicit StopFilter(std::vector<std::string> stops);

  // The text that is certain to come before any stop string; the rest is held back.
  std::string Add(std::string_view text);
  // What was held back.
  std::string Finish();
  bool stopped() const { return stopped_; }

 private:
  size_t HeldBack() const;

  std::vector<std::string> stops_;
  std::string pending_;
  bool stopped_ = false;
};

}  // namespace lockstep
