// q and k in a permuted basis on a correct engine: rows of q_proj and k_proj permuted at load, so that another pairing
// of the rotation is right. Scores are equal; it is a layout, not a fault.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "replay/judge.h"

namespace lockstep {

class Layouts {
 public:
  explicit Layouts(Evaluator& evaluator) : evaluator_(evaluator) {}

  // What the layout is when the point's errors are explained by it; none: they are a fault, or may be.
  std::optional<std::string> Explain(const PointErrors& errors);

 private:
  // Channel c of a head as captured is channel map[c] of the checkpoint's.
  using Basis = std::vector<int64_t>;
  struct Named {
    std::string text;
    Basis basis;
  };

  // The bases in which q_proj_raw and k_proj_raw of a layer both are right; none where there is not one for both.
  std::optional<Named> BasisOf(int layer);
  std::vector<Named> Candidates() const;
  bool IsClean(const OpCall& call, const Basis& basis);
  OpCall InBasis(const OpCall& call, const Basis& basis) const;

  Evaluator& evaluator_;
  std::map<int, std::optional<Named>> by_layer_;
};

}  // namespace lockstep
