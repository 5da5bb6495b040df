// A read-only memory-mapped file.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace lockstep {

class MappedFile {
 public:
  MappedFile() = default;
  // Throws Error when the file cannot be opened, is not a regular file, or cannot be mapped. An empty file maps to an
  // empty span.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // Tells the kernel that these pages of a mapped file are not needed any more (they stay readable, at the price of a
  // new page fault).
  static void Release(const std::byte* begin, size_t size);

 private:
  std::string path_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The whole file as text; throws Error when it cannot be read or is larger than `max_bytes`.
std::string ReadTextFile(const std::string& path, size_t max_bytes);

}  // namespace lockstep
