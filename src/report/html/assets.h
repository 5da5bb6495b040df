// The files of the page beside this one, as cmake/EmbedText.cmake puts them into the program.
#pragma once

#include <string_view>

namespace lockstep {

extern const std::string_view kTemplate;  // template.html
extern const std::string_view kStyle;     // style.css
extern const std::string_view kScript;    // the scripts, one after the other
// "sha256-…" of their bytes, as a Content-Security-Policy names what may run.
extern const std::string_view kTemplateHash, kStyleHash, kScriptHash;

}  // namespace lockstep
