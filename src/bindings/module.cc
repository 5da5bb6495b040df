// lockstep._native: the compiled part for Python. Results cross as JSON, the same text that `--json` writes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "lockstep/compare.h"
#include "lockstep/error.h"
#include "lockstep/report.h"
#include "lockstep/version.h"

namespace nb = nanobind;

namespace {

nb::tuple CompareTraces(const std::vector<std::string>& reference, const std::vector<std::string>& candidate,
                        std::optional<double> atol, std::optional<double> rtol, const std::string& points,
                        const std::string& layers) {
  lockstep::CompareOptions options;
  options.atol = atol;
  options.rtol = rtol;
  options.points = points;
  options.layers = layers;
  std::string json;
  std::string text;
  {
    const nb::gil_scoped_release release;
    const lockstep::CompareResult result = lockstep::Compare(reference, candidate, options);
    json = lockstep::JsonReport(result);
    text = lockstep::TextReport(result, {});
  }
  return nb::make_tuple(json, text);
}

}  // namespace

NB_MODULE(_native, m) {
  m.attr("__version__") = LOCKSTEP_VERSION;
  nb::exception<lockstep::Error>(m, "NativeError");
  m.def("compare", &CompareTraces, nb::arg("reference"), nb::arg("candidate"), nb::arg("atol") = nb::none(),
        nb::arg("rtol") = nb::none(), nb::arg("points") = "", nb::arg("layers") = "");
}
