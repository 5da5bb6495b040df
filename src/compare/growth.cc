#include "compare/growth.h"

#include <cmath>

#include "lockstep/points.h"

namespace lockstep {

std::optional<Growth> GrowthOf(const std::vector<PointResult>& points) {
  std::vector<Growth::At> layers;
  for (const PointResult& point : points) {
    if (point.layer < 0 || point.name != PointName(Point::kLayerOutput, point.layer)) continue;
    if (point.relative_l2 > 0 && std::isfinite(point.relative_l2)) layers.push_back({point.layer, point.relative_l2});
  }
  if (layers.size() < 2) return std::nullopt;
  Growth growth{layers.front(), layers[layers.size() / 2], layers.back()};
  growth.per_layer =
      std::pow(growth.last.relative_l2 / growth.first.relative_l2, 1.0 / (growth.last.layer - growth.first.layer));
  return growth;
}

}  // namespace lockstep
