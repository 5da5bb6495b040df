#include "base/fingerprint.h"

#include <bit>
#include <cstdio>
#include <vector>

#include "base/convert.h"
#include "base/parallel.h"

namespace lockstep {

std::string FingerprintOfMatrix(DType dtype, const std::byte* data, int64_t rows, int64_t columns) {
  const auto width = static_cast<size_t>(columns);
  std::vector<uint64_t> column_factors(width);
  for (size_t j = 0; j < width; ++j) column_factors[j] = FingerprintFactor(j);

  std::vector<uint64_t> shares(static_cast<size_t>(rows));
  ParallelFor(rows, [&](int64_t i) {
    std::vector<float> values(width);
    WidenToFloat(dtype, data + static_cast<size_t>(i) * width * DTypeSize(dtype), width, values.data());
    uint64_t sum = 0;
    for (size_t j = 0; j < width; ++j) sum += column_factors[j] * std::bit_cast<uint32_t>(values[j]);
    shares[static_cast<size_t>(i)] = FingerprintFactor(static_cast<uint64_t>(i) + (uint64_t{1} << 32)) * sum;
  });

  uint64_t hash = 0;
  for (const uint64_t share : shares) hash += share;
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

}  // namespace lockstep
