#include "report/html/payload.h"

#include <set>
#include <utility>
#include <vector>

#include "lockstep/version.h"
#include "report/compare_json.h"
#include "report/html/cells.h"
#include "report/html/verdict.h"
#include "report/json_values.h"
#include "report/replay_json.h"

namespace lockstep {
namespace {

// Together with the figures, the maps of 28 layers stay below 6 MB.
constexpr size_t kMapCells = 2'000'000;

// Of which all maps are drawn.
struct Drawn {
  const CompareResult* compare = nullptr;
  const Diagnosis* reference = nullptr;
  const Diagnosis* candidate = nullptr;
};

std::set<std::string_view> FaultyPoints(const Drawn& drawn) {
  std::set<std::string_view> names;
  for (const Diagnosis* side : {drawn.reference, drawn.candidate}) {
    if (side == nullptr) continue;
    for (const LocalError& point : side->replay.points) {
      if (point.verdict == OpVerdict::kFaulty) names.insert(point.name);
    }
  }
  return names;
}

// Maps of faulty points keep all their bands; the others share what is left.
class Maps {
 public:
  explicit Maps(const Drawn& drawn) : whole_(FaultyPoints(drawn)) {
    if (drawn.compare != nullptr) AddAll(drawn.compare->points);
    if (drawn.reference != nullptr) AddAll(drawn.reference->replay.points);
    if (drawn.candidate != nullptr) AddAll(drawn.candidate->replay.points);
    fold_ = FoldOf(shared_, kMapCells);
  }

  Json JsonOf(const std::string& name, const ErrorMap& map) const { return MapJson(map, IsWhole(name) ? 1 : fold_); }

 private:
  // A run that is wrong everywhere has no room for whole maps.
  bool IsWhole(const std::string& name) const { return whole_.size() <= kMostWhole && whole_.contains(name); }

  template <typename Point>
  void AddAll(const std::vector<Point>& points) {
    for (const Point& point : points) {
      if (point.detail && !IsWhole(point.name)) shared_.push_back(&point.detail->map);
    }
  }

  static constexpr size_t kMostWhole = 30;
  std::set<std::string_view> whole_;
  std::vector<const ErrorMap*> shared_;
  size_t fold_ = 1;
};

Json PhasesJson(const PhaseErrors& phases) {
  return {{"prefill", Number(phases.prefill)}, {"decode", Number(phases.decode)}};
}

Json WindowJson(const ValueWindow& window) {
  if (window.positions.empty() || window.channels.empty()) return nullptr;
  return {{"sequence", window.sequence},
          {"head", window.head},
          {"positions", window.positions},
          {"channels", window.channels},
          {"reference", FloatsText(window.reference)},
          {"candidate", FloatsText(window.candidate)}};
}

Json DetailJson(const PointResult& point, const Maps& maps) {
  if (!point.detail) return nullptr;
  return {{"map", maps.JsonOf(point.name, point.detail->map)},
          {"window", WindowJson(point.detail->window)},
          {"phases", PhasesJson(point.detail->relative_l2)}};
}

Json HistogramJson(const ErrorHistogram& histogram) {
  return {{"width", ErrorHistogram::kBinWidth},
          {"counts", histogram.counts},
          {"below", histogram.below},
          {"above", histogram.above}};
}

Json LimitsJson(const NoiseLimits& limits) {
  return {{"row", limits.row}, {"head", limits.head}, {"max", limits.max}, {"scale", limits.scale}};
}

Json DetailJson(const LocalError& point, const Maps& maps) {
  if (!point.detail) return nullptr;
  return {{"limits", LimitsJson(point.limits)},
          {"map", maps.JsonOf(point.name, point.detail->map)},
          {"histogram", HistogramJson(point.detail->histogram)},
          {"phases", PhasesJson(point.detail->whole)}};
}

template <typename Point>
Json DetailsJson(const std::vector<Point>& points, const Maps& maps) {
  return ListJson(points, [&](const Point& point) { return DetailJson(point, maps); });
}

Json DetailsJson(const Drawn& drawn) {
  const Maps maps(drawn);
  const auto replayed = [&](const Diagnosis* side) {
    return side == nullptr ? Json(nullptr) : DetailsJson(side->replay.points, maps);
  };
  return {{"compare", drawn.compare == nullptr ? Json(nullptr) : DetailsJson(drawn.compare->points, maps)},
          {"reference", replayed(drawn.reference)},
          {"candidate", replayed(drawn.candidate)}};
}

// ---- tokens

Json SequenceJson(const SequencePair& pair) {
  Json positions = Json::array(), ids = Json::array();
  for (const auto& [position, id] : pair.ids) {
    positions.push_back(position);
    ids.push_back(id);
  }
  return {{"reference", pair.reference},
          {"candidate", pair.candidate},
          {"first_decode", pair.first_decode},
          {"positions", std::move(positions)},
          {"ids", std::move(ids)}};
}

std::set<int32_t> IdsOf(const CompareResult& result) {
  std::set<int32_t> ids;
  for (const SequencePair& pair : result.pairs) {
    for (const auto& [position, id] : pair.ids) ids.insert(id);
  }
  for (const TokenRow& row : result.tokens.rows) {
    for (const TokenSide* side : {&row.reference, &row.candidate}) {
      ids.insert(side->next);
      ids.insert(side->ids.begin(), side->ids.end());
    }
  }
  ids.erase(ids.begin(), ids.lower_bound(0));
  return ids;
}

Json TextsJson(const CompareResult& result, const HtmlOptions& options) {
  if (!options.token_text) return nullptr;
  Json texts = Json::array();  // of pairs, because an object would look for each key anew
  for (const int32_t id : IdsOf(result)) texts.push_back({id, options.token_text(id)});
  return texts;
}

Json ThresholdsJson() {
  Json classes = Json::array();
  for (const auto diff_class :
       {DiffClass::kExcellent, DiffClass::kGood, DiffClass::kAcceptable, DiffClass::kSignificant}) {
    classes.push_back(DiffClassName(diff_class));
  }
  return {{"classes", classes}, {"tolerances", kTolerances}};
}

Json CommonJson(const HtmlOptions& options, std::string verdict) {
  return {{"version", LOCKSTEP_VERSION},
          {"command", options.command_line},
          {"verdict", std::move(verdict)},
          {"thresholds", ThresholdsJson()}};
}

}  // namespace

Json PagePayload(const Judged& judged, const HtmlOptions& options) {
  const Drawn drawn = {&judged.compare, judged.reference ? &*judged.reference : nullptr,
                       judged.candidate ? &*judged.candidate : nullptr};
  Json json = CommonJson(options, VerdictSentence(judged));
  json["report"] = CompareJson(judged);
  json["details"] = DetailsJson(drawn);
  json["sequences"] = ListJson(judged.compare.pairs, SequenceJson);
  json["texts"] = TextsJson(judged.compare, options);
  return json;
}

Json PagePayload(const Diagnosis& diagnosis, const HtmlOptions& options) {
  Json json = CommonJson(options, VerdictSentence(diagnosis));
  json["report"] = ReplayJson(diagnosis);
  json["details"] = DetailsJson({.candidate = &diagnosis});
  json["sequences"] = Json::array();
  json["texts"] = nullptr;
  return json;
}

std::string ScriptText(const Json& json) {
  // Names come from traces: what is no UTF-8 is replaced.
  const std::string ascii = json.dump(-1, ' ', true, Json::error_handler_t::replace);
  std::string out;
  out.reserve(ascii.size());
  for (const char c : ascii) {
    switch (c) {
      case '<': out += "\\u003c"; break;
      case '>': out += "\\u003e"; break;
      case '&': out += "\\u0026"; break;
      default: out += c;
    }
  }
  return out;
}

}  // namespace lockstep
