#include "lockstep/report.h"
#include "report/json_values.h"

namespace lockstep {
namespace {

Json StatsJson(const SideStats& stats) {
  return {{"dtype", DTypeName(stats.dtype)}, {"mean", Number(stats.mean)}, {"std", Number(stats.std)},
          {"min", Number(stats.min)},        {"max", Number(stats.max)},   {"nan_count", stats.nan_count},
          {"inf_count", stats.inf_count}};
}

Json WorstJson(const BlockDrift& block) {
  if (block.rows == 0) return nullptr;
  return {{"sequence", block.first.sequence},
          {"first_position", block.first.position},
          {"last_position", block.last.position},
          {"rows", block.rows},
          {"relative_l2", Number(block.relative_l2)}};
}

Json PointJson(const CheckedPoint& point) {
  Json json;
  json["name"] = point.name;
  json["layer"] = point.layer;
  json["point"] = point.point;
  json["row_shape"] = point.row_shape;
  json["rows"] = point.rows;
  json["drifted"] = !point.reasons.empty();
  json["reasons"] = point.reasons;
  json["bit_identical"] = point.bit_identical();
  json["blocks"] = point.blocks;
  json["identical_blocks"] = point.identical_blocks;
  json["relative_l2"] = Number(point.relative_l2);
  json["standard_error"] = Number(point.standard_error);
  json["worst"] = WorstJson(point.worst);
  json["bound"] = Number(point.bound);
  json["golden"] = StatsJson(point.golden);
  json["candidate"] = StatsJson(point.candidate);
  return json;
}

Json FailureJson(const Failure& failure) {
  return {{"kind", FailureKindName(failure.kind)}, {"point", failure.point}, {"text", failure.text}};
}

}  // namespace

std::string JsonReport(const CheckResult& result) {
  Json json;
  json["schema"] = "lockstep-check/1";
  json["verdict"] = result.ExitCode() == 0 ? "same" : "drifted";
  json["exit_code"] = result.ExitCode();
  json["golden"] = {{"path", result.golden}, {"producer", result.golden_producer}, {"model", result.golden_model}};
  json["trace"] = {{"paths", result.traces}, {"producer", result.producer}};
  json["pairs"] = ListJson(result.pairs, [](const SequencePair& pair) -> Json {
    return {{"golden", pair.reference}, {"candidate", pair.candidate}, {"tokens", pair.tokens}};
  });
  json["exact"] = result.exact;
  json["rtol"] = Number(result.rtol);
  json["failures"] = ListJson(result.failures, FailureJson);
  json["weights_compared"] = result.weights_compared;
  json["weights"] = ListJson(result.weights, [](const WeightDifference& weight) -> Json {
    return {{"name", weight.name}, {"text", weight.text}};
  });
  json["arithmetic"] = result.arithmetic.empty() ? Json(nullptr) : Json(result.arithmetic);
  json["bit_identical"] = result.bit_identical;
  json["drifted"] = result.drifted;
  json["first_drifted"] = result.first_drifted ? Json(result.points[*result.first_drifted].name) : Json(nullptr);
  json["points"] = ListJson(result.points, PointJson);
  json["notes"] = result.notes;
  // Names come from files that are not trusted: what is no UTF-8 is replaced.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace lockstep
