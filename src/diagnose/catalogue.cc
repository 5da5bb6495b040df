#include <array>

#include "diagnose/causes.h"

namespace lockstep {

// In the order of precedence: of causes that fit equally the first is named. A new mistake is a row in its op's table
// (causes_*.cc) and a line of advice (advice.cc).
std::span<const CatalogueEntry> Catalogue() {
  static constexpr auto kCatalogue = std::to_array<CatalogueEntry>({
      {Op::kEmbedding, ProposeForEmbedding},
      {Op::kRmsNorm, ProposeForNorm},
      {Op::kLinear, ProposeForLinear},
      {Op::kRope, ProposeForRope},
      {Op::kScores, ProposeForAttention},
      {Op::kAttention, ProposeForAttention},
      {Op::kAdd, ProposeForResidual},
      {Op::kSwiGlu, ProposeForSwiGlu},
  });
  return kCatalogue;
}

}  // namespace lockstep
