#include "engine/npy.h"

#include <algorithm>
#include <regex>
#include <string_view>

#include "base/convert.h"
#include "base/mapped_file.h"
#include "base/safetensors.h"
#include "lockstep/error.h"

namespace lockstep {
namespace {

// The header is a Python dict: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
struct Header {
  DType dtype;
  std::vector<int64_t> shape;
  size_t data_begin;
};

Header ParseHeader(const std::string& path, std::string_view bytes) {
  constexpr size_t kMagic = 6;
  const bool known = bytes.size() >= 12 && bytes.compare(0, kMagic, "\x93NUMPY") == 0 && bytes[6] >= 1 && bytes[6] <= 3;
  if (!known) throw Error(path + ": expected a .npy file, found something else");
  const auto byte = [&](size_t i) { return static_cast<size_t>(static_cast<unsigned char>(bytes[i])); };
  const bool wide = bytes[6] > 1;  // 4 bytes of length since version 2
  const size_t length = byte(8) | byte(9) << 8 | (wide ? byte(10) << 16 | byte(11) << 24 : 0);
  const size_t begin = wide ? 12 : 10;
  if (length > bytes.size() - begin)
    throw Error(path + ": header of " + std::to_string(length) + " bytes; is the file truncated?");

  const std::string text(bytes.substr(begin, std::min<size_t>(length, 4096)));
  std::smatch match;
  if (!std::regex_search(text, match, std::regex("'descr': *'<(f[248])'"))) {
    throw Error(path + ": expected little-endian f16, f32 or f64 values; save it with .astype('float32')");
  }
  const std::string descr = match[1];
  if (!std::regex_search(text, std::regex("'fortran_order': *False"))) {
    throw Error(path + ": expected C order; save numpy.ascontiguousarray(x)");
  }
  if (!std::regex_search(text, match, std::regex("'shape': *\\(([0-9, ]*)\\)")))
    throw Error(path + ": no shape in its header");
  Header header{descr == "f2" ? DType::kF16 : descr == "f4" ? DType::kF32 : DType::kF64, {}, begin + length};
  const std::string sizes = match[1];
  const std::regex number("[0-9]+");
  for (auto it = std::sregex_iterator(sizes.begin(), sizes.end(), number); it != std::sregex_iterator(); ++it) {
    if (it->length() > 15) throw Error(path + ": a size of " + it->str() + " is impossible");
    header.shape.push_back(std::stoll(it->str()));
  }
  return header;
}

}  // namespace

Npy ReadNpy(const std::string& path) {
  const MappedFile file(path);
  const std::string_view bytes(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  const Header header = ParseHeader(path, bytes);
  const std::optional<size_t> count = NumElements(header.shape);
  const size_t available = bytes.size() - header.data_begin;
  if (!count || *count > available / DTypeSize(header.dtype) || *count * DTypeSize(header.dtype) != available) {
    throw Error(path + ": shape " + ShapeText(header.shape) + " of " + DTypeName(header.dtype) + " does not fit its " +
                std::to_string(available) + " bytes of data; is it truncated?");
  }
  Npy out{header.shape, std::vector<float>(*count)};
  WidenToFloat(header.dtype, file.bytes().data() + header.data_begin, *count, out.values.data());
  return out;
}

}  // namespace lockstep
