// The page: a template with the style, the script and one block of data. The browser runs nothing but the script whose
// hash the template names, and loads nothing at all.
#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "lockstep/report.h"
#include "report/html/assets.h"
#include "report/html/payload.h"

namespace lockstep {
namespace {

// Each place is looked for in the template only, so that nothing in the data can be one.
std::string Filled(const std::string& data) {
  const std::array<std::pair<std::string_view, std::string_view>, 5> places = {{{"{{style-hash}}", kStyleHash},
                                                                                {"{{script-hash}}", kScriptHash},
                                                                                {"{{style}}", kStyle},
                                                                                {"{{data}}", data},
                                                                                {"{{script}}", kScript}}};
  std::string page;
  page.reserve(kTemplate.size() + kStyle.size() + kScript.size() + data.size());
  size_t begin = 0;
  for (const auto& [place, text] : places) {
    const size_t end = kTemplate.find(place, begin);
    page.append(kTemplate.substr(begin, end - begin)).append(text);
    begin = end + place.size();
  }
  return page.append(kTemplate.substr(begin));
}

}  // namespace

std::string HtmlReport(const Judged& judged, const HtmlOptions& options) {
  return Filled(ScriptText(PagePayload(judged, options)));
}

std::string HtmlReport(const Diagnosis& diagnosis, const HtmlOptions& options) {
  return Filled(ScriptText(PagePayload(diagnosis, options)));
}

}  // namespace lockstep
