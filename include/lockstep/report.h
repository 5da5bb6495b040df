// Printing a comparison. Nothing is computed here: every figure stands in the result.
#pragma once

#include <string>
#include <string_view>

#include "lockstep/compare.h"

namespace lockstep {

struct TextOptions {
  bool color = false;
  int width = 120;   // of the terminal; long names are shortened to fit
  bool all = false;  // every point; else EXCELLENT layers are folded when the table is long
};

std::string TextReport(const CompareResult& result, const TextOptions& options = {});

// Everything, as one object; numbers that JSON lacks are the strings "NaN", "Infinity" and "-Infinity". "schema":
// "lockstep-compare/1".
std::string JsonReport(const CompareResult& result);

// Names and messages come from traces and are not trusted: control characters (C0, DEL, C1), direction overrides and
// bytes that are no UTF-8 become \xNN or \u{NNNN}, so that nothing moves a terminal's cursor.
std::string Escaped(std::string_view text);

}  // namespace lockstep
