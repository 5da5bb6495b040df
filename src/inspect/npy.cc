#include "inspect/npy.h"

#include <bit>
#include <cerrno>
#include <cstring>

#include "base/convert.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

static_assert(std::endian::native == std::endian::little);

DType FileDType(DType dtype) {
  if (dtype == DType::kF16 || dtype == DType::kF64 || dtype == DType::kI32) return dtype;
  const bool f8 = dtype == DType::kF8E4M3 || dtype == DType::kF8E5M2;
  return IsFloat(dtype) || f8 ? DType::kF32 : DType::kI64;
}

const char* Descr(DType dtype) {
  switch (dtype) {
    case DType::kF16: return "<f2";
    case DType::kF64: return "<f8";
    case DType::kI32: return "<i4";
    case DType::kI64: return "<i8";
    default: return "<f4";
  }
}

std::string Header(DType dtype, const std::vector<int64_t>& shape) {
  std::string sizes;
  for (int64_t size : shape) sizes += std::to_string(size) + ", ";
  std::string dict =
      "{'descr': '" + std::string(Descr(dtype)) + "', 'fortran_order': False, 'shape': (" + sizes + "), }";
  constexpr size_t kPrefix = 10, kAlignment = 64;
  while ((kPrefix + dict.size() + 1) % kAlignment != 0) dict += ' ';
  dict += '\n';
  const char length[] = {static_cast<char>(dict.size() & 0xFF), static_cast<char>(dict.size() >> 8)};
  return std::string("\x93NUMPY\x01\x00", 8) + std::string(length, 2) + dict;
}

template <typename T>
void Put(T value, std::byte* out) {
  std::memcpy(out, &value, sizeof(T));
}

void PutAs(DType dtype, double value, std::byte* out) {
  switch (dtype) {
    case DType::kF16: return Put(FromFloat<F16>(static_cast<float>(value)), out);
    case DType::kF64: return Put(value, out);
    case DType::kI32: return Put(static_cast<int32_t>(value), out);
    case DType::kI64: return Put(static_cast<int64_t>(value), out);
    default: return Put(static_cast<float>(value), out);
  }
}

}  // namespace

NpyWriter::NpyWriter(const std::string& path, DType dtype, const std::vector<int64_t>& shape)
    : path_(path), temporary_(path + ".tmp"), dtype_(FileDType(dtype)), file_(std::fopen(temporary_.c_str(), "wb")) {
  if (file_ == nullptr) throw Error(path_ + ": cannot be written: " + std::strerror(errno));
  const std::string header = Header(dtype_, shape);
  if (std::fwrite(header.data(), 1, header.size(), file_) == header.size()) return;
  const int error = errno;  // the destructor of an object that was never made does not run
  std::fclose(file_);
  std::remove(temporary_.c_str());
  throw Error(path_ + ": cannot be written: " + std::strerror(error));
}

NpyWriter::~NpyWriter() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  std::remove(temporary_.c_str());
}

void NpyWriter::Fail() const { throw Error(path_ + ": cannot be written: " + std::strerror(errno)); }

void NpyWriter::Append(const std::vector<double>& values) {
  const size_t size = DTypeSize(dtype_);
  bytes_.resize(values.size() * size);
  for (size_t i = 0; i < values.size(); ++i) PutAs(dtype_, values[i], bytes_.data() + i * size);
  if (std::fwrite(bytes_.data(), 1, bytes_.size(), file_) != bytes_.size()) Fail();
}

void NpyWriter::Commit() {
  const bool flushed = std::fflush(file_) == 0;
  if (!flushed) Fail();
  const bool closed = std::fclose(file_) == 0;
  file_ = nullptr;
  if (closed && std::rename(temporary_.c_str(), path_.c_str()) == 0) return;
  const int error = errno;
  std::remove(temporary_.c_str());
  errno = error;
  Fail();
}

}  // namespace lockstep
