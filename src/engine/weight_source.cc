#include "engine/weight_source.h"

#include <cstring>
#include <vector>

#include "base/convert.h"
#include "base/fingerprint.h"
#include "base/parallel.h"

namespace lockstep {
namespace {

constexpr int64_t kBlock = 8192;

class CheckpointSource : public WeightSource {
 public:
  explicit CheckpointSource(Checkpoint checkpoint) : checkpoint_(std::move(checkpoint)) {}

  const Config& config() const override { return checkpoint_.config(); }
  const Checkpoint* checkpoint() const override { return &checkpoint_; }
  void Release(const std::string& name) const override { checkpoint_.Release(checkpoint_.Get(name)); }

  void Read(const std::string& name, int64_t begin, int64_t count, DType dtype, std::byte* out) const override {
    const Weight& weight = checkpoint_.Get(name);
    const std::byte* from = weight.data + static_cast<size_t>(begin) * DTypeSize(weight.dtype);
    ParallelForBlocks(count > kBlock, count, kBlock, [&](int64_t first, int64_t elements_in_block) {
      const auto at = static_cast<size_t>(first), size = static_cast<size_t>(elements_in_block);
      const std::byte* elements = from + at * DTypeSize(weight.dtype);
      std::byte* to = out + at * DTypeSize(dtype);
      if (weight.dtype == dtype) {
        std::memcpy(to, elements, size * DTypeSize(dtype));
        return;
      }
      float values[kBlock];
      WidenToFloat(weight.dtype, elements, size, values);
      NarrowFromFloat(dtype, values, size, to);
    });
  }

 private:
  Checkpoint checkpoint_;
};

class FormulaSource : public WeightSource {
 public:
  FormulaSource(const Config& config, uint64_t seed) : config_(config), seed_(seed) {}

  const Config& config() const override { return config_; }
  void Release(const std::string&) const override {}

  void Read(const std::string& name, int64_t begin, int64_t count, DType dtype, std::byte* out) const override {
    const bool is_norm = name.ends_with("norm.weight");
    uint64_t key = SplitMix64(seed_);
    // A tied head is the embedding.
    const std::string& source = config_.tie_word_embeddings && name == "lm_head.weight" ? kEmbeddingName : name;
    for (const char c : source) key = SplitMix64(key ^ static_cast<unsigned char>(c));
    ParallelForBlocks(count > kBlock, count, kBlock, [&](int64_t first, int64_t size) {
      float values[kBlock];
      for (int64_t i = 0; i < size; ++i) {
        const float value = 0.02F * AboutNormal(SplitMix64(key ^ static_cast<uint64_t>(begin + first + i)));
        values[i] = is_norm ? 1 + value : value;
      }
      NarrowFromFloat(dtype, values, static_cast<size_t>(size), out + static_cast<size_t>(first) * DTypeSize(dtype));
    });
  }

 private:
  static inline const std::string kEmbeddingName = "model.embed_tokens.weight";

  // The sum of four uniform numbers, of mean 0 and variance 1.
  static float AboutNormal(uint64_t bits) {
    int64_t sum = 0;
    for (int shift = 0; shift < 64; shift += 16) sum += static_cast<int64_t>(bits >> shift & 0xFFFF);
    return (static_cast<float>(sum) - 2 * 65535.0F) * (1.7320508F / 65536.0F);
  }

  Config config_;
  uint64_t seed_;
};

}  // namespace

std::unique_ptr<WeightSource> SourceOf(Checkpoint checkpoint) {
  return std::make_unique<CheckpointSource>(std::move(checkpoint));
}

std::unique_ptr<WeightSource> RandomSource(const Config& config, uint64_t seed) {
  return std::make_unique<FormulaSource>(config, seed);
}

}  // namespace lockstep
