// lockstep._native: the compiled part for Python. Results cross as JSON, the same text that `--json` writes, and as the
// report of the terminal; python/lockstep/results.py makes typed objects of them. Its stub is _native.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "lockstep/compare.h"
#include "lockstep/diagnose.h"
#include "lockstep/error.h"
#include "lockstep/report.h"
#include "lockstep/version.h"

namespace nb = nanobind;

namespace {

using Paths = std::vector<std::string>;

// (json, text) of whatever report.h prints. REQUIRES: the interpreter's lock is not held.
template <typename Result>
std::pair<std::string, std::string> Reports(const Result& result) {
  return {lockstep::JsonReport(result), lockstep::TextReport(result)};
}

nb::tuple CompareTraces(const Paths& reference, const Paths& candidate, const std::optional<std::string>& model,
                        std::optional<double> atol, std::optional<double> rtol, const std::string& points,
                        const std::string& layers) {
  std::pair<std::string, std::string> reports;
  {
    const nb::gil_scoped_release release;
    lockstep::CompareOptions options;
    options.atol = atol;
    options.rtol = rtol;
    options.points = points;
    options.layers = layers;
    lockstep::Judged judged{lockstep::Compare(reference, candidate, options)};
    if (model) {
      judged.reference = lockstep::Diagnose(reference, *model, {.points = points, .layers = layers});
      judged.candidate = lockstep::Diagnose(candidate, *model, {.points = points, .layers = layers});
    }
    reports = Reports(judged);
  }
  return nb::make_tuple(reports.first, reports.second);
}

nb::tuple ReplayTraces(const Paths& traces, const std::string& model, const std::string& points,
                       const std::string& layers) {
  std::pair<std::string, std::string> reports;
  {
    const nb::gil_scoped_release release;
    reports = Reports(lockstep::Diagnose(traces, model, {.points = points, .layers = layers}));
  }
  return nb::make_tuple(reports.first, reports.second);
}

}  // namespace

NB_MODULE(_native, m) {
  m.attr("__version__") = LOCKSTEP_VERSION;
  nb::exception<lockstep::Error>(m, "NativeError");
  m.def("compare", &CompareTraces, nb::arg("reference"), nb::arg("candidate"), nb::arg("model") = nb::none(),
        nb::arg("atol") = nb::none(), nb::arg("rtol") = nb::none(), nb::arg("points") = "", nb::arg("layers") = "");
  m.def("replay", &ReplayTraces, nb::arg("traces"), nb::arg("model"), nb::arg("points") = "", nb::arg("layers") = "");
}
