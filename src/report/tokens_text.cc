#include <fmt/format.h>

#include <string>

#include "report/text_parts.h"
#include "report/words.h"

namespace lockstep {
namespace {

// Then the first different token stands with the logits.
bool HasLogits(const TokenComparison& tokens, const NextTokens::Difference& difference) {
  if (!tokens.first_different) return false;
  const TokenRow& row = tokens.rows[*tokens.first_different];
  return row.sequence == difference.sequence && row.position == difference.position;
}

void WriteNextTokens(const CompareResult& result, Page* page) {
  const NextTokens& tokens = result.next_tokens;
  if (tokens.compared == 0) return;
  std::string line = fmt::format("next tokens: {} of {} agree", tokens.agree, tokens.compared);
  if (!tokens.differences.empty() && !HasLogits(result.tokens, tokens.differences.front())) {
    const NextTokens::Difference& first = tokens.differences.front();
    line += fmt::format("; the first that differs follows sequence {}, position {}: reference {}, candidate {}",
                        first.sequence, first.position, first.reference, first.candidate);
  }
  page->Line("", line, tokens.agree == tokens.compared ? Color::kNone : Color::kWarning);
}

std::string LogitsText(const TokenComparison& tokens) {
  std::string text = fmt::format("logits: {}; the largest agrees in {}; {}; top 5 share {:.3g}, top 10 {:.3g}",
                                 Count(tokens.rows.size(), "row"), tokens.same_top,
                                 Count(static_cast<size_t>(tokens.near_ties), "near tie"), tokens.mean_common_top5,
                                 tokens.mean_common_top10);
  if (!tokens.max_kl_row) return text;
  const TokenRow& row = tokens.rows[*tokens.max_kl_row];
  return text + fmt::format("; KL mean {:.3g} nats, largest {:.3g} at {}", tokens.mean_kl, row.kl,
                            PlaceText({row.sequence, row.position}));
}

void WriteFirstDifferentToken(const TokenRow& row, Page* page) {
  const char* what = row.near_tie       ? "a near tie"
                     : row.within_noise ? "noise that rounding does not explain"
                                        : "NOT a near tie";
  page->Line("",
             fmt::format("first different token after {}: reference {} (margin {:.3g}), candidate {} (margin {:.3g}); "
                         "logit noise {:.3g}: {}",
                         PlaceText({row.sequence, row.position}), row.reference.next, row.reference.margin,
                         row.candidate.next, row.candidate.margin, row.noise_rms, what),
             row.near_tie ? Color::kNone : Color::kWarning);
}

}  // namespace

void WriteTokens(const CompareResult& result, Page* page) {
  WriteNextTokens(result, page);
  const TokenComparison& tokens = result.tokens;
  if (tokens.rows.empty()) return;
  page->Line("", LogitsText(tokens));
  if (tokens.first_different) WriteFirstDifferentToken(tokens.rows[*tokens.first_different], page);
}

}  // namespace lockstep
