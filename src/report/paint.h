// Colours of a terminal.
#pragma once

#include <cstddef>
#include <string>

#include "lockstep/replay.h"

namespace lockstep {

enum class Color { kNone, kGood, kWarning, kBad, kStrong };

inline std::string Paint(const std::string& text, Color color, bool enabled) {
  if (!enabled || color == Color::kNone) return text;
  constexpr const char* kCodes[] = {"", "\033[32m", "\033[33m", "\033[31m", "\033[1m"};
  return kCodes[static_cast<size_t>(color)] + text + "\033[0m";
}

inline Color ColorOf(OpVerdict verdict) {
  switch (verdict) {
    case OpVerdict::kClean: return Color::kGood;
    case OpVerdict::kSuspect: return Color::kWarning;
    case OpVerdict::kFaulty: return Color::kBad;
    case OpVerdict::kNotObservable: return Color::kNone;
  }
  return Color::kNone;
}

}  // namespace lockstep
