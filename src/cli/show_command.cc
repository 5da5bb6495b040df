// `lockstep show`: what is in a trace, a look into a tensor, and the repair of one that a killed writer left behind.
#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "cli/compare_output.h"
#include "lockstep/error.h"
#include "lockstep/inspect.h"
#include "lockstep/report.h"
#include "lockstep/trace.h"

namespace lockstep::cli {
namespace {

struct Options {
  std::string trace, point, other, npy, json;
  std::vector<std::string> more;
  bool all = false, repair = false;
};

template <typename Result>
void Show(const Result& result, const Options& options) {
  std::fputs(TextReport(result, TerminalOptions(options.all)).c_str(), stdout);
  if (!options.json.empty()) WriteFile(options.json, JsonReport(result));
}

void ShowListing(const Options& options) {
  if (!options.npy.empty() || !options.other.empty() || !options.more.empty()) {
    throw Error("--npy, --diff and --more need a point, such as layer_0_attn_q_rope[pos=5]");
  }
  const TraceReader trace = TraceReader::Open(options.trace);
  for (const std::string& warning : trace.warnings()) fmt::print(stderr, "warning: {}\n", Escaped(warning));
  Show(ListTrace(trace, ProgressOf("show")), options);
}

void ShowTensor(const Options& options) {
  std::vector<std::string> traces = {options.trace};
  traces.insert(traces.end(), options.more.begin(), options.more.end());
  if (options.other.empty()) return Show(LookInto(traces, options.point, options.npy), options);
  if (!options.npy.empty()) throw Error("--npy writes one trace's tensor: leave out --diff");
  Show(LookAtDifference(traces, {options.other}, options.point), options);
}

}  // namespace

void AddShow(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("show", "List a trace, or look into a tensor");
  command->add_option("trace", options->trace, "The trace")->required();
  command->add_option("point", options->point,
                      "A tensor, with * for many, or a slice of it: layer_0_attn_q_rope[pos=5, head=0:4, channel=1,3]");
  command->add_option("--diff", options->other, "Another trace: the same slice beside it");
  command->add_option("--more", options->more, "A further trace of the same side: another rank, or part of a batch")
      ->allow_extra_args(false);
  command->add_option("--npy", options->npy, "Write the slice to this .npy file");
  command->add_option("--json", options->json, "Write what is shown to this file");
  command->add_flag("--all", options->all, "List every tensor of every step");
  command->add_flag("--repair", options->repair,
                    "Make a trace that a killed program left behind whole for every reader");
  command->callback([options, &exit_code] {
    if (options->repair) {
      for (const std::string& line : RepairTrace(options->trace)) fmt::print("{}\n", line);
    }
    options->point.empty() ? ShowListing(*options) : ShowTensor(*options);
    exit_code = kSame;
  });
}

}  // namespace lockstep::cli
