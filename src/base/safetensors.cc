#include "base/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "base/json.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxHeaderBytes = 100'000'000;  // the limit of the safetensors library
constexpr size_t kMaxRank = 16;

[[noreturn]] void Fail(const std::string& path, const std::string& message) { throw Error(path + ": " + message); }

// The header's JSON text.
std::string_view HeaderText(const MappedFile& file) {
  const std::span<const std::byte> bytes = file.bytes();
  if (bytes.size() < kLengthBytes) {
    Fail(file.path(), "expected a safetensors file of at least 8 bytes, found " + std::to_string(bytes.size()) +
                          "; is it truncated?");
  }
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  if (length > kMaxHeaderBytes || length > bytes.size() - kLengthBytes) {
    Fail(file.path(), "header of " + std::to_string(length) + " bytes does not fit in a file of " +
                          std::to_string(bytes.size()) + " bytes; truncated, or not a safetensors file");
  }
  return {reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, static_cast<size_t>(length)};
}

std::string Shortened(const std::string& name) { return name.size() <= 200 ? name : name.substr(0, 200) + "…"; }

std::optional<uint64_t> AsUnsigned(const SortedJson& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  return value.get<uint64_t>();
}

std::vector<int64_t> ParseShape(const SortedJson& entry, const std::string& what) {
  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array() || shape->size() > kMaxRank) {
    throw Error(what + ": expected \"shape\" to be a list of at most " + std::to_string(kMaxRank) + " sizes");
  }
  std::vector<int64_t> out;
  for (const SortedJson& extent : *shape) {
    const std::optional<uint64_t> value = AsUnsigned(extent);
    if (!value || *value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      throw Error(what + ": expected sizes from 0 to 2^63-1 in \"shape\", found " + extent.dump(-1, ' ', true));
    }
    out.push_back(static_cast<int64_t>(*value));
  }
  return out;
}

// One header entry, its range checked against the `available` bytes of data.
StoredTensor ParseEntry(const std::string& name, const SortedJson& entry, const std::string& path,
                        const std::byte* data, size_t available) {
  const std::string what = path + ": tensor " + Shortened(name);
  if (!entry.is_object()) throw Error(what + ": expected an object with dtype, shape and data_offsets");
  const auto dtype = entry.find("dtype");
  const std::optional<DType> parsed =
      dtype != entry.end() && dtype->is_string() ? ParseDType(dtype->get<std::string>()) : std::nullopt;
  if (!parsed) {
    throw Error(what + ": unknown dtype " + (dtype == entry.end() ? "(none)" : Shortened(dtype->dump(-1, ' ', true))));
  }
  StoredTensor tensor{name, *parsed, ParseShape(entry, what), nullptr, 0};
  const auto offsets = entry.find("data_offsets");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 || !AsUnsigned((*offsets)[0]) ||
      !AsUnsigned((*offsets)[1])) {
    throw Error(what + ": expected \"data_offsets\" to be two offsets");
  }
  const uint64_t begin = *AsUnsigned((*offsets)[0]);
  const uint64_t end = *AsUnsigned((*offsets)[1]);
  if (begin > end || end > available) {
    throw Error(what + ": data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) +
                "] lie outside the file's " + std::to_string(available) + " bytes of data; is it truncated?");
  }
  const std::optional<size_t> elements = NumElements(tensor.shape);
  if (!elements || *elements > std::numeric_limits<size_t>::max() / DTypeSize(*parsed) ||
      *elements * DTypeSize(*parsed) != end - begin) {
    throw Error(what + ": shape " + ShapeText(tensor.shape) + " of " + DTypeName(*parsed) + " does not take the " +
                std::to_string(end - begin) + " bytes of its data_offsets");
  }
  tensor.data = data + begin;
  tensor.bytes = end - begin;
  return tensor;
}

// REQUIRES: tensors in the order of their offsets.
void CheckContiguous(const std::string& path, const std::vector<StoredTensor>& tensors, const std::byte* data) {
  const std::byte* expected = data;
  for (const StoredTensor& tensor : tensors) {
    if (tensor.data != expected) {
      Fail(path, "tensor " + Shortened(tensor.name) +
                     (tensor.data < expected ? " overlaps the one before it" : " leaves a hole before it") +
                     ": expected its data at offset " + std::to_string(expected - data) + ", found " +
                     std::to_string(tensor.data - data));
    }
    expected += tensor.bytes;
  }
}

}  // namespace

std::optional<size_t> NumElements(const std::vector<int64_t>& shape) {
  // A zero extent makes the product zero, yet the others must still be possible sizes.
  size_t product = 1;
  bool empty = false;
  for (const int64_t extent : shape) {
    if (extent < 0) return std::nullopt;
    if (extent == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(product, static_cast<size_t>(extent), &product)) {
      return std::nullopt;
    }
  }
  return empty ? 0 : product;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

SafetensorsFile OpenSafetensors(const std::string& path, bool allow_tail) {
  SafetensorsFile result;
  result.file = std::make_shared<MappedFile>(path);
  const std::string_view text = HeaderText(*result.file);
  const auto on_duplicate = [&](const std::string& name) { result.duplicates.push_back(name); };
  const SortedJson header =
      allow_tail ? ParseSortedJson(text, path + ": header", on_duplicate) : ParseSortedJson(text, path + ": header");
  if (!header.is_object()) Fail(path, "expected a JSON object as header");

  const std::span<const std::byte> bytes = result.file->bytes();
  const size_t data_begin = kLengthBytes + text.size();
  const std::byte* data = bytes.data() + data_begin;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    result.tensors.push_back(ParseEntry(name, entry, path, data, bytes.size() - data_begin));
  }
  // An empty tensor sorts before the one that begins at the same offset.
  std::stable_sort(result.tensors.begin(), result.tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(a.data, a.bytes) < std::pair(b.data, b.bytes);
  });
  // A name that stands twice leaves its first data without an owner; what else is there can still be read.
  if (result.duplicates.empty()) CheckContiguous(path, result.tensors, data);

  result.indexed_bytes = data_begin;
  if (!result.tensors.empty()) {
    const StoredTensor& last = result.tensors.back();
    result.indexed_bytes = static_cast<size_t>(last.data + last.bytes - bytes.data());
  }
  if (!allow_tail && result.indexed_bytes != bytes.size()) {
    Fail(path,
         std::to_string(bytes.size() - result.indexed_bytes) + " bytes after the last tensor belong to no tensor");
  }
  return result;
}

}  // namespace lockstep
