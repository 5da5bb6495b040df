// The engine's kernels one by one, in the shape of Qwen3-0.6B, with Google Benchmark.
//
//   cmake --preset bench && cmake --build --preset bench
//   build/bench/bench/kernels_bench --benchmark_filter='Linear.*bf16'
//
// bytes_per_second counts what a kernel must read and write once, FLOP/s its multiplications and additions. `lockstep
// bench` measures the machine's limits for both.
#include <benchmark/benchmark.h>

#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/convert.h"
#include "engine/attention.h"
#include "engine/kernels.h"
#include "engine/linear.h"

namespace lockstep {
namespace {

constexpr int64_t kHidden = 1024;
constexpr int64_t kIntermediate = 3072;
constexpr kernels::AttentionShape kShape{.heads = 16, .kv_heads = 8, .head_dim = 128};
constexpr int64_t kQueryWidth = 16 * 128;
constexpr int64_t kKeyWidth = 8 * 128;

using Bytes = std::vector<std::byte>;

int64_t Size(const Bytes& bytes) { return static_cast<int64_t>(bytes.size()); }

// Normal values: none is subnormal in any dtype often enough to matter.
Bytes Random(DType dtype, int64_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  Bytes bytes(values.size() * DTypeSize(dtype));
  NarrowFromFloat(dtype, values.data(), values.size(), bytes.data());
  return bytes;
}

void Count(benchmark::State& state, int64_t bytes, double flops) {
  state.SetBytesProcessed(state.iterations() * bytes);
  if (flops > 0) state.counters["FLOP/s"] = {flops, benchmark::Counter::kIsIterationInvariantRate};
}

void RmsNorm(benchmark::State& state, DType dtype, int64_t tokens) {
  const Bytes x = Random(dtype, tokens * kHidden);
  Bytes y(x.size());
  const std::vector<float> w(kHidden, 1.0F);
  for (auto _ : state) {
    kernels::RmsNorm(dtype, x.data(), w, 1e-6, tokens, y.data());
    benchmark::ClobberMemory();
  }
  Count(state, Size(x) + Size(y), 0);
}

// In place; norms keep the values where they are, however often.
void RmsNormOfHeads(benchmark::State& state, DType dtype, int64_t tokens) {
  Bytes x = Random(dtype, tokens * kQueryWidth);
  const std::vector<float> w(static_cast<size_t>(kShape.head_dim), 1.0F);
  const kernels::HeadView heads{x.data(), tokens, kShape.heads, kShape.head_dim, kQueryWidth};
  for (auto _ : state) {
    kernels::RmsNorm(dtype, heads, w, 1e-6);
    benchmark::ClobberMemory();
  }
  Count(state, 2 * Size(x), 0);
}

void Rope(benchmark::State& state, DType dtype, int64_t tokens) {
  Config config;
  config.head_dim = kShape.head_dim;
  config.rope_theta = 1e6;
  const kernels::RopeTable table(config, dtype, tokens);
  Bytes x = Random(dtype, tokens * kQueryWidth);
  const kernels::HeadView heads{x.data(), tokens, kShape.heads, kShape.head_dim, kQueryWidth};
  std::vector<int32_t> positions(static_cast<size_t>(tokens));
  std::iota(positions.begin(), positions.end(), 0);
  for (auto _ : state) {
    kernels::Rope(dtype, heads, table, positions);
    benchmark::ClobberMemory();
  }
  Count(state, 2 * Size(x), 0);
}

void Add(benchmark::State& state, DType dtype, int64_t tokens) {
  const Bytes a = Random(dtype, tokens * kHidden);
  const Bytes b = Random(dtype, tokens * kHidden);
  Bytes y(a.size());
  for (auto _ : state) {
    kernels::Add(dtype, a.data(), b.data(), tokens * kHidden, y.data());
    benchmark::ClobberMemory();
  }
  Count(state, 3 * Size(y), 0);
}

void SwiGlu(benchmark::State& state, DType dtype, int64_t tokens) {
  const Bytes gate_up = Random(dtype, tokens * 2 * kIntermediate);
  Bytes y(gate_up.size() / 2);
  for (auto _ : state) {
    kernels::SwiGlu(dtype, gate_up.data(), tokens, kIntermediate, y.data());
    benchmark::ClobberMemory();
  }
  Count(state, Size(gate_up) + Size(y), 0);
}

// `tokens` queries at the end of `context` keys, their own among them.
void Attention(benchmark::State& state, DType dtype, int64_t tokens, int64_t context) {
  const int64_t capacity = (context + kernels::kCapacityStep - 1) / kernels::kCapacityStep * kernels::kCapacityStep;
  Bytes k(kernels::KeyBytes(dtype, kShape, capacity));
  Bytes v(kernels::ValueBytes(dtype, kShape, capacity));
  const kernels::KvView kv{k.data(), v.data(), capacity};
  const Bytes keys = Random(dtype, context * kKeyWidth);
  kernels::WriteKeysAndValues(dtype, kShape, kv, 0, context, keys.data(), keys.data(), kKeyWidth);
  const std::vector<kernels::Run> runs = {{.begin = 0, .count = tokens, .position = context - tokens, .kv = kv}};
  const Bytes q = Random(dtype, tokens * kQueryWidth);
  Bytes out(q.size());
  for (auto _ : state) {
    kernels::Attention(dtype, kShape, q.data(), kQueryWidth, runs, out.data());
    benchmark::ClobberMemory();
  }
  const double seen = static_cast<double>(tokens) * static_cast<double>(2 * context - tokens + 1) / 2;
  Count(state, 2 * Size(keys) + Size(q) + Size(out), 4 * static_cast<double>(kQueryWidth) * seen);
}

void ApplyLinear(benchmark::State& state, DType dtype, int64_t tokens, int64_t out, int64_t in) {
  const Bytes weight = Random(dtype, out * in);
  const Linear linear(weight.data(), out, in, dtype);
  const Bytes x = Random(dtype, tokens * in);
  Bytes y(static_cast<size_t>(tokens * out) * DTypeSize(dtype));
  for (auto _ : state) {
    linear.Apply(x.data(), tokens, y.data());
    benchmark::ClobberMemory();
  }
  Count(state, Size(weight) + Size(x) + Size(y), 2.0 * static_cast<double>(tokens * out * in));
}

void Register(const std::string& name, DType dtype, int64_t tokens, const std::function<void(benchmark::State&)>& run) {
  const std::string full = name + "/" + DTypeName(dtype) + "/" + std::to_string(tokens);
  benchmark::RegisterBenchmark(full.c_str(), run)->UseRealTime();
}

void RegisterAll(DType dtype, int64_t tokens) {
  using Kernel = void (*)(benchmark::State&, DType, int64_t);
  const auto add = [&](const char* name, Kernel kernel) {
    Register(name, dtype, tokens, [=](benchmark::State& state) { kernel(state, dtype, tokens); });
  };
  add("RmsNorm", RmsNorm);
  add("RmsNormOfHeads", RmsNormOfHeads);
  add("Rope", Rope);
  add("Add", Add);
  add("SwiGlu", SwiGlu);
  for (const int64_t context : {int64_t{512}, int64_t{2048}}) {
    Register("Attention" + std::to_string(context), dtype, tokens,
             [=](benchmark::State& state) { Attention(state, dtype, tokens, context); });
  }
  const auto add_linear = [&](const char* name, int64_t out, int64_t in) {
    Register(name, dtype, tokens, [=](benchmark::State& state) { ApplyLinear(state, dtype, tokens, out, in); });
  };
  add_linear("LinearQkv", kQueryWidth + 2 * kKeyWidth, kHidden);
  add_linear("LinearO", kHidden, kQueryWidth);
  add_linear("LinearGateUp", 2 * kIntermediate, kHidden);
  add_linear("LinearDown", kHidden, kIntermediate);
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  for (const lockstep::DType dtype : {lockstep::DType::kBF16, lockstep::DType::kF32, lockstep::DType::kF16}) {
    for (const int64_t tokens : {1, 128, 512}) lockstep::RegisterAll(dtype, tokens);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
