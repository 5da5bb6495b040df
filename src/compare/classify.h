// From figures to words: the four classes of a point, and whether it makes the run different.
#pragma once

#include <optional>
#include <string>

#include "lockstep/compare.h"
#include "lockstep/trace.h"

namespace lockstep {

// EXCELLENT: max_abs < 1e-4. GOOD: < 1e-3. ACCEPTABLE: < 1e-2, or the cosines of the worst token and of the worst head
// > 0.999. SIGNIFICANT DIFF: all else, and whatever has a NaN, an infinity or a mask that the other side lacks. Not the
// whole tensor's cosine: one head of one token negated leaves 1 - 2 / (tokens * heads) of it.
DiffClass Classify(const PointResult& point);

// What a correct engine's rounding costs relative to a value: the unit roundoff of a 16-bit storage dtype (2^-8 for
// BF16, 2^-11 for F16). In F32 the roundings of storage are far below what the order of long sums does, so 2^-16 stands
// for that. 0 for dtypes that are no floats.
double UnitRoundoff(DType dtype);

// The coarsest of storage, operands and cache, where they are declared: an f32 residual stream fed by 16-bit products
// carries their rounding.
double DeclaredRoundoff(const TraceMeta& meta);

// Without a replay, rounding is told from faults by a bound on the worst token's relative L2. The residual stream of
// layer N is the sum of 2 N + 1 rounded terms, whose errors add up like a random walk:
//   bound = kBoundFactor * u * sqrt(2 * layer + 1)
// Points behind the layers count as the next layer. This is a coarse net: it lets pass what is as small as rounding at
// that depth. In F32 it catches what the classes let pass: a tensor scaled by 2 has a cosine of 1, and a wrong tensor
// of tiny values a tiny max_abs. Correct pairs (engine, reference, transformers; bf16, f16; the bundled model and
// random ones; 300 tokens) reached 8.1.
inline constexpr double kBoundFactor = 16;
double RelativeL2Bound(double unit_roundoff, int layer);

// Depth of the residual stream that a point sees: the layer of that bound.
int DepthOf(const std::string& name, int num_layers);

// Fills diff_class, bound and reasons. In F32 both the classes and the bound judge; in 16 bits the classes only
// describe. `unit_roundoff` is the coarser side's, `num_layers` is for the points behind the layers.
void Judge(double unit_roundoff, int num_layers, PointResult* point);

}  // namespace lockstep
