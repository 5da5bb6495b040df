// The safetensors container, for checkpoints and for the step files of traces. Everything is validated before a tensor
// is handed out: header length, JSON depth, dtypes, shapes (overflow), offsets (range, overlap, holes).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "lockstep/dtype.h"

namespace lockstep {

struct StoredTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;  // may be unaligned
  size_t bytes = 0;
};

struct SafetensorsFile {
  std::shared_ptr<const MappedFile> file;
  std::vector<StoredTensor> tensors;    // in the order of their offsets; names are unique
  std::vector<std::string> duplicates;  // names that stood in the header more than once; the last one was kept
  size_t indexed_bytes = 0;             // length of the file up to the end of the last tensor
};

// Maps and validates. Bytes after the last tensor are an Error, unless `allow_tail` (a trace whose writer was killed).
// Duplicate names are an Error, unless `allow_tail`, which collects them.
SafetensorsFile OpenSafetensors(const std::string& path, bool allow_tail = false);

// Number of elements of a shape, or nullopt on overflow or a negative extent.
std::optional<size_t> NumElements(const std::vector<int64_t>& shape);

// "[2, 3]"
std::string ShapeText(const std::vector<int64_t>& shape);

}  // namespace lockstep
