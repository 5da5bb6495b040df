#include "report/replay_json.h"

#include <fmt/format.h>

#include <initializer_list>
#include <string>
#include <string_view>

#include "lockstep/dtype.h"
#include "lockstep/report.h"
#include "report/finding.h"
#include "report/json_values.h"

namespace lockstep {
namespace {

Json ArithmeticJson(const Arithmetic& arithmetic) {
  return {{"storage", DTypeName(arithmetic.storage)},
          {"operands", DTypeName(arithmetic.operands)},
          {"accumulate", DTypeName(arithmetic.accumulate)},
          {"cache", DTypeName(arithmetic.cache)}};
}

// An error in noise units and where it is.
Json ErrorJson(double error, const Place& place) {
  Json json = {{"error", Number(error)}};
  json.update(PlaceJson(place));
  return json;
}

// What was judged; null where nothing was.
void AddErrors(const LocalError& point, Json* json) {
  const bool judged = point.rows > 0;
  const auto add = [&](const char* key, Json value) { (*json)[key] = judged ? std::move(value) : Json(nullptr); };
  add("worst_row", ErrorJson(point.worst_row, point.worst_row_at));
  add("worst_head", point.worst_head_at.head >= 0 ? ErrorJson(point.worst_head, point.worst_head_at) : Json(nullptr));
  add("whole", Number(point.whole));
  Json max = ErrorJson(point.max, point.max_at);
  max["captured"] = Number(point.max_value);
  max["recomputed"] = Number(point.max_expected);
  add("max", std::move(max));
  add("scale", {{"value", Number(point.scale)}, {"standard_error", Number(point.scale_error)}});
  const NoiseLimits& limits = point.limits;
  add("limits", {{"row", limits.row}, {"head", limits.head}, {"max", limits.max}, {"scale", limits.scale}});
}

Json PointJson(const LocalError& point) {
  Json json;
  json["name"] = point.name;
  json["layer"] = point.layer;
  json["point"] = point.point;
  json["op"] = point.op;
  json["verdict"] = OpVerdictName(point.verdict);
  json["why"] = fmt::format("{}", fmt::join(point.reasons, "; "));
  json["from"] = point.from;
  json["bridged"] = point.bridged;
  json["arithmetic"] = ArithmeticJson(point.arithmetic);
  json["rows"] = point.rows;
  json["rows_not_observable"] = point.rows_not_observable;
  json["rows_inherited"] = point.rows_inherited;
  json["elements"] = point.elements;
  AddErrors(point, &json);
  json["non_finite"] = point.non_finite;
  json["first_non_finite"] = PlaceJson(point.first_non_finite);
  return json;
}

Json ExplanationJson(const Explanation& explanation) {
  return {{"cause", explanation.cause}, {"text", explanation.text}, {"explained", Number(explanation.explained)}};
}

Json FindingJson(const Finding& finding) {
  const bool known = finding.cause.has_value();
  Json json;
  json["points"] = finding.names;
  json["point"] = finding.point;
  json["layers"] = LayersText(finding.layers);
  json["op"] = finding.op;
  json["cause"] = known ? Json(finding.cause->cause) : Json(nullptr);
  json["text"] = known ? Json(finding.cause->text) : Json(nullptr);
  json["advice"] = known ? Json(finding.cause->advice) : Json(nullptr);
  json["error"] = Number(finding.error);
  json["clean"] = Number(finding.clean);
  json["explained"] = known ? Number(finding.cause->explained) : Json(nullptr);
  json["also"] = ListJson(finding.also, ExplanationJson);
  json["next"] = finding.next ? ExplanationJson(*finding.next) : Json(nullptr);
  json["patterns"] = ListJson(
      finding.patterns, [](const Pattern& pattern) -> Json { return {{"id", pattern.id}, {"text", pattern.text}}; });
  json["worst"] = PlaceJson(finding.worst);
  json["sentence"] = FindingSentence(finding);
  return json;
}

Json CountsJson(const ReplayResult& replay) {
  return {{"clean", replay.clean},
          {"suspect", replay.suspect},
          {"faulty", replay.faulty},
          {"not_observable", replay.not_observable}};
}

}  // namespace

Json ReplayJson(const Diagnosis& diagnosis) {
  const ReplayResult& replay = diagnosis.replay;
  Json json;
  json["schema"] = "lockstep-replay/1";
  json["verdict"] = diagnosis.ExitCode() == 0 ? "clean" : "faulty";
  json["exit_code"] = diagnosis.ExitCode();
  json["trace"] = replay.traces;
  json["model"] = replay.model;
  json["arithmetic"] = ArithmeticJson(replay.arithmetic);
  json["arithmetic"]["declared"] = replay.has_arithmetic;
  json["counts"] = CountsJson(replay);
  json["first_faulty"] = replay.first_faulty ? Json(replay.points[*replay.first_faulty].name) : Json(nullptr);
  json["findings"] = ListJson(diagnosis.findings, FindingJson);
  json["layouts"] = ListJson(diagnosis.layouts, [](const std::string& text) -> Json { return {{"text", text}}; });
  json["weights_compared"] = replay.weights_compared;
  json["weights"] = ListJson(replay.weights, [](const WeightMismatch& weight) -> Json {
    return {{"name", weight.name}, {"text", weight.text}};
  });
  json["notes"] = replay.notes;
  json["points"] = ListJson(replay.points, PointJson);
  return json;
}

std::string JsonReport(const Diagnosis& diagnosis) {
  // Names come from traces: what is no UTF-8 is replaced.
  return ReplayJson(diagnosis).dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace lockstep
