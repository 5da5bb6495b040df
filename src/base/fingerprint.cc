#include "base/fingerprint.h"

#include <bit>
#include <cstdio>
#include <vector>

#include "base/convert.h"
#include "base/parallel.h"

namespace lockstep {
namespace {

void Round(DType dtype, std::vector<float>* values) {
  std::vector<std::byte> narrow(values->size() * DTypeSize(dtype));
  NarrowFromFloat(dtype, values->data(), values->size(), narrow.data());
  WidenToFloat(dtype, narrow.data(), values->size(), values->data());
}

}  // namespace

std::string FingerprintOfMatrix(DType dtype, const std::byte* data, int64_t rows, int64_t columns, DType rounded_to) {
  const auto width = static_cast<size_t>(columns);
  std::vector<uint64_t> column_factors(width);
  for (size_t j = 0; j < width; ++j) column_factors[j] = FingerprintFactor(j);

  std::vector<uint64_t> shares(static_cast<size_t>(rows));
  ParallelFor(rows, [&](int64_t i) {
    std::vector<float> values(width);
    WidenToFloat(dtype, data + static_cast<size_t>(i) * width * DTypeSize(dtype), width, values.data());
    if (rounded_to != DType::kF32 && rounded_to != dtype) Round(rounded_to, &values);
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
