// Numbers of the page that are drawn, not read: small, as characters.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/json.h"
#include "lockstep/detail.h"

namespace lockstep {

// How many consecutive bands of every map become one, so that all maps together have at most `budget` cells.
size_t FoldOf(std::span<const ErrorMap* const> maps, size_t budget);

// {"bands": [[sequence, first, last], …], "heads", "columns", "per_column", "low", "high", "cells"}: one character a
// cell, [bands, columns]. Levels, by their place in kLevelDigits: 0 is exactly 0, 63 is not finite, 1 to 62 go from
// `low` to `high` in equal steps of the logarithm. `fold` bands of one sequence become one, which shows the worst.
Json MapJson(const ErrorMap& map, size_t fold);

inline constexpr char kLevelDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

// IEEE 754 binary32, little endian, as base64: exactly what was compared, NaN included.
std::string FloatsText(std::span<const float> values);

}  // namespace lockstep
