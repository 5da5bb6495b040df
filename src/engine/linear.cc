#include "engine/linear.h"

#include <algorithm>
#include <cstring>

#include "base/convert.h"
#include "base/parallel.h"
#include "base/round.h"
#include "engine/isa.h"
#include "lockstep/engine.h"

namespace lockstep {
namespace {

constexpr int64_t kBlockRows = 120;  // whole tiles, whose sums stay in the first-level cache
// A copy of known size is one instruction.
void CopyPair(const std::byte* from, int64_t bytes, std::byte* to) {
  if (bytes == 4) {
    std::memcpy(to, from, 4);
  } else {
    std::memcpy(to, from, 2);
  }
}

}  // namespace

int64_t Linear::Depth() const { return RoundUp(in_, kernels_->pair); }
int64_t Linear::NumPanels() const { return CeilDiv(out_, kernels_->panel_width); }
std::byte* Linear::Panel(int64_t p) const { return panels_.data() + p * Depth() * kernels_->panel_width * Element(); }

// Of the panel in [out, in]: calls copy(byte offset in the panel, byte offset in the weight, bytes) for each pair, 4 or
// 2 bytes, or half a pair at the end of a row.
template <typename Copy>
void Linear::ForPanel(int64_t p, Copy&& copy) const {
  const int64_t width = kernels_->panel_width, pair = kernels_->pair;
  const int64_t columns = std::min(width, out_ - p * width);
  for (int64_t k = 0; k < in_; k += pair) {
    const int64_t bytes = std::min(pair, in_ - k) * Element();
    for (int64_t c = 0; c < columns; ++c) {
      copy((k * width + c * pair) * Element(), ((p * width + c) * in_ + k) * Element(), bytes);
    }
  }
}

Linear::Linear(const std::byte* weight, int64_t out, int64_t in, DType storage)
    : out_(out), in_(in), storage_(storage), kernels_(&RowKernelsFor(storage)) {
  const int64_t panel_bytes = Depth() * kernels_->panel_width * Element();
  panels_ = AlignedBytes(static_cast<size_t>(NumPanels() * panel_bytes));
  ParallelFor(NumPanels(), [&](int64_t p) {
    std::byte* panel = Panel(p);
    std::memset(panel, 0, static_cast<size_t>(panel_bytes));
    ForPanel(p, [&](int64_t to, int64_t from, int64_t bytes) { CopyPair(weight + from, bytes, panel + to); });
  });
}

std::vector<std::byte> Linear::Unpacked() const {
  std::vector<std::byte> plain(static_cast<size_t>(out_ * in_ * Element()));
  ParallelFor(NumPanels(), [&](int64_t p) {
    const std::byte* panel = Panel(p);
    ForPanel(p, [&](int64_t from, int64_t to, int64_t bytes) { CopyPair(panel + from, bytes, plain.data() + to); });
  });
  return plain;
}

// x as the product wants it: itself where an operand is an element and pairs are whole.
const std::byte* Linear::Operands(const std::byte* x, int64_t rows) const {
  if (kernels_->operand_size == Element() && Depth() == in_) return x;
  static thread_local std::vector<std::byte> memory;
  const int64_t row_bytes = Depth() * kernels_->operand_size;
  memory.resize(static_cast<size_t>(rows * row_bytes));
  std::byte* operands = memory.data();
  ParallelForIf(rows > 8, rows, [&](int64_t r) {
    std::byte* row = operands + r * row_bytes;
    kernels_->operand(x + r * in_ * Element(), in_, row);
    std::memset(row + in_ * kernels_->operand_size, 0, static_cast<size_t>((Depth() - in_) * kernels_->operand_size));
  });
  return operands;
}

// Rows [begin, begin + rows) of the panel's columns.
void Linear::ApplyPanel(const std::byte* operands, int64_t p, int64_t begin, int64_t rows, std::byte* y) const {
  const int64_t width = kernels_->panel_width, column = p * width;
  const int64_t columns = std::min(width, out_ - column);
  const std::byte* a = operands + begin * Depth() * kernels_->operand_size;
  std::byte* out = y + (begin * out_ + column) * Element();
  if (columns % kColumns == 0) {
    return kernels_->stored_product(a, Depth(), rows, Panel(p), 0, columns, Depth(), out, out_);
  }
  // The last columns of an odd number: through sums that may be wider than the row's end.
  static thread_local std::vector<float> sums;
  sums.resize(static_cast<size_t>(kBlockRows * width));
  kernels_->product(a, Depth(), rows, Panel(p), 0, RoundUp(columns, kColumns), Depth(), sums.data(), width);
  for (int64_t r = 0; r < rows; ++r) {
    kernels_->narrow(&sums[static_cast<size_t>(r * width)], columns, out + r * out_ * Element());
  }
}

void Linear::Apply(const void* x, int64_t rows, void* y) const {
  const std::byte* operands = Operands(static_cast<const std::byte*>(x), rows);
  // Panel by panel, so that a panel stays in a core's second-level cache for all rows.
  const int64_t blocks = CeilDiv(rows, kBlockRows);
  ParallelFor(NumPanels() * blocks, [&](int64_t i) {
    const int64_t begin = i % blocks * kBlockRows;
    ApplyPanel(operands, i / blocks, begin, std::min(kBlockRows, rows - begin), static_cast<std::byte*>(y));
  });
}

std::string MatmulDescription() {
  return std::string("own kernels, ") + IsaName(CpuIsa()) +
         (CpuIsa() == Isa::kAvx512Bf16 ? ": pairs of bf16; f16 widened to f32" : ": bf16 and f16 widened to f32");
}

}  // namespace lockstep
