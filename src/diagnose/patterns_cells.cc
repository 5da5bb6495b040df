#include <algorithm>
#include <cmath>
#include <cstdio>

#include "diagnose/patterns.h"

namespace lockstep {
namespace {

constexpr size_t kMinBlock = 4;    // channels
constexpr double kDense = 0.9;     // share of a block that must be off
constexpr size_t kMaxListed = 16;  // numbers in a text

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", value);
  return text;
}

std::string ListOf(const std::vector<int64_t>& numbers) {
  const std::string ranges = Ranges(numbers);
  return ranges.size() <= 5 * kMaxListed ? ranges : std::to_string(numbers.size());
}

// One element of one row is off, and no other row is affected.
bool DescribeOneElement(const Evidence& evidence, std::vector<Pattern>* out) {
  if (evidence.num_affected() != 1 || evidence.affected().size() != 1) return false;
  const int64_t i = evidence.affected().front();
  int64_t at = -1;
  for (int64_t c = 0; c < evidence.width(); ++c) {
    if (!evidence.Off(i, c)) continue;
    if (at >= 0) return false;
    at = c;
  }
  if (at < 0) return false;
  const bool heads = evidence.call().heads > 0;
  const TokenAt& token = evidence.Token(i);
  out->push_back({"one-element", "one element: sequence " + std::to_string(token.sequence) + ", position " +
                                     std::to_string(token.position) +
                                     (heads ? ", head " + std::to_string(evidence.CellOf(at)) : std::string()) +
                                     ", channel " + std::to_string(heads ? at % evidence.cell_width() : at) + ": " +
                                     Number(evidence.Captured(i)[at]) + " instead of " +
                                     Number(evidence.Expected(i)[at])});
  return true;
}

// Some heads are right in every row. Of all rows.
void DescribeHeads(const Evidence& evidence, std::vector<Pattern>* out) {
  if (evidence.call().heads < 2) return;
  std::vector<int64_t> affected;
  for (int64_t h = 0; h < evidence.cells(); ++h) {
    bool some = false;
    for (int64_t r = 0; r < evidence.num_rows() && !some; ++r) some = evidence.CellAffected(r, h);
    if (some) affected.push_back(h);
  }
  if (affected.empty() || static_cast<int64_t>(affected.size()) == evidence.cells()) return;
  out->push_back({"some-heads", (affected.size() == 1 ? "only head " : "only heads ") + ListOf(affected) + " of " +
                                    std::to_string(evidence.cells())});
}

// Channels of a head, or of the row where there are none, in which an element of an affected cell is off.
std::vector<char> OffChannels(const Evidence& evidence, int64_t period) {
  std::vector<char> off(static_cast<size_t>(period));
  for (const int64_t i : evidence.affected()) {
    for (int64_t c = 0; c < evidence.width(); ++c) {
      if (evidence.Affected(i, c) && evidence.Off(i, c)) off[static_cast<size_t>(c % period)] = 1;
    }
  }
  return off;
}

// n > 1 where all of the channels leave the same remainder, and 90 % of those that do are there.
int64_t PeriodOf(const std::vector<int64_t>& channels, int64_t count) {
  for (int64_t n = 16; n >= 2; --n) {
    const bool same =
        std::all_of(channels.begin(), channels.end(), [&](int64_t c) { return c % n == channels[0] % n; });
    const int64_t there = count / n;
    if (same && static_cast<double>(channels.size()) >= kDense * static_cast<double>(there)) return n;
  }
  return 0;
}

// The sample's affected rows: every element that is off lies in a block of at most three quarters of the channels, 90 %
// of which are off in some row; or in every nth channel; or in at most 16 channels.
void DescribeChannels(const Evidence& evidence, std::vector<Pattern>* out) {
  const bool heads = evidence.call().heads > 0;
  const int64_t period = heads ? evidence.cell_width() : evidence.width();
  const std::vector<char> off = OffChannels(evidence, period);
  std::vector<int64_t> channels;
  for (int64_t c = 0; c < period; ++c) {
    if (off[static_cast<size_t>(c)]) channels.push_back(c);
  }
  if (channels.empty() || static_cast<int64_t>(channels.size()) == period) return;
  const std::string of = heads ? " of a head's " + std::to_string(period) : " of " + std::to_string(period);
  const int64_t begin = channels.front(), end = channels.back() + 1;
  if (channels.size() >= kMinBlock && 4 * (end - begin) <= 3 * period &&
      static_cast<double>(channels.size()) >= kDense * static_cast<double>(end - begin)) {
    out->push_back({"channel-block", "only channels " + std::to_string(begin) + "-" + std::to_string(end - 1) + of});
  } else if (const int64_t n = channels.size() >= kMinBlock ? PeriodOf(channels, period) : 0) {
    const std::string which =
        n == 2 ? channels[0] % 2 == 0 ? "even channels" : "odd channels"
               : "every " + std::to_string(n) + "th channel, from " + std::to_string(channels[0] % n) + " on,";
    out->push_back({"some-channels", "only " + which + of});
  } else if (channels.size() <= kMaxListed && 2 * static_cast<int64_t>(channels.size()) <= period) {
    out->push_back(
        {"some-channels", (channels.size() == 1 ? "only channel " : "only channels ") + Ranges(channels) + of});
  }
}

}  // namespace

void DescribeCells(const Evidence& evidence, std::vector<Pattern>* out) {
  if (evidence.everything() || evidence.affected().empty()) return;
  if (DescribeOneElement(evidence, out)) return;
  DescribeHeads(evidence, out);
  DescribeChannels(evidence, out);
}

}  // namespace lockstep
