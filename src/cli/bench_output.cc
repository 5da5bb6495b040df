#include "cli/bench_output.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "lockstep/version.h"

namespace lockstep::cli {
namespace {

using Json = nlohmann::ordered_json;

Json SamplesJson(const Samples& samples) {
  return {{"median", samples.Median()}, {"best", samples.Best()}, {"samples", samples.values}};
}

Json SpeedJson(const Speed& speed, const char* tokens_name, const char* work_name) {
  return {{tokens_name, speed.tokens},
          {work_name, speed.work_per_token},
          {"tokens_per_second", SamplesJson(speed.tokens_per_second)},
          {"limit", SamplesJson(speed.limit)},
          {"share_of_limit", SamplesJson(speed.share)}};
}

Json CaptureJson(const CaptureCost& cost) {
  Json json = {{"mode", cost.mode},
               {"phase", cost.phase},
               {"tokens", cost.tokens},
               {"plain_seconds", SamplesJson(cost.plain_seconds)},
               {"capture_seconds", SamplesJson(cost.capture_seconds)},
               {"ratio", SamplesJson(cost.ratio)}};
  if (cost.bytes > 0) {
    json["bytes"] = cost.bytes;
    json["write_bytes_per_second"] = SamplesJson(cost.write_bandwidth);
  }
  return json;
}

std::string SpeedLine(const char* phase, const Speed& speed, const char* limit) {
  return fmt::format("{:<10}{:>6} tokens {:>10.1f} tok/s {:>7.1f} % of the {}\n", phase, speed.tokens,
                     speed.tokens_per_second.Median(), 100 * speed.share.Median(), limit);
}

std::string CaptureLine(const CaptureCost& cost) {
  std::string line = fmt::format("{:<10}{:>6} tokens {:>10.3f} × the time without a tap, {}", "tap " + cost.mode,
                                 cost.tokens, cost.ratio.Median(), cost.phase);
  if (cost.bytes > 0) {
    line = fmt::format("{:<10}{:>6} tokens {:>10.3f} × ({:.0f} ms without a tap + {:.0f} MB at {:.2f} GB/s), {}",
                       "tap " + cost.mode, cost.tokens, cost.ratio.Median(), 1e3 * cost.plain_seconds.Median(),
                       1e-6 * static_cast<double>(cost.bytes), 1e-9 * cost.write_bandwidth.Median(), cost.phase);
  }
  return line + "\n";
}

}  // namespace

std::string BenchText(const BenchResult& result) {
  constexpr double kMebibyte = 1 << 20;
  std::string text = fmt::format("{}{}, {}, {} threads, {}\n", result.model, result.is_random ? ", random weights" : "",
                                 DTypeName(result.dtype), result.threads, result.engine);
  text += fmt::format("memory    read {:.1f} GB/s, best {:.1f}\n", 1e-9 * result.read_bandwidth.Median(),
                      1e-9 * result.read_bandwidth.Best());
  text += fmt::format("peak      {:.0f} GFLOP/s, best {:.0f} ({})\n", 1e-9 * result.peak_flops.Median(),
                      1e-9 * result.peak_flops.Best(), result.peak_loop);
  text += fmt::format("load      {:.2f} s, peak memory {:.0f} MiB, {:.0f} MiB after the longest prompt\n",
                      result.load_seconds, static_cast<double>(result.loaded_memory_bytes) / kMebibyte,
                      static_cast<double>(result.peak_memory_bytes) / kMebibyte);
  for (const Speed& speed : result.prefill) text += SpeedLine("prefill", speed, "peak");
  for (const Speed& speed : result.decode) text += SpeedLine("decode at", speed, "read bandwidth");
  for (const CaptureCost& cost : result.capture) text += CaptureLine(cost);
  for (const std::string& note : result.notes) text += "note: " + note + "\n";
  text += fmt::format("medians of {} rounds; limits measured around each figure\n",
                      result.prefill.front().share.values.size());
  return text;
}

std::string BenchJson(const BenchResult& result) {
  Json json;
  json["schema"] = "lockstep-bench/1";
  json["version"] = LOCKSTEP_VERSION;
  json["model"] = result.model;
  json["random_weights"] = result.is_random;
  json["config"] = Json::parse(result.config.TraceJson());
  json["dtype"] = DTypeName(result.dtype);
  json["threads"] = result.threads;
  json["engine"] = result.engine;
  json["read_bytes_per_second"] = SamplesJson(result.read_bandwidth);
  json["peak_flops_per_second"] = SamplesJson(result.peak_flops);
  json["peak_loop"] = result.peak_loop;
  json["load_seconds"] = result.load_seconds;
  json["loaded_memory_bytes"] = result.loaded_memory_bytes;
  json["peak_memory_bytes"] = result.peak_memory_bytes;
  for (const Speed& speed : result.prefill) {
    json["prefill"].push_back(SpeedJson(speed, "prompt_tokens", "flops_per_token"));
  }
  for (const Speed& speed : result.decode) {
    json["decode"].push_back(SpeedJson(speed, "context_tokens", "bytes_per_token"));
  }
  for (const CaptureCost& cost : result.capture) json["capture"].push_back(CaptureJson(cost));
  json["notes"] = result.notes;
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace lockstep::cli
