#include "engine/linear.h"

#include <algorithm>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>

#include "base/parallel.h"
#include "engine/isa.h"
#include "engine/simd/row_kernels.h"
#include "lockstep/engine.h"

namespace lockstep {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;

constexpr int64_t kPackingRows = 512;  // the number of rows that the packed layout is chosen for
constexpr int64_t kGroupPanels = 4;    // panels that a thread multiplies at a time
constexpr size_t kMaxProducts = 16;    // shapes that a workspace remembers

dnnl::engine& CpuEngine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

bool UsesOneDnn(DType storage) {
  return (storage == DType::kF32 && CpuIsa() >= Isa::kAvx512) ||
         (storage == DType::kBF16 && CpuIsa() == Isa::kAvx512Bf16);
}

memory::data_type DnnlType(DType dtype) {
  return dtype == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
}

memory::desc RowsDesc(int64_t rows, int64_t width, DType dtype) { return {{rows, width}, DnnlType(dtype), Tag::ab}; }

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

void Reorder(memory from, memory to) {
  dnnl::stream stream(CpuEngine());
  dnnl::reorder(from, to).execute(stream, from, to);
  stream.wait();
}

memory MemoryOf(const memory::desc& desc, const void* data) { return {desc, CpuEngine(), const_cast<void*>(data)}; }

// One shape's kernel with the memory objects that an execution needs, so that a call allocates nothing.
class Product {
 public:
  Product(int64_t rows, const memory& weight, int64_t in, int64_t out, DType storage)
      : rows_(rows),
        weight_desc_(weight.get_desc()),
        x_(RowsDesc(rows, in, storage), CpuEngine(), nullptr),
        y_(RowsDesc(rows, out, storage), CpuEngine(), nullptr) {
    const auto desc = MatmulDesc(x_.get_desc(), weight_desc_, y_.get_desc());
    matmul_ = dnnl::matmul(desc);
    scratch_ = memory(desc.scratchpad_desc(), CpuEngine());
  }

  bool Fits(int64_t rows, const memory::desc& weight) const { return rows == rows_ && weight == weight_desc_; }

  void Execute(const dnnl::stream& stream, const void* x, const memory& weight, void* y) {
    x_.set_data_handle(const_cast<void*>(x));
    y_.set_data_handle(y);
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, x_.get()},
                                         {DNNL_ARG_WEIGHTS, weight.get()},
                                         {DNNL_ARG_DST, y_.get()},
                                         {DNNL_ARG_SCRATCHPAD, scratch_.get()}};
    dnnl::error::wrap_c_api(dnnl_primitive_execute(matmul_.get(), stream.get(), std::size(arguments), arguments),
                            "a matrix product failed");
  }

 private:
  int64_t rows_;
  memory::desc weight_desc_;
  memory x_, y_, scratch_;
  dnnl::matmul matmul_;
};

}  // namespace

struct LinearWorkspace::Impl {
  dnnl::stream stream{CpuEngine()};
  std::vector<Product> products;  // the one used last stands last
  std::vector<std::byte> operands;

  Product& ProductFor(int64_t rows, const memory& weight, int64_t in, int64_t out, DType storage) {
    const auto found = std::find_if(products.begin(), products.end(),
                                    [&, desc = weight.get_desc()](const Product& p) { return p.Fits(rows, desc); });
    if (found != products.end()) {
      std::rotate(found, found + 1, products.end());
    } else {
      if (products.size() == kMaxProducts) products.erase(products.begin());
      products.emplace_back(rows, weight, in, out, storage);
    }
    return products.back();
  }
};

LinearWorkspace::LinearWorkspace() : impl_(std::make_unique<Impl>()) {}
LinearWorkspace::LinearWorkspace(LinearWorkspace&&) noexcept = default;
LinearWorkspace& LinearWorkspace::operator=(LinearWorkspace&&) noexcept = default;
LinearWorkspace::~LinearWorkspace() = default;

struct Linear::Impl {
  Impl(int64_t rows, int64_t columns, DType dtype)
      : out(rows), in(columns), storage(dtype), kernels(RowKernelsFor(dtype)) {}

  int64_t out, in;
  DType storage;
  const RowKernels& kernels;
  memory weight;                  // oneDNN's; empty where the panels are used
  std::vector<std::byte> panels;  // [ceil(out / 16)] panels of depth `Depth()`

  bool IsPanels() const { return !weight; }
  int64_t Element() const { return static_cast<int64_t>(DTypeSize(storage)); }
  int64_t Depth() const { return (in + kernels.pair - 1) / kernels.pair * kernels.pair; }
  int64_t NumPanels() const { return (out + kPanelWidth - 1) / kPanelWidth; }
  int64_t PanelStride() const { return Depth() * kPanelWidth; }

  // [out, in], seen as the [in, out] that a product x · B wants.
  memory::desc PlainDesc() const { return {{in, out}, DnnlType(storage), Tag::ba}; }

  void PackForOneDnn(const std::byte* plain) {
    const memory::desc any({in, out}, DnnlType(storage), Tag::any);
    const auto desc = MatmulDesc(RowsDesc(kPackingRows, in, storage), any, RowsDesc(kPackingRows, out, storage));
    weight = memory(desc.weights_desc(), CpuEngine());
    Reorder(MemoryOf(PlainDesc(), plain), weight);
  }

  // Calls copy(element in the panels, element in [out, in]), byte offsets both, for all elements of panel p.
  template <typename Copy>
  void ForPanel(int64_t p, Copy&& copy) const {
    const int64_t pair = kernels.pair;
    for (int64_t row = p * kPanelWidth; row < std::min(out, (p + 1) * kPanelWidth); ++row) {
      for (int64_t k = 0; k < in; ++k) {
        const int64_t in_panel = (k - k % pair) * kPanelWidth + row % kPanelWidth * pair + k % pair;
        copy((p * PanelStride() + in_panel) * Element(), (row * in + k) * Element());
      }
    }
  }

  void PackIntoPanels(const std::byte* plain) {
    panels.resize(static_cast<size_t>(NumPanels() * PanelStride() * Element()));
    ParallelFor(NumPanels(), [&](int64_t p) {
      ForPanel(p, [&](int64_t panel, int64_t at) {
        std::memcpy(&panels[static_cast<size_t>(panel)], plain + at, DTypeSize(storage));
      });
    });
  }

  std::vector<std::byte> Unpacked() const {
    std::vector<std::byte> plain(static_cast<size_t>(out * in * Element()));
    if (!IsPanels()) {
      Reorder(weight, MemoryOf(PlainDesc(), plain.data()));
      return plain;
    }
    ParallelFor(NumPanels(), [&](int64_t p) {
      ForPanel(p, [&](int64_t panel, int64_t at) {
        std::memcpy(&plain[static_cast<size_t>(at)], &panels[static_cast<size_t>(panel)], DTypeSize(storage));
      });
    });
    return plain;
  }

  // x as operands: itself where it is f32.
  const std::byte* OperandsOf(const std::byte* x, int64_t rows, std::vector<std::byte>& memory) const {
    if (storage == DType::kF32) return x;
    const int64_t row_bytes = Depth() * kernels.operand_size;
    memory.assign(static_cast<size_t>(rows * row_bytes), std::byte{0});
    ParallelFor(rows, [&](int64_t r) {
      kernels.operand(x + r * in * Element(), in, memory.data() + static_cast<size_t>(r * row_bytes));
    });
    return memory.data();
  }

  void ApplyPanels(const std::byte* x, int64_t rows, std::byte* y, std::vector<std::byte>& memory) const {
    const std::byte* operands = OperandsOf(x, rows, memory);
    ParallelFor((NumPanels() + kGroupPanels - 1) / kGroupPanels, [&](int64_t group) {
      const int64_t first = group * kGroupPanels;
      const int64_t count = std::min(kGroupPanels, NumPanels() - first);
      const int64_t width = count * kPanelWidth;
      static thread_local std::vector<float> sums;
      sums.resize(static_cast<size_t>(rows * width));
      kernels.product(operands, Depth(), rows, &panels[static_cast<size_t>(first * PanelStride() * Element())],
                      PanelStride(), count, Depth(), sums.data(), width);
      const int64_t column = first * kPanelWidth;
      for (int64_t r = 0; r < rows; ++r) {
        kernels.narrow(&sums[static_cast<size_t>(r * width)], std::min(width, out - column),
                       y + (r * out + column) * Element());
      }
    });
  }
};

Linear::Linear() = default;
Linear::Linear(Linear&&) noexcept = default;
Linear& Linear::operator=(Linear&&) noexcept = default;
Linear::~Linear() = default;

Linear::Linear(const std::byte* weight, int64_t out, int64_t in, DType storage)
    : impl_(std::make_unique<Impl>(out, in, storage)) {
  if (UsesOneDnn(storage)) {
    impl_->PackForOneDnn(weight);
  } else {
    impl_->PackIntoPanels(weight);
  }
}

void Linear::Apply(const void* x, int64_t rows, void* y, LinearWorkspace& workspace) const {
  if (rows == 0) return;
  LinearWorkspace::Impl& own = workspace.impl();
  if (impl_->IsPanels()) {
    impl_->ApplyPanels(static_cast<const std::byte*>(x), rows, static_cast<std::byte*>(y), own.operands);
  } else {
    own.ProductFor(rows, impl_->weight, in(), out(), impl_->storage).Execute(own.stream, x, impl_->weight, y);
  }
}

int64_t Linear::out() const { return impl_->out; }
int64_t Linear::in() const { return impl_->in; }
std::vector<std::byte> Linear::Unpacked() const { return impl_->Unpacked(); }

std::string MatmulDescription() {
  const dnnl_version_t* version = dnnl_version();
  const std::string one_dnn = "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
                              std::to_string(version->patch);
  switch (CpuIsa()) {
    case Isa::kAvx512Bf16: return one_dnn + " for f32 and bf16 (AVX-512, native bf16), own AVX-512 kernels for f16";
    case Isa::kAvx512: return one_dnn + " for f32 (AVX-512), own AVX-512 kernels for bf16 and f16";
    case Isa::kAvx2: return "own AVX2 kernels for f32, bf16 and f16";
    case Isa::kBaseline: break;
  }
  return "own kernels without AVX2 for f32, bf16 and f16";
}

}  // namespace lockstep
