#include "report/fold.h"

namespace lockstep {
namespace {

constexpr size_t kLongTable = 60;
constexpr size_t kLongRun = 4;    // shorter ones stay rows
constexpr size_t kMostRows = 12;  // that matter; a fault leaves hundreds behind it

}  // namespace

std::vector<Stretch> Fold(const FoldedRows& rows, bool all) {
  std::vector<Stretch> out;
  const bool whole = all || rows.count <= kLongTable;
  size_t shown = 0;
  const auto stands_alone = [&](size_t i) { return whole || (shown < kMostRows && rows.matters(i)); };
  for (size_t i = 0; i < rows.count;) {
    if (stands_alone(i)) {
      ++shown;
      out.push_back({i, i + 1});
      ++i;
      continue;
    }
    size_t end = i + 1;
    while (end < rows.count && !stands_alone(end) && rows.in_layers(end) == rows.in_layers(i)) ++end;
    if (end - i >= kLongRun) {
      out.push_back({i, end});
    } else {
      for (size_t row = i; row < end; ++row) out.push_back({row, row + 1});
    }
    i = end;
  }
  return out;
}

}  // namespace lockstep
