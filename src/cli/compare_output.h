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

// Where a result goes beside the terminal: files, or empty.
struct ExportOptions {
  std::string json, junit, markdown, html;  // "-" for markdown: stdout, in place of the text
  bool all = false;                         // the text shows every point

  void AddTo(CLI::App& command);
};

struct ComparisonOptions : ExportOptions {
  std::optional<double> atol, rtol;
  std::string points, layers;
  std::vector<std::string> pairs;  // "0:1"

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

// Prints the table on stdout, writes the files that there are to be. model: its tokenizer tells the texts of tokens;
// may be empty. Returns the exit code. Throws Error where something cannot be written.
int Print(const Judged& judged, const ExportOptions& options, const std::string& model);
int Print(const Diagnosis& diagnosis, const ExportOptions& options);
int Print(const CheckResult& result, const std::string& json, bool all);

// Writes a file whole or not at all (devices and pipes: as they take it). Throws Error.
void WriteFile(const std::string& path, const std::string& text);

}  // namespace lockstep::cli
