// Words of the reports. Names and messages come from traces and are not trusted: what could move a terminal's cursor is
// escaped.
#pragma once

#include <string>
#include <string_view>

#include "lockstep/compare.h"
#include "lockstep/replay.h"
#include "lockstep/report.h"  // Escaped

namespace lockstep {

// At most `width` columns: the middle of what is longer becomes "…". REQUIRES: escaped text, width >= 3.
std::string Shortened(const std::string& text, size_t width);

// Columns on a terminal: wide characters have two. REQUIRES: escaped text.
size_t TextWidth(std::string_view text);
std::string Padded(const std::string& text, size_t width);

// Lines of at most `width` columns, broken at blanks, each with its newline: `label` stands before the first, as many
// blanks before the others. Words that are longer are broken. REQUIRES: escaped text, width >= that of the label + 2.
std::string Wrapped(const std::string& label, const std::string& text, size_t width);
std::string WithoutBlanksAtTheEnd(std::string line);

// What comes from a trace, escaped and cut to what a line or a paragraph can hold.
std::string NameText(const std::string& name);
std::string MessageText(const std::string& text);

// "sequence 0, position 5, head 3, channel 17"
std::string PlaceText(const Place& place);

// "(10, 16, 128)": rows joined and the shape of a row.
std::string PointShape(const PointResult& point);

// "Input", "L3", "Final"
std::string LayerLabel(int layer, const std::string& name);

// An error in noise units, at most seven characters: "0.93", "4", "312", "3.1e+04", "inf".
std::string NoiseText(double error);

// The same for a table: "0.90", "4.00", "31.2".
std::string NoiseCell(double error);

// "clean", "SUSPECT", "FAULTY", "n.o."
std::string VerdictWord(OpVerdict verdict);

// "L0-L6"
std::string LayerRange(int first, int last);

// "and 7 more; --all shows them"
std::string MoreText(size_t count);

// "1 point", "3 points"
std::string Count(size_t count, const std::string& noun);

}  // namespace lockstep
