#include "lockstep/report.h"
#include "report/json_values.h"
#include "report/show_words.h"

namespace lockstep {
namespace {

std::string Text(const Json& json) {
  return json.dump(2, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n";
}

Json AilmentJson(const Ailment& ailment) {
  Json json = {{"kind", AilmentWord(ailment.kind)},
               {"count", ailment.count},
               {"step", ailment.step},
               {"rank", ailment.rank},
               {"value", Number(ailment.value)}};
  if (ailment.first.position >= 0) json["first"] = PlaceJson(ailment.first);
  return json;
}

Json StepJson(const TraceListing::Step& step) {
  return {{"phase", step.phase == Phase::kDecode ? "decode" : "prefill"},
          {"tokens", step.tokens},
          {"padding", step.padding},
          {"tensors", step.tensors.size()},
          {"bytes", step.bytes},
          {"sequences", ListJson(step.sequences, [](const auto& sequence) -> Json {
             return {{"sequence", sequence.number},
                     {"first", sequence.first},
                     {"last", sequence.last},
                     {"tokens", sequence.tokens}};
           })}};
}

Json PointJson(const ListedPoint& point) {
  return {{"name", point.name},
          {"layer", point.layer},
          {"point", point.point},
          {"axes", point.axes},
          {"row_shape", point.row_shape},
          {"dtype", DTypeName(point.dtype)},
          {"shard", point.shard},
          {"rows", point.rows},
          {"bytes", point.bytes},
          {"steps", point.steps},
          {"health", ListJson(point.ailments, AilmentJson)}};
}

Json StatsJson(const ValueStats& stats) {
  Json json = {{"count", stats.count},
               {"finite", stats.finite},
               {"nan", stats.nans},
               {"inf", stats.infs},
               {"masked", stats.masked}};
  if (stats.finite == 0) return json;
  json["mean"] = stats.mean, json["std"] = stats.std, json["rms"] = stats.rms;
  json["min"] = stats.min, json["max"] = stats.max;
  json["min_at"] = PlaceJson(stats.min_at), json["max_at"] = PlaceJson(stats.max_at);
  for (size_t i = 0; i < kQuantiles.size(); ++i) {
    json["quantiles"].push_back({{"at", kQuantiles[i]}, {"value", stats.quantiles[i]}});
  }
  json["histogram"] = stats.histogram;
  return json;
}

Json DifferenceJson(const SliceDifference& difference) {
  return {{"elements", difference.elements},
          {"mismatches", difference.mismatches},
          {"identical", difference.identical},
          {"max_abs", Number(difference.max_abs)},
          {"mean_abs", Number(difference.mean_abs)},
          {"relative_l2", Number(difference.relative_l2)},
          {"cosine", Number(difference.cosine)},
          {"rows_only_reference", difference.only_reference},
          {"rows_only_candidate", difference.only_candidate},
          {"largest", ListJson(difference.largest, [](const auto& element) -> Json {
             return {
                 {"at", PlaceJson(element.place)}, {"reference", element.reference}, {"candidate", element.candidate}};
           })}};
}

Json LookJson(const TensorLook& look) {
  Json json = {{"name", look.name}, {"dtype", DTypeName(look.dtype)}, {"rows", look.rows}};
  json["axes"] = ListJson(look.axes, [](const ChosenAxis& axis) -> Json {
    return {{"name", axis.name}, {"size", axis.size}, {"index", axis.index}};
  });
  json["problems"] = look.problems;
  json["stats"] = StatsJson(look.stats);
  if (look.other) json["candidate"] = StatsJson(*look.other);
  if (look.difference) json["difference"] = DifferenceJson(*look.difference);
  return json;
}

}  // namespace

std::string JsonReport(const TraceListing& listing) {
  return Text({{"schema", "lockstep-show/1"},
               {"trace", listing.path},
               {"producer", listing.meta.producer},
               {"producer_version", listing.meta.producer_version},
               {"model_type", listing.meta.model_type},
               {"config", listing.meta.config},
               {"storage", DTypeName(listing.meta.arithmetic.storage)},
               {"closed", listing.meta.closed},
               {"errors", listing.meta.errors},
               {"ranks", listing.ranks},
               {"tensors", listing.tensors},
               {"bytes", listing.bytes},
               {"steps", ListJson(listing.steps, StepJson)},
               {"points", ListJson(listing.points, PointJson)},
               {"never_written", listing.missing}});
}

std::string JsonReport(const std::vector<TensorLook>& looks) {
  return Text({{"schema", "lockstep-show/1"}, {"tensors", ListJson(looks, LookJson)}});
}

}  // namespace lockstep
