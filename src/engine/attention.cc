#include "engine/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/parallel.h"
#include "base/round.h"
#include "engine/simd/row_kernels.h"

namespace lockstep::kernels {
namespace {

// Rows of scores at a time: enough to use each loaded key often, few enough for 48 · 2048 keys · 4 bytes to stay in a
// second-level cache of 1 MiB.
constexpr int64_t kBlockRows = 48;
constexpr float kMasked = -std::numeric_limits<float>::infinity();

// Strides of the cache in elements.
struct Layout {
  Layout(DType dtype, const AttentionShape& shape, int64_t capacity)
      : kernels(RowKernelsFor(dtype)),
        element(static_cast<int64_t>(DTypeSize(dtype))),
        panel(kernels.panel_width),
        depth(RoundUp(shape.head_dim, kernels.pair)),
        key_panel(depth * panel),
        key_head(capacity * depth),
        value_panel(capacity * panel),
        value_head(capacity * RoundUp(shape.head_dim, panel)) {}

  const RowKernels& kernels;
  int64_t element;
  int64_t panel;  // columns
  int64_t depth;  // of a panel of keys
  int64_t key_panel, key_head;
  int64_t value_panel, value_head;
};

// ---- Writing ----

// Tokens of one head, their first element and the bytes from one to the next.
struct Rows {
  const std::byte* data;
  int64_t stride;
  const std::byte* At(int64_t t) const { return data + t * stride; }
};

template <typename U>
U LoadUnit(const std::byte* from) {
  U unit;
  std::memcpy(&unit, from, sizeof(U));
  return unit;
}

// `count` keys into the columns from `column` on of one panel. U: `pair` elements, as the panel interleaves them.
template <typename U>
void WriteKeys(const Rows& keys, int64_t count, int64_t head_bytes, int64_t width, int64_t column, std::byte* panel) {
  constexpr auto kSize = static_cast<int64_t>(sizeof(U));
  const int64_t whole = head_bytes / kSize;
  for (int64_t i = 0; i < whole; ++i) {
    auto* to = reinterpret_cast<U*>(panel) + i * width + column;
    for (int64_t t = 0; t < count; ++t) to[t] = LoadUnit<U>(keys.At(t) + i * kSize);
  }
  if (whole * kSize == head_bytes) return;
  for (int64_t t = 0; t < count; ++t) {  // half a pair
    U unit = 0;
    std::memcpy(&unit, keys.At(t) + whole * kSize, static_cast<size_t>(head_bytes - whole * kSize));
    reinterpret_cast<U*>(panel)[whole * width + column + t] = unit;
  }
}

// One value into row `position` of each panel of channels. E: an element.
template <typename E, int64_t kPair>
void WriteValue(const std::byte* value, int64_t channels, int64_t width, int64_t position, int64_t panel_stride,
                std::byte* panels) {
  auto* to = reinterpret_cast<E*>(panels) + (position - position % kPair) * width + position % kPair;
  for (int64_t c = 0; c < channels; c += width, to += panel_stride) {
    const std::byte* from = value + c * static_cast<int64_t>(sizeof(E));
    for (int64_t i = 0; i < std::min(width, channels - c); ++i) {
      to[i * kPair] = LoadUnit<E>(from + i * static_cast<int64_t>(sizeof(E)));
    }
  }
}

// Tokens [position, position + count) of one head.
void WriteHead(const Layout& layout, int64_t head_dim, int64_t position, int64_t count, const Rows& keys,
               const Rows& values, std::byte* key_panels, std::byte* value_panels) {
  const bool whole_words = layout.element * layout.kernels.pair == 4;
  for (int64_t t = 0; t < count;) {
    const int64_t column = (position + t) % layout.panel;
    const int64_t columns = std::min(layout.panel - column, count - t);
    std::byte* panel = key_panels + (position + t) / layout.panel * layout.key_panel * layout.element;
    const auto write = whole_words ? WriteKeys<uint32_t> : WriteKeys<uint16_t>;
    write({keys.At(t), keys.stride}, columns, head_dim * layout.element, layout.panel, column, panel);
    t += columns;
  }
  const auto write = layout.element == 4        ? WriteValue<uint32_t, 1>
                     : layout.kernels.pair == 1 ? WriteValue<uint16_t, 1>
                                                : WriteValue<uint16_t, 2>;
  for (int64_t t = 0; t < count; ++t)
    write(values.At(t), head_dim, layout.panel, position + t, layout.value_panel, value_panels);
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
  std::vector<std::byte> queries;  // [rows, depth], operands
  std::vector<std::byte> probs;    // [rows, keys rounded up], operands
  std::vector<float> scores;       // [rows, keys rounded up]
  std::vector<float> largest;      // [rows], of the scores
  std::vector<float> sums;         // [rows, head_dim rounded up]

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
        keys_(RoundUp(block.Keys(), kColumns)),
        scratch_(Scratch::OfThread()),
        scores_(Grown(scratch_.scores, rows_ * keys_)),
        largest_(Grown(scratch_.largest, rows_)),
        probs_(Grown(scratch_.probs, rows_ * keys_ * kernels_.operand_size)) {}

  // q -> rows of scores, each with its largest
  void Scores(const std::byte* q, int64_t q_stride) const {
    const int64_t size = kernels_.operand_size;
    std::byte* queries = Grown(scratch_.queries, rows_ * layout_.depth * size);
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t at = Token(r) * q_stride + Head(r) * HeadDim();
      std::byte* query = queries + r * layout_.depth * size;
      kernels_.operand(q + at * layout_.element, HeadDim(), query);
      std::memset(query + HeadDim() * size, 0, static_cast<size_t>((layout_.depth - HeadDim()) * size));
    }
    const std::byte* keys = block_.kv->k + block_.kv_head * layout_.key_head * layout_.element;
    kernels_.product(queries, layout_.depth, rows_, keys, layout_.key_panel, keys_, layout_.depth, scores_, keys_);
    const float scale = 1.0F / std::sqrt(static_cast<float>(HeadDim()));
    for (int64_t r = 0; r < rows_; ++r) largest_[r] = kernels_.scale_scores(Row(r), Valid(r), keys_, scale);
  }

  // scores -> probs
  void Probs() const {
    for (int64_t r = 0; r < rows_; ++r) kernels_.softmax(Row(r), keys_, largest_[r], ProbsOf(r));
  }

  // Between the block and matrices [tokens, heads, keys] of f32.
  void ScoresTo(float* matrix, int64_t keys) const {
    for (int64_t r = 0; r < rows_; ++r) {
      float* row = matrix + Index(r) * keys;
      std::copy_n(Row(r), Valid(r), row);
      std::fill(row + Valid(r), row + keys, kMasked);
    }
  }
  void ScoresFrom(const float* matrix, int64_t keys) const {
    for (int64_t r = 0; r < rows_; ++r) {
      std::copy_n(matrix + Index(r) * keys, Valid(r), Row(r));
      std::fill(Row(r) + Valid(r), Row(r) + keys_, kMasked);
      largest_[r] = kMasked;
      for (int64_t j = 0; j < Valid(r); ++j) largest_[r] = Row(r)[j] > largest_[r] ? Row(r)[j] : largest_[r];
    }
  }
  void ProbsTo(float* matrix, int64_t keys) const {
    for (int64_t r = 0; r < rows_; ++r) {
      float* row = matrix + Index(r) * keys;
      if (kernels_.operand_size == sizeof(float)) {
        std::memcpy(row, ProbsOf(r), static_cast<size_t>(Valid(r)) * sizeof(float));
      } else {
        kernels_.widen(ProbsOf(r), Valid(r), row);
      }
      std::fill(row + Valid(r), row + keys, 0.0F);
    }
  }
  void ProbsFrom(const float* matrix, int64_t keys) const {
    for (int64_t r = 0; r < rows_; ++r) {
      std::copy_n(matrix + Index(r) * keys, Valid(r), Row(r));
      std::fill(Row(r) + Valid(r), Row(r) + keys_, 0.0F);
      kernels_.operand_of_floats(Row(r), keys_, ProbsOf(r));
    }
  }

  void Context(std::byte* context) const {
    const std::byte* values = block_.kv->v + block_.kv_head * layout_.value_head * layout_.element;
    const int64_t width = RoundUp(HeadDim(), kColumns);
    float* sums = Grown(scratch_.sums, rows_ * width);
    kernels_.product(probs_, keys_, rows_, values, layout_.value_panel, width, RoundUp(block_.Keys(), kernels_.pair),
                     sums, width);
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
  std::byte* ProbsOf(int64_t r) const { return probs_ + r * keys_ * kernels_.operand_size; }

  const AttentionShape& shape_;
  const Block& block_;
  Layout layout_;
  const RowKernels& kernels_;
  int64_t group_, rows_;
  int64_t keys_;  // all that a row may see, rounded up to what a product computes
  Scratch& scratch_;
  float* scores_;     // [rows, keys]
  float* largest_;    // [rows]
  std::byte* probs_;  // [rows, keys], operands
};

// Calls work(BlockRunner) for every block. Later blocks of a run see more keys: they come first, and threads take the
// next as they finish.
template <typename Work>
void ForBlocks(DType dtype, const AttentionShape& shape, std::span<const Run> runs, Work&& work) {
  const int64_t block_tokens = std::max<int64_t>(1, kBlockRows / (shape.heads / shape.kv_heads));
  int64_t blocks = 0;
  for (const Run& run : runs) blocks += CeilDiv(run.count, block_tokens);
  ParallelForDynamic(blocks * shape.kv_heads, [&](int64_t index) {
    int64_t from_last = index / shape.kv_heads;
    for (auto run = runs.rbegin(); run != runs.rend(); ++run) {
      const int64_t in_run = CeilDiv(run->count, block_tokens);
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
  const int64_t groups = CeilDiv(count, kTokens);
  ParallelForIf(count > 1, groups * shape.kv_heads, [&](int64_t index) {
    const int64_t head = index / groups, begin = index % groups * kTokens;
    const int64_t at = (begin * stride + head * shape.head_dim) * layout.element;
    WriteHead(layout, shape.head_dim, position + begin, std::min(kTokens, count - begin),
              {static_cast<const std::byte*>(k) + at, stride * layout.element},
              {static_cast<const std::byte*>(v) + at, stride * layout.element},
              kv.k + head * layout.key_head * layout.element, kv.v + head * layout.value_head * layout.element);
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
    block.ScoresTo(scores, keys);
  });
}

void AttentionProbs(DType dtype, const AttentionShape& shape, std::span<const Run> runs, int64_t keys,
                    float* scores_to_probs) {
  ForBlocks(dtype, shape, runs, [&](const BlockRunner& block) {
    block.ScoresFrom(scores_to_probs, keys);
    block.Probs();
    block.ProbsTo(scores_to_probs, keys);
  });
}

void AttentionContext(DType dtype, const AttentionShape& shape, const float* probs, std::span<const Run> runs,
                      int64_t keys, void* context) {
  ForBlocks(dtype, shape, runs, [&](const BlockRunner& block) {
    block.ProbsFrom(probs, keys);
    block.Context(static_cast<std::byte*>(context));
  });
}

}  // namespace lockstep::kernels
