// Words of the reports. Names and messages come from traces and are not trusted: what could move a terminal's cursor is
// escaped.
#pragma once

#include <string>
#include <string_view>

#include "lockstep/compare.h"
#include "lockstep/report.h"  // Escaped

namespace lockstep {

// At most `width` characters: the middle of what is longer becomes "…". REQUIRES: escaped text, width >= 3.
std::string Shortened(const std::string& text, size_t width);

// Characters, not bytes. Wide ones count as one.
size_t TextWidth(std::string_view text);
std::string Padded(const std::string& text, size_t width);

// "sequence 0, position 5, head 3, channel 17"
std::string PlaceText(const Place& place);

// "(10, 16, 128)": rows joined and the shape of a row.
std::string PointShape(const PointResult& point);

// "Input", "L3", "Final"
std::string LayerLabel(const PointResult& point);

// "1 point", "3 points"
std::string Count(size_t count, const std::string& noun);

}  // namespace lockstep
