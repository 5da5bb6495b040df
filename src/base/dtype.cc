#include "lockstep/dtype.h"

#include <algorithm>
#include <cctype>
#include <string>

#include "base/convert.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

template <typename T>
void Widen(const std::byte* data, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) {
    if constexpr (std::is_arithmetic_v<T>) {
      out[i] = static_cast<float>(LoadElement<T>(data, i));
    } else {
      out[i] = ToFloat(LoadElement<T>(data, i));
    }
  }
}

}  // namespace

std::optional<DType> ParseDType(std::string_view name) {
  std::string upper(name);
  std::transform(upper.begin(), upper.end(), upper.begin(), [](unsigned char c) { return std::toupper(c); });
  for (int i = 0; i < kNumDTypes; ++i) {
    const auto dtype = static_cast<DType>(i);
    if (upper == DTypeName(dtype)) return dtype;
  }
  return std::nullopt;
}

void WidenToFloat(DType dtype, const std::byte* data, size_t count, float* out) {
  if (count == 0) return;  // an empty tensor may have no address, which memcpy does not allow
  switch (dtype) {
    case DType::kF32: std::memcpy(out, data, count * sizeof(float)); return;
    case DType::kBF16: return Widen<BF16>(data, count, out);
    case DType::kF16: return Widen<F16>(data, count, out);
    case DType::kF64: return Widen<double>(data, count, out);
    case DType::kI64: return Widen<int64_t>(data, count, out);
    case DType::kI32: return Widen<int32_t>(data, count, out);
    case DType::kI16: return Widen<int16_t>(data, count, out);
    case DType::kI8: return Widen<int8_t>(data, count, out);
    case DType::kU64: return Widen<uint64_t>(data, count, out);
    case DType::kU32: return Widen<uint32_t>(data, count, out);
    case DType::kU16: return Widen<uint16_t>(data, count, out);
    case DType::kU8:
    case DType::kBool: return Widen<uint8_t>(data, count, out);
    default: break;
  }
  throw Error(std::string("elements of type ") + DTypeName(dtype) +
              " can not be read as numbers; expected F64, F32, BF16, F16 or an integer type");
}

void NarrowFromFloat(DType dtype, const float* values, size_t count, std::byte* out) {
  WithStorageType(dtype, [&]<typename T>() {
    for (size_t i = 0; i < count; ++i) {
      const T value = FromFloat<T>(values[i]);
      std::memcpy(out + i * sizeof(T), &value, sizeof(T));
    }
  });
}

}  // namespace lockstep
