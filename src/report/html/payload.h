// What the page is told: the object of the JSON report itself, so that both have the same figures, and what is drawn.
#pragma once

#include "base/json.h"
#include "lockstep/report.h"

namespace lockstep {

// {"version", "command", "verdict": sentence, "thresholds", "report": of JsonReport, "details": {"compare",
// "reference", "candidate"}: a list each, beside the report's lists of points, or null, "sequences", "texts": {"id":
// text}}
Json PagePayload(const Judged& judged, const HtmlOptions& options);
Json PagePayload(const Diagnosis& diagnosis, const HtmlOptions& options);

// For the inside of a <script> element: ASCII, without '<', '>' and '&'.
std::string ScriptText(const Json& json);

}  // namespace lockstep
