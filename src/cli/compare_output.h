// What `compare`, `debug` and `replay` share: the options of a comparison, and how results are shown.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lockstep/compare.h"
#include "lockstep/report.h"

namespace lockstep::cli {

struct ComparisonOptions {
  std::optional<double> atol, rtol;
  std::string points, layers;
  std::vector<std::string> pairs;  // "0:1"
  std::string json, html;          // files, or empty
  bool all = false;

  // Without --points and --layers, which `debug` shares with the capture.
  void AddTo(CLI::App& command);
};

// The replay of a side's traces in a comparison.
Diagnosis DiagnoseSide(Side side, const std::vector<std::string>& traces, const std::string& model,
                       const ComparisonOptions& options);

// The options as the library takes them.
CompareOptions OptionsOf(const ComparisonOptions& options);

// Shown on a terminal only: "compare: 3 of 93 points".
std::function<void(size_t done, size_t total)> ProgressOf(std::string what);

// Width and colours of stdout.
TextOptions TerminalOptions(bool all);

// Prints the table on stdout, writes the JSON file and the page if there are to be any. model: its tokenizer tells the
// texts of tokens; may be empty. Returns the exit code.
int Print(const Judged& judged, const ComparisonOptions& options, const std::string& model);
int Print(const Diagnosis& diagnosis, const std::string& json, const std::string& html, bool all);
int Print(const CheckResult& result, const std::string& json, bool all);

// Writes a file whole or not at all. Throws Error.
void WriteFile(const std::string& path, const std::string& text);

}  // namespace lockstep::cli
