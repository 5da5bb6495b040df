#include "engine/stop_filter.h"

#include <algorithm>
#include <utility>

#include "lockstep/error.h"

namespace lockstep {

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) {
    if (stop.empty()) throw Error("stop string: expected at least one character, found none");
  }
}

std::string StopFilter::Add(std::string_view text) {
  if (stopped_) return "";
  pending_ += text;
  size_t begin = std::string::npos;
  size_t end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t found = pending_.find(stop);
    if (found == std::string::npos) continue;
    const size_t found_end = found + stop.size();
    if (found_end < end || (found_end == end && found < begin)) {
      begin = found;
      end = found_end;
    }
  }
  stopped_ = end != std::string::npos;
  const std::string certain = pending_.substr(0, stopped_ ? begin : pending_.size() - HeldBack());
  pending_.erase(0, stopped_ ? pending_.size() : certain.size());
  return certain;
}

// The longest end of the text that begins a stop string.
size_t StopFilter::HeldBack() const {
  size_t longest = 0;
  for (const std::string_view stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, pending_.size()); n > longest; --n) {
      if (pending_.ends_with(stop.substr(0, n))) longest = n;
    }
  }
  return longest;
}

std::string StopFilter::Finish() { return std::exchange(pending_, ""); }

}  // namespace lockstep
