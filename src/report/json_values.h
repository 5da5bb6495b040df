// What the JSON reports are made of. Numbers that JSON lacks are the strings "NaN", "Infinity" and "-Infinity".
#pragma once

#include <cmath>
#include <optional>

#include "base/json.h"
#include "lockstep/place.h"

namespace lockstep {

inline Json Number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

inline Json Number(const std::optional<double>& value) { return value ? Number(*value) : Json(nullptr); }

inline Json PlaceJson(const Place& place) {
  Json json = {{"sequence", place.sequence}, {"position", place.position}};
  if (place.head >= 0) json["head"] = place.head;
  if (place.channel >= 0) json["channel"] = place.channel;
  return json;
}

inline Json PlaceJson(const std::optional<Place>& place) { return place ? PlaceJson(*place) : Json(nullptr); }

template <typename List, typename ToJson>
Json ListJson(const List& list, ToJson to_json) {
  Json json = Json::array();
  for (const auto& item : list) json.push_back(to_json(item));
  return json;
}

}  // namespace lockstep
