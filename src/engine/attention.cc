#include "engine/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/parallel.h"
#include "engine/simd/row_kernels.h"

namespace lockstep::kernels {
namespace {

// Rows of scores at a time: enough to use each loaded key often, few enough for 48 · 2048 keys · 4 bytes to stay in a
// second-level cache of 1 MiB.
constexpr int64_t kBlockRows = 48;

int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Strides of the cache in elements.
struct Layout {
  Layout(DType dtype, const AttentionShape& shape, int64_t capacity)
      : kernels(RowKernelsFor(dtype)),
        element(static_cast<int64_t>(DTypeSize(dtype))),
        depth(RoundUp(shape.head_dim, kernels.pair)),
        key_panel(depth * kPanelWidth),
        key_head(capacity * depth),
        value_panels(RoundUp(shape.head_dim, kPanelWidth) / kPanelWidth),
        value_panel(capacity * kPanelWidth),
        value_head(value_panels * value_panel) {}

  const RowKernels& kernels;
  int64_t element;
  int64_t depth;  // of a panel of keys
  int64_t key_panel, key_head;
  int64_t value_panels, value_panel, value_head;
};

// ---- Writing ----

// One head's token into column `position % 16` of its panel. U: `pair` elements.
template <typename U>
void WriteKey(const std::byte* key, int64_t bytes, int64_t position, std::byte* panel) {
  const auto size = static_cast<int64_t>(sizeof(U));
  for (int64_t i = 0; i < bytes; i += size) {
    U unit = 0;
    std::memcpy(&unit, key + i, static_cast<size_t>(std::min(size, bytes - i)));
    std::memcpy(panel + i * kPanelWidth + position % kPanelWidth * size, &unit, sizeof(U));
  }
}

// One head's token into row `position` of each panel of 16 channels. E: an element.
template <typename E>
void WriteValue(const std::byte* value, int64_t channels, int64_t position, int64_t pair, int64_t panel_stride,
                std::byte* panels) {
  const int64_t first = (position - position % pair) * kPanelWidth + position % pair;
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t to = c / kPanelWidth * panel_stride + first + c % kPanelWidth * pair;
    std::memcpy(panels + to * static_cast<int64_t>(sizeof(E)), value + c * static_cast<int64_t>(sizeof(E)), sizeof(E));
  }
}

void WriteToken(const Layout& layout, int64_t head_dim, int64_t position, const std::byte* key, const std::byte* value,
                std::byte* keys, std::byte* values) {
  const int64_t pair = layout.kernels.pair;
  std::byte* panel = keys + position / kPanelWidth * layout.key_panel * layout.element;
  if (layout.element * pair == 4) {
    WriteKey<uint32_t>(key, head_dim * layout.element, position, panel);
  } else {
    WriteKey<uint16_t>(key, head_dim * layout.element, position, panel);
  }
  if (layout.element == 4) {
    WriteValue<uint32_t>(value, head_dim, position, pair, layout.value_panel, values);
  } else {
    WriteValue<uint16_t>(value, head_dim, position, pair, layout.value_panel, values);
  }
}

// ---- Blocks ----

// Some tokens of a run and one key/value head: rows [token, head of the group].
struct Block {
  int64_t token, tokens;  // in the batch
  int64_t position;       // of the first
  int64_t kv_head;
  const KvView* kv;

  int64_t Keys() const { return position + tokens; }
};

// A thread's own memory, kept from call to call.
struct Scratch {
  std::vector<std::byte> operands;  // [rows, depth]: queries, then probabilities
  std::vector<float> scores;        // [rows, keys rounded up]
  std::vector<float> sums;          // [rows, value_panels · 16]

  static Scratch& OfThread() {
    static thread_local Scratch scratch;
    return scratch;
  }
};

template <typename V>
auto* Grown(V& memory, int64_t size) {
  if (memory.size() < static_cast<size_t>(size)) memory.resize(static_cast<size_t>(size));
  return memory.data();
}

class BlockRunner {
 public:
  BlockRunner(DType dtype, const AttentionShape& shape, const Block& block)
      : shape_(shape),
        block_(block),
        layout_(dtype, shape, block.kv->capacity),
        kernels_(layout_.kernels),
        group_(shape.heads / shape.kv_heads),
        rows_(block.tokens * group_),
        keys_(RoundUp(block.Keys(), kPanelWidth)),
        scratch_(Scratch::OfThread()),
        scores_(Grown(scratch_.scores, rows_ * keys_)) {}

  // Between the block and a matrix [tokens, heads, keys]: what a row may not see is `masked`.
  void CopyIn(const float* matrix, int64_t keys, float masked) const {
    for (int64_t r = 0; r < rows_; ++r) {
      std::copy_n(matrix + Index(r) * keys, Valid(r), Row(r));
      std::fill(Row(r) + Valid(r), Row(r) + keys_, masked);
    }
  }
  void CopyOut(float* matrix, int64_t keys, float masked) const {
    for (int64_t r = 0; r < rows_; ++r) {
      float* row = matrix + Index(r) * keys;
      std::copy_n(Row(r), Valid(r), row);
      std::fill(row + Valid(r), row + keys, masked);
    }
  }

  void Scores(const std::byte* q, int64_t q_stride) const {
    std::byte* queries = Operands(layout_.depth);
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t at = Token(r) * q_stride + Head(r) * HeadDim();
      std::byte* query = queries + r * layout_.depth * kernels_.operand_size;
      kernels_.operand(q + at * layout_.element, HeadDim(), query);
      std::memset(query + HeadDim() * kernels_.operand_size, 0, Bytes(layout_.depth - HeadDim()));
    }
    const std::byte* keys = block_.kv->k + block_.kv_head * layout_.key_head * layout_.element;
    kernels_.product(queries, layout_.depth, rows_, keys, layout_.key_panel, keys_ / kPanelWidth, layout_.depth,
                     scores_, keys_);
    const float scale = 1.0F / std::sqrt(static_cast<float>(HeadDim()));
    for (int64_t r = 0; r < rows_; ++r) kernels_.scale_scores(Row(r), Valid(r), keys_, scale);
  }

  void Probs() const {
    for (int64_t r = 0; r < rows_; ++r) kernels_.softmax(Row(r), Valid(r), keys_);
  }

  void Context(std::byte* context) const {
    std::byte* probs = Operands(keys_);
    for (int64_t r = 0; r < rows_; ++r) {
      kernels_.operand_of_floats(Row(r), keys_, probs + r * keys_ * kernels_.operand_size);
    }
    const std::byte* values = block_.kv->v + block_.kv_head * layout_.value_head * layout_.element;
    const int64_t width = layout_.value_panels * kPanelWidth;
    float* sums = Grown(scratch_.sums, rows_ * width);
    kernels_.product(probs, keys_, rows_, values, layout_.value_panel, layout_.value_panels,
                     RoundUp(block_.Keys(), kernels_.pair), sums, width);
    for (int64_t r = 0; r < rows_; ++r) {
      kernels_.narrow(sums + r * width, HeadDim(), context + Index(r) * HeadDim() * layout_.element);
    }
  }

 private:
  float* Row(int64_t r) const { return scores_ + r * keys_; }
  int64_t Valid(int64_t r) const { return block_.position + r / group_ + 1; }  // keys that it may see
  int64_t Head(int64_t r) const { return block_.kv_head * group_ + r % group_; }
  int64_t Token(int64_t r) const { return block_.token + r / group_; }
  // Of the row in a dense [tokens, heads, …].
  int64_t Index(int64_t r) const { return Token(r) * shape_.heads + Head(r); }
  int64_t HeadDim() const { return shape_.head_dim; }
  size_t Bytes(int64_t operands) const { return static_cast<size_t>(operands * kernels_.operand_size); }
  std::byte* Operands(int64_t depth) const { return Grown(scratch_.operands, rows_ * depth * kernels_.operand_size); }

  const AttentionShape& shape_;
  const Block& block_;
  Layout layout_;
  const RowKernels& kernels_;
  int64_t group_, rows_;
  int64_t keys_;  // all that a row may see, rounded up to whole panels
  Scratch& scratch_;
  float* scores_;  // [rows, keys]
};

// Calls work(BlockRunner) for every block. Later blocks of a run see more keys: they come first, and threads take the
// next as they finish.
template <typename Work>
void ForBlocks(DType dtype, const AttentionShape& shape, std::span<const Run> runs, Work&& work) {
  const int64_t block_tokens = std::max<int64_t>(1, kBlockRows / (shape.heads / shape.kv_heads));
  int64_t blocks = 0;
  for (const Run& run : runs) blocks += (run.count + block_tokens - 1) / block_tokens;
  ParallelForDynamic(blocks * shape.kv_heads, [&](int64_t index) {
    int64_t from_last = index / shape.kv_heads;
    for (auto run = runs.rbegin(); run != runs.rend(); ++run) {
      const int64_t in_run = (run->count + block_tokens - 1) / block_tokens;
      if (from_last >= in_run) {
        from_last -= in_run;
        continue;
      }
      const int64_t begin = (in_run - 1 - from_last) * block_tokens;
      const Block block{run->begin + begin, std::min(block_tokens, run->count - begin), run->position + begin,
                        index % shape.kv_heads, &run->kv};
      work(BlockRunner(dtype, shape, block));
      return;
    }
  });
}

}  // namespace

size_t KeyBytes(DType dtype, const AttentionShape& shape, int64_t capacity) {
  const Layout layout(dtype, shape, capacity);
  return static_cast<size_t>(shape.kv_heads * layout.key_head * layout.element);
}

size_t ValueBytes(DType dtype, const AttentionShape& shape, int64_t capacity) {
  const Layout layout(dtype, shape, capacity);
  return static_cast<size_t>(shape.kv_heads * layout.value_head * layout.element);
}

void WriteKeysAndValues(DType dtype, const AttentionShape& shape, const KvView& kv, int64_t position, int64_t count,
                        const void* k, const void* v, int64_t stride) {
  const Layout layout(dtype, shape, kv.capacity);
  // By groups of tokens, so that two threads seldom write to one cache line.
  constexpr int64_t kTokens = 32;
  const int64_t groups = (count + kTokens - 1) / kTokens;
  ParallelForIf(count > 1, groups * shape.kv_heads, [&](int64_t index) {
    const int64_t head = index / groups, begin = index % groups * kTokens;
    for (int64_t t = begin; t < std::min(count, begin + kTokens); ++t) {
      const int64_t at = (t * stride + head * shape.head_dim) * layout.element;
      WriteToken(layout, shape.head_dim, position + t, static_cast<const std::byte*>(k) + at,
                 static_cast<const std::byte*>(v) + at, kv.k + head * layout.key_head * layout.element,
                 kv.v + head * layout.value_head * layout.element);
    }
  });
}

void Attention(DType dtype, const AttentionShape& shape, const void* q, int64_t q_stride, std::span<const Run> runs,
               void* context) {
  ForBlocks(dtype, shape, runs, [&](const BlockRunner& block) {
    block.Scores(static_cast<const std::byte*>(q), q_stride);
    block.Probs();
    block.Context(static_cast<std::byte*>(context));
  });
}

void AttentionScores(DType dtype, const AttentionShape& shape, const void* q, int64_t q_stride,
                     std::span<const Run> runs, int64_t keys, float* scores) {
  ForBlocks(dtype, shape, runs, [&](const BlockRunner& block) {
    block.Scores(static_cast<const std::byte*>(q), q_stride);
    block.CopyOut(scores, keys, -std::numeric_limits<float>::infinity());
  });
}

void AttentionProbs(DType dtype, const AttentionShape& shape, std::span<const Run> runs, int64_t keys,
                    float* scores_to_probs) {
  ForBlocks(dtype, shape, runs, [&](const BlockRunner& block) {
    block.CopyIn(scores_to_probs, keys, -std::numeric_limits<float>::infinity());
    block.Probs();
    block.CopyOut(scores_to_probs, keys, 0);
  });
}

void AttentionContext(DType dtype, const AttentionShape& shape, const float* probs, std::span<const Run> runs,
                      int64_t keys, void* context) {
  ForBlocks(dtype, shape, runs, [&](const BlockRunner& block) {
    block.CopyIn(probs, keys, 0);
    block.Context(static_cast<std::byte*>(context));
  });
}

}  // namespace lockstep::kernels
