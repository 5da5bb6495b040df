#include "base/json.h"

#include <cmath>
#include <optional>
#include <string>

#include "lockstep/report.h"
#include "report/compare_json.h"
#include "report/json_values.h"
#include "report/replay_json.h"

namespace lockstep {
namespace {

Json StatsJson(const SideStats& stats) {
  return {{"dtype", DTypeName(stats.dtype)},
          {"mean", Number(stats.mean)},
          {"std", Number(stats.std)},
          {"min", Number(stats.min)},
          {"max", Number(stats.max)},
          {"nan_count", stats.nan_count},
          {"inf_count", stats.inf_count},
          {"first_nan", PlaceJson(stats.first_nan)},
          {"first_inf", PlaceJson(stats.first_inf)}};
}

Json WithinJson(const PointResult& point) {
  Json list = Json::array();
  for (size_t i = 0; i < kTolerances.size(); ++i) {
    list.push_back({{"rtol", kTolerances[i]}, {"atol", kTolerances[i]}, {"share", Number(point.within[i])}});
  }
  return list;
}

Json WorstJson(const PointResult& point) {
  Json json;
  json["element"] = PlaceJson(point.worst);
  json["reference"] = Number(point.worst_reference);
  json["candidate"] = Number(point.worst_candidate);
  json["token"] = PlaceJson(point.worst_token);
  json["token_relative_l2"] = Number(point.worst_token_relative_l2);
  json["min_token_cosine"] = Number(point.min_token_cosine);
  json["min_token_cosine_at"] = PlaceJson(point.min_token_cosine_at);
  if (point.worst_head >= 0) {
    json["head"] = point.worst_head;
    json["head_relative_l2"] = Number(point.worst_head_relative_l2);
    json["min_head_cosine"] = Number(point.min_head_cosine);
  }
  return json;
}

Json PointJson(const JudgedPoint& judged) {
  const PointResult& point = *judged.compared;
  Json json;
  json["name"] = point.name;
  json["layer"] = point.layer;
  json["point"] = point.point;
  json["class"] = DiffClassName(point.diff_class);
  json["row_shape"] = point.row_shape;
  json["rows"] = point.rows;
  json["rows_only_reference"] = point.rows_only_reference;
  json["rows_only_candidate"] = point.rows_only_candidate;
  json["elements"] = point.elements;
  json["bit_identical"] = point.bit_identical;
  json["reference"] = StatsJson(point.reference);
  json["candidate"] = StatsJson(point.candidate);
  json["max_abs"] = Number(point.max_abs);
  json["mean_abs"] = Number(point.mean_abs);
  json["max_rel"] = Number(point.max_rel);
  json["mean_rel"] = Number(point.mean_rel);
  json["zero_mismatches"] = point.zero_mismatches;
  json["cosine"] = Number(point.cosine);
  json["relative_l2"] = Number(point.relative_l2);
  json["snr_db"] = Number(point.snr_db);
  json["best_scale"] = Number(point.best_scale);
  json["within"] = WithinJson(point);
  json["within_user"] = Number(point.within_user);
  json["user_tolerance_missed"] = point.user_tolerance_missed;
  json["worst"] = WorstJson(point);
  json["mask_mismatches"] = point.mask_mismatches;
  json["first_mask_mismatch"] = PlaceJson(point.first_mask_mismatch);
  json["non_finite_mismatches"] = point.non_finite_mismatches;
  json["first_non_finite_mismatch"] = PlaceJson(point.first_non_finite_mismatch);
  json["bound"] = Number(point.bound);
  json["reasons"] = point.reasons;
  json["fails"] = judged.fails;
  return json;
}

Json SideJson(const SideSummary& side) {
  return {{"traces", side.traces},
          {"producer", side.producer},
          {"model_type", side.model_type},
          {"storage", DTypeName(side.storage)},
          {"storage_declared", side.has_arithmetic},
          {"runs", side.runs},
          {"steps", side.steps},
          {"sequences", side.sequences},
          {"tokens", side.tokens},
          {"points", side.points},
          {"closed", side.closed}};
}

Json FailureJson(const Failure& failure) {
  return {{"kind", FailureKindName(failure.kind)},
          {"side", SideName(failure.side)},
          {"point", failure.point},
          {"text", failure.text}};
}

Json NextTokensJson(const NextTokens& tokens) {
  return {{"compared", tokens.compared},
          {"agree", tokens.agree},
          {"differences", ListJson(tokens.differences, [](const NextTokens::Difference& d) -> Json {
             return {{"sequence", d.sequence},
                     {"position", d.position},
                     {"reference", d.reference},
                     {"candidate", d.candidate}};
           })}};
}

Json TokenSideJson(const TokenSide& side) {
  return {{"next", side.next},
          {"top_ids", side.ids},
          {"top_values", ListJson(side.values, [](float value) { return Number(value); })},
          {"margin", Number(side.margin)},
          {"gap", Number(side.gap)}};
}

Json TokenRowJson(const TokenRow& row) {
  Json json;
  json["sequence"] = row.sequence;
  json["position"] = row.position;
  json["reference"] = TokenSideJson(row.reference);
  json["candidate"] = TokenSideJson(row.candidate);
  json["same_top"] = row.same_top;
  json["same_next"] = row.same_next();
  json["within_noise"] = row.within_noise;
  json["near_tie"] = row.near_tie;
  json["common_top5"] = row.common_top5;
  json["common_top10"] = row.common_top10;
  json["kl"] = Number(row.kl);
  json["noise_rms"] = Number(row.noise_rms);
  json["noise_max"] = Number(row.noise_max);
  json["noise_relative_l2"] = Number(row.noise_relative_l2);
  json["noise_reach"] = Number(row.noise_reach);
  json["non_finite_mismatches"] = row.non_finite_mismatches;
  return json;
}

Json TokensJson(const TokenComparison& tokens) {
  const auto row_json = [&](const std::optional<size_t>& index) {
    return index ? TokenRowJson(tokens.rows[*index]) : Json(nullptr);
  };
  Json json;
  json["same_top"] = tokens.same_top;
  json["same_next"] = tokens.same_next;
  json["near_ties"] = tokens.near_ties;
  json["different_near_ties"] = tokens.different_near_ties;
  json["mean_common_top5"] = Number(tokens.mean_common_top5);
  json["mean_common_top10"] = Number(tokens.mean_common_top10);
  json["rows_with_kl"] = tokens.rows_with_kl;
  json["mean_kl"] = Number(tokens.mean_kl);
  json["max_kl"] = row_json(tokens.max_kl_row);
  json["first_different"] = row_json(tokens.first_different);
  json["rows"] = ListJson(tokens.rows, TokenRowJson);
  return json;
}

Json NameOf(const CompareResult& result, const std::optional<size_t>& index) {
  return index ? Json(result.points[*index].name) : Json(nullptr);
}

Json CountsJson(const CompareResult& result) {
  Json json;
  for (size_t i = 0; i < result.class_counts.size(); ++i) {
    json[std::string(DiffClassName(static_cast<DiffClass>(i)))] = result.class_counts[i];
  }
  json["bit_identical"] = result.bit_identical;
  json["failing"] = result.failing;
  return json;
}

Json OneSidedJson(const OneSidedPoint& point) { return {{"name", point.name}, {"why", point.why}}; }

Json GrowthJson(const std::optional<Growth>& growth) {
  if (!growth) return nullptr;
  const auto at = [](const Growth::At& layer) -> Json {
    return {{"layer", layer.layer}, {"relative_l2", Number(layer.relative_l2)}};
  };
  return {{"first", at(growth->first)},
          {"middle", at(growth->middle)},
          {"last", at(growth->last)},
          {"per_layer", Number(growth->per_layer)}};
}

Json ReplaysJson(const Judged& judged) {
  if (!judged.reference && !judged.candidate) return nullptr;
  const auto side = [](const std::optional<Diagnosis>& diagnosis) {
    return diagnosis ? ReplayJson(*diagnosis) : Json(nullptr);
  };
  return {{"reference", side(judged.reference)}, {"candidate", side(judged.candidate)}};
}

}  // namespace

std::string JsonReport(const CompareResult& result) { return JsonReport(Judged{result}); }

Json CompareJson(const Judged& judged) {
  const CompareResult& result = judged.compare;
  Json json;
  json["schema"] = "lockstep-compare/1";
  json["verdict"] = judged.ExitCode() == 0 ? "same" : "different";
  json["exit_code"] = judged.ExitCode();
  json["reference"] = SideJson(result.reference);
  json["candidate"] = SideJson(result.candidate);
  json["tolerance"] = {{"atol", Number(result.atol)}, {"rtol", Number(result.rtol)}};
  json["pairs"] = ListJson(result.pairs, [](const SequencePair& pair) -> Json {
    return {{"reference", pair.reference}, {"candidate", pair.candidate}, {"tokens", pair.tokens}};
  });
  json["failures"] = ListJson(result.failures, FailureJson);
  json["weights_compared"] = result.weights_compared;
  json["weights"] = ListJson(result.weights, [](const WeightDifference& weight) -> Json {
    return {{"name", weight.name}, {"text", weight.text}};
  });
  json["first_significant"] = NameOf(result, result.first_significant);
  json["first_failing"] = NameOf(result, result.first_failing);
  json["counts"] = CountsJson(result);
  json["next_tokens"] = NextTokensJson(result.next_tokens);
  json["tokens"] = TokensJson(result.tokens);
  json["only_reference"] = ListJson(result.only_reference, OneSidedJson);
  json["only_candidate"] = ListJson(result.only_candidate, OneSidedJson);
  json["notes"] = result.notes;
  json["growth"] = GrowthJson(result.growth);
  json["points"] = ListJson(JudgedPoints(judged), PointJson);
  json["replay"] = ReplaysJson(judged);
  return json;
}

std::string JsonReport(const Judged& judged) {
  // Names come from traces: what is no UTF-8 is replaced.
  return CompareJson(judged).dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace lockstep
