#include "replay/detail.h"

namespace lockstep {
namespace {

std::vector<RowKey> KeysOf(const std::vector<TokenAt>& tokens) {
  std::vector<RowKey> keys;
  keys.reserve(tokens.size());
  for (const TokenAt& token : tokens) keys.push_back({token.sequence, token.position});
  return keys;
}

double RmsOrNone(const ErrorSums& sums) { return sums.count > 0 ? sums.Rms() : NAN; }

}  // namespace

void Count(double error, ErrorHistogram* histogram) {
  constexpr double kReach = ErrorHistogram::kBins * ErrorHistogram::kBinWidth / 2;
  if (error < -kReach) {
    ++histogram->below;
  } else if (!(error < kReach)) {
    ++histogram->above;
  } else {
    ++histogram->counts[static_cast<size_t>((error + kReach) / ErrorHistogram::kBinWidth)];
  }
}

void Merge(const ErrorHistogram& from, ErrorHistogram* to) {
  for (size_t i = 0; i < ErrorHistogram::kBins; ++i) to->counts[i] += from.counts[i];
  to->below += from.below;
  to->above += from.above;
}

LocalDetailMeter::LocalDetailMeter(const std::vector<TokenAt>& tokens, int64_t heads, int64_t cells, int64_t cell_width)
    : map_(KeysOf(tokens), heads > 0, cells), cell_width_(heads > 0 ? 1 : cell_width) {}

void LocalDetailMeter::Add(const TokenAt& token, Phase phase, const std::vector<ErrorSums>& cells) {
  ErrorSums columns[ErrorMap::kMaxColumns];
  ErrorSums& sums = phase == Phase::kDecode ? decode_ : prefill_;
  for (size_t i = 0; i < cells.size(); ++i) {
    columns[i / static_cast<size_t>(map_.per_column())].Add(cells[i]);
    sums.Add(cells[i]);
  }
  std::vector<float> values;
  for (int64_t i = 0; i < map_.columns(); ++i) values.push_back(static_cast<float>(columns[i].Rms()));
  map_.Raise({token.sequence, token.position}, values);
}

void LocalDetailMeter::Finish(LocalDetail* detail) const {
  detail->map = map_.Finish();
  detail->map.per_column *= cell_width_;
  detail->whole = {RmsOrNone(prefill_), RmsOrNone(decode_)};
}

}  // namespace lockstep
