// Two ways to one product:
//  - packed: oneDNN multiplies in the storage dtype (f32 everywhere, bf16 where AVX-512-BF16 or AMX is there). The
//    weight lies in the layout that oneDNN likes best for many rows; the same layout serves one row just as fast, so
//    that one copy is enough.
//  - widened: oneDNN 2.6 has no bf16 below AVX-512, a slow one without AVX-512-BF16, and no f16 at all. There the
//    weight stays 16-bit as in the checkpoint and blocks of its rows are widened to f32, which is exact; then the f32
//    product does the work.
#include "engine/linear.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <vector>

#include "base/convert.h"
#include "base/fingerprint.h"
#include "base/parallel.h"

namespace lockstep {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;

constexpr int64_t kPackingRows = 512;  // the number of rows that the packed layout is chosen for
constexpr int64_t kWidenedRows = 256;  // rows of W widened at a time: 256 · 4096 · 4 bytes = 4 MiB

dnnl::engine& CpuEngine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

bool HasNativeBf16() {
  constexpr auto kBf16 = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & kBf16) == kBf16;
}

bool IsPacked(DType storage) { return storage == DType::kF32 || (storage == DType::kBF16 && HasNativeBf16()); }

memory::data_type DnnlType(DType dtype) {
  return dtype == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
}

dnnl::matmul::primitive_desc MatmulDesc(const memory::desc& x, const memory::desc& w, const memory::desc& y) {
  // By default a primitive owns its scratchpad, which two threads that execute it at the same time would share.
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
  return {CpuEngine(), x, w, y, attr};
#else
  return {dnnl::matmul::desc(x, w, y), attr, CpuEngine()};
#endif
}

struct Product {
  explicit Product(const dnnl::matmul::primitive_desc& desc) : matmul(desc), scratchpad(desc.scratchpad_desc()) {}

  void Execute(const memory& x, const memory& w, const memory& y) const {
    dnnl::stream stream(CpuEngine());
    const memory scratch(scratchpad, CpuEngine());
    matmul.execute(stream,
                   {{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DST, y}, {DNNL_ARG_SCRATCHPAD, scratch}});
    stream.wait();
  }

  dnnl::matmul matmul;
  memory::desc scratchpad;
};

void Reorder(memory from, memory to) {
  dnnl::stream stream(CpuEngine());
  dnnl::reorder(from, to).execute(stream, from, to);
  stream.wait();
}

memory MemoryOf(const memory::desc& desc, const void* data) { return {desc, CpuEngine(), const_cast<void*>(data)}; }

void Convert(DType from, const std::byte* data, int64_t count, DType to, std::byte* out) {
  const auto from_size = static_cast<int64_t>(DTypeSize(from));
  const auto to_size = static_cast<int64_t>(DTypeSize(to));
  constexpr int64_t kBlock = 4096;
  ParallelFor((count + kBlock - 1) / kBlock, [&](int64_t block) {
    const int64_t begin = block * kBlock;
    const auto size = static_cast<size_t>(std::min(kBlock, count - begin));
    if (from == to) {
      std::memcpy(out + begin * to_size, data + begin * from_size, size * DTypeSize(to));
      return;
    }
    float values[kBlock];
    WidenToFloat(from, data + begin * from_size, size, values);
    NarrowFromFloat(to, values, size, out + begin * to_size);
  });
}

}  // namespace

struct Linear::Impl {
  int64_t out = 0;
  int64_t in = 0;
  DType storage = DType::kF32;
  bool packed = false;
  memory weight;                 // packed
  std::vector<std::byte> plain;  // [out, in] of 16-bit elements, not packed
  std::mutex mutex;              // guards the two below
  int64_t last_rows = -1;
  std::optional<Product> last;  // for the number of rows asked for last

  memory::dims Dims() const { return {in, out}; }
  // The checkpoint's [out, in], seen as the [in, out] that a product x · B wants.
  memory::desc PlainDesc(DType dtype) const { return {Dims(), DnnlType(dtype), Tag::ba}; }
  memory::desc XDesc(int64_t rows) const { return {{rows, in}, DnnlType(storage), Tag::ab}; }
  memory::desc YDesc(int64_t rows) const { return {{rows, out}, DnnlType(storage), Tag::ab}; }

  void Pack(std::byte* converted) {
    const memory::desc any(Dims(), DnnlType(storage), Tag::any);
    const auto desc = MatmulDesc(XDesc(kPackingRows), any, YDesc(kPackingRows));
    weight = memory(desc.weights_desc(), CpuEngine());
    Reorder(MemoryOf(PlainDesc(storage), converted), weight);
  }

  Product ProductOf(int64_t rows) {
    const std::lock_guard lock(mutex);
    if (last_rows != rows) {
      last.emplace(MatmulDesc(XDesc(rows), weight.get_desc(), YDesc(rows)));
      last_rows = rows;
    }
    return *last;
  }

  void ApplyPacked(const void* x, int64_t rows, void* y) {
    ProductOf(rows).Execute(MemoryOf(XDesc(rows), x), weight, MemoryOf(YDesc(rows), y));
  }

  void ApplyWidened(const std::byte* x, int64_t rows, std::byte* y) const {
    const memory::data_type f32 = memory::data_type::f32;
    const auto element = static_cast<int64_t>(DTypeSize(storage));
    std::vector<float> wide_x(static_cast<size_t>(rows * in));
    std::vector<float> wide_w(static_cast<size_t>(std::min(kWidenedRows, out) * in));
    std::vector<float> wide_y(static_cast<size_t>(rows * std::min(kWidenedRows, out)));
    ParallelFor(rows, [&](int64_t r) {
      WidenToFloat(storage, x + r * in * element, static_cast<size_t>(in), &wide_x[static_cast<size_t>(r * in)]);
    });
    for (int64_t begin = 0; begin < out; begin += kWidenedRows) {
      const int64_t n = std::min(kWidenedRows, out - begin);
      ParallelFor(n, [&](int64_t i) {
        WidenToFloat(storage, plain.data() + (begin + i) * in * element, static_cast<size_t>(in),
                     &wide_w[static_cast<size_t>(i * in)]);
      });
      const memory::desc xd({rows, in}, f32, Tag::ab);
      const memory::desc wd({in, n}, f32, Tag::ba);
      const memory::desc yd({rows, n}, f32, Tag::ab);
      Product(MatmulDesc(xd, wd, yd))
          .Execute(MemoryOf(xd, wide_x.data()), MemoryOf(wd, wide_w.data()), MemoryOf(yd, wide_y.data()));
      ParallelFor(rows, [&](int64_t r) {
        NarrowFromFloat(storage, &wide_y[static_cast<size_t>(r * n)], static_cast<size_t>(n),
                        y + (r * out + begin) * element);
      });
    }
  }

  // The logical weight [out, in] in the storage dtype, from the memory that the product reads.
  std::vector<std::byte> Unpacked() const {
    if (!packed) return plain;
    std::vector<std::byte> bytes(static_cast<size_t>(out * in) * DTypeSize(storage));
    Reorder(weight, MemoryOf(PlainDesc(storage), bytes.data()));
    return bytes;
  }
};

Linear::Linear() = default;
Linear::Linear(Linear&&) noexcept = default;
Linear& Linear::operator=(Linear&&) noexcept = default;
Linear::~Linear() = default;

Linear::Linear(const Weight& weight, DType storage) : impl_(std::make_unique<Impl>()) {
  impl_->out = weight.shape[0];
  impl_->in = weight.shape[1];
  impl_->storage = storage;
  impl_->packed = IsPacked(storage);
  std::vector<std::byte> converted(static_cast<size_t>(impl_->out * impl_->in) * DTypeSize(storage));
  Convert(weight.dtype, weight.data, impl_->out * impl_->in, storage, converted.data());
  if (impl_->packed) {
    impl_->Pack(converted.data());
  } else {
    impl_->plain = std::move(converted);
  }
}

void Linear::Apply(const void* x, int64_t rows, void* y) const {
  if (rows == 0) return;
  if (impl_->packed) {
    impl_->ApplyPacked(x, rows, y);
  } else {
    impl_->ApplyWidened(static_cast<const std::byte*>(x), rows, static_cast<std::byte*>(y));
  }
}

int64_t Linear::out() const { return impl_->out; }
int64_t Linear::in() const { return impl_->in; }

std::string Linear::Fingerprint() const {
  const std::vector<std::byte> bytes = impl_->Unpacked();
  return FingerprintOfMatrix(impl_->storage, bytes.data(), impl_->out, impl_->in);
}

std::string MatmulDescription() {
  const dnnl_version_t* version = dnnl_version();
  return "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
         std::to_string(version->patch) + (HasNativeBf16() ? ", native bf16" : ", bf16 widened to f32") +
         ", f16 widened to f32";
}

}  // namespace lockstep
