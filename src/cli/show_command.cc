// `lockstep show`: what is in a trace, a look into a tensor, and the repair of one that a killed writer left behind.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "cli/command.h"
#include "lockstep/dtype.h"
#include "lockstep/error.h"
#include "lockstep/points.h"
#include "lockstep/report.h"
#include "lockstep/trace.h"

namespace lockstep::cli {
namespace {

const char* PhaseName(Phase phase) { return phase == Phase::kDecode ? "decode" : "prefill"; }

void ShowMeta(const TraceReader& trace) {
  const TraceMeta& meta = trace.meta();
  fmt::print("{}\n  by {} {}, model {}, storage {}, {} steps, {}\n", trace.path(), Escaped(meta.producer),
             Escaped(meta.producer_version), Escaped(meta.model_type), DTypeName(meta.arithmetic.storage),
             trace.steps().size(), meta.closed ? "closed" : "not closed");
  for (const auto& [key, value] : meta.config) fmt::print("  {} = {}\n", Escaped(key), Escaped(value));
  for (const std::string& error : meta.errors) fmt::print("  error: {}\n", Escaped(error));
}

void ShowStep(const TraceStep& step, size_t index) {
  fmt::print("step {}: {}, {} tokens\n", index, PhaseName(step.phase), step.positions.size());
  for (const TraceTensor& tensor : step.tensors) {
    fmt::print("  {:<44} {:<5} [{}]{}\n", Escaped(tensor.name), DTypeName(tensor.dtype), fmt::join(tensor.shape, ", "),
               tensor.rank > 0 ? fmt::format(" rank {}", tensor.rank) : "");
  }
}

void ShowStatistics(const TraceTensor& tensor, size_t step) {
  const std::vector<float> values = ToFloats(tensor);
  double sum = 0;
  double squares = 0;
  float low = std::numeric_limits<float>::infinity();
  float high = -low;
  size_t finite = 0;
  for (const float value : values) {
    if (!std::isfinite(value)) continue;
    ++finite;
    sum += value;
    squares += static_cast<double>(value) * value;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  fmt::print("step {}: {} {} [{}]", step, Escaped(tensor.name), DTypeName(tensor.dtype), fmt::join(tensor.shape, ", "));
  if (finite > 0) {
    const auto count = static_cast<double>(finite);
    const double mean = sum / count;
    fmt::print("  mean {:.6g}  std {:.6g}  min {:.6g}  max {:.6g}", mean,
               std::sqrt(std::max(0.0, squares / count - mean * mean)), low, high);
  }
  fmt::print("  not finite {}\n", values.size() - finite);
  constexpr size_t kShown = 8;
  const auto rows = static_cast<size_t>(tensor.rows.size());
  const size_t width = rows == 0 ? 0 : values.size() / rows;
  if (tensor.token_axis != 0 || width == 0) return;
  for (size_t r = 0; r < std::min(kShown, rows); ++r) {
    const auto begin = values.begin() + static_cast<std::ptrdiff_t>(r * width);
    const std::vector<float> first(begin, begin + static_cast<std::ptrdiff_t>(std::min(kShown, width)));
    fmt::print("  row {:>4}: {:>12.6g}{}\n", tensor.rows[r], fmt::join(first, " "), width > kShown ? " …" : "");
  }
}

void ShowTensor(const TraceReader& trace, const std::string& name) {
  bool found = false;
  for (size_t i = 0; i < trace.steps().size(); ++i) {
    for (const TraceTensor& tensor : trace.steps()[i].tensors) {
      if (tensor.name != name) continue;
      ShowStatistics(tensor, i);
      found = true;
    }
  }
  if (!found) {
    throw Error(trace.path() + ": no step holds " + name + "; `lockstep show " + trace.path() +
                "` lists what there is");
  }
}

}  // namespace

void AddShow(CLI::App& app, int& exit_code) {
  struct Options {
    std::string trace, point;
    bool repair = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("show", "List a trace, or look into a tensor");
  command->add_option("trace", options->trace, "The trace")->required();
  command->add_option("point", options->point, "A tensor, such as layer_0_attn_q_rope");
  command->add_flag("--repair", options->repair,
                    "Make a trace that a killed program left behind whole for every reader");
  command->callback([options, &exit_code] {
    if (options->repair) {
      for (const std::string& line : RepairTrace(options->trace)) fmt::print("{}\n", line);
    }
    const TraceReader trace = TraceReader::Open(options->trace);
    for (const std::string& warning : trace.warnings()) fmt::print(stderr, "warning: {}\n", warning);
    if (options->point.empty()) {
      ShowMeta(trace);
      for (size_t i = 0; i < trace.steps().size(); ++i) ShowStep(trace.steps()[i], i);
    } else {
      ShowTensor(trace, options->point);
    }
    exit_code = kSame;
  });
}

}  // namespace lockstep::cli
