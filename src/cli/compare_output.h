// What `compare` and `debug` share: the options of a comparison and how its result is shown.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "lockstep/compare.h"

namespace lockstep::cli {

struct ComparisonOptions {
  std::optional<double> atol, rtol;
  std::string points, layers;
  std::vector<std::string> pairs;  // "0:1"
  std::string json;                // file, or empty
  bool all = false;

  // Without --points and --layers, which `debug` shares with the capture.
  void AddTo(CLI::App& command);
};

// Compares and prints.
int CompareAndPrint(const std::vector<std::string>& reference, const std::vector<std::string>& candidate,
                    const ComparisonOptions& options);

// The options as the library takes them.
CompareOptions OptionsOf(const ComparisonOptions& options);

// Prints the table on stdout, writes the JSON file. Returns the exit code.
int Print(const CompareResult& result, const ComparisonOptions& options);

// Writes a file whole or not at all. Throws Error.
void WriteFile(const std::string& path, const std::string& text);

}  // namespace lockstep::cli
