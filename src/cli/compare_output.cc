#include "cli/compare_output.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "cli/command.h"
#include "cli/html_options.h"
#include "lockstep/error.h"

namespace lockstep::cli {
namespace {

std::pair<int, int> ParsePair(const std::string& text) {
  std::pair<int, int> out;
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, out.first);
  if (first.ec == std::errc() && first.ptr != end && *first.ptr == ':') {
    const auto second = std::from_chars(first.ptr + 1, end, out.second);
    if (second.ec == std::errc() && second.ptr == end) return out;
  }
  throw Error("--pair: expected REFERENCE:CANDIDATE sequence numbers such as 0:1, found " + text);
}

}  // namespace

TextOptions TerminalOptions(bool all) {
  TextOptions out;
  out.all = all;
  const char* no_color = std::getenv("NO_COLOR");
  out.color = isatty(STDOUT_FILENO) != 0 && (no_color == nullptr || *no_color == '\0');
  winsize size{};
  if (isatty(STDOUT_FILENO) != 0 && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
    out.width = size.ws_col;
  return out;
}

namespace {

void PrintText(const std::string& text) {
  if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    throw Error("standard output: cannot be written: " + std::string(std::strerror(errno)));
  }
}

template <typename Result>
int PrintResult(const Result& result, const ExportOptions& options, const std::string& model) {
  const bool markdown_only = options.markdown == "-";
  PrintText(markdown_only ? MarkdownReport(result) : TextReport(result, TerminalOptions(options.all)));
  if (!options.json.empty()) WriteFile(options.json, JsonReport(result));
  if (!options.junit.empty()) WriteFile(options.junit, JunitReport(result));
  if (!options.markdown.empty() && !markdown_only) WriteFile(options.markdown, MarkdownReport(result));
  if (!options.html.empty()) {
    WriteFile(options.html, HtmlReport(result, PageOptions(model)));
    if (!markdown_only) std::printf("report: %s\n", Escaped(options.html).c_str());
  }
  return result.ExitCode() == 0 ? kSame : kDifferent;
}

}  // namespace

void ExportOptions::AddTo(CLI::App& command) {
  command.add_option("--json", json, "Write everything that was found to this file");
  command.add_option("--junit", junit, "Write a JUnit XML file: a test case a point");
  command.add_option("--markdown", markdown, "Write a summary for a CI page; - prints it in place of the text");
  command.add_option("--html", html, "Write a page to look at it: one file, opens in any browser");
  command.add_flag("--all", all, "Show every point, also of layers where all is well");
}

void ComparisonOptions::AddTo(CLI::App& command) {
  command.add_option("--atol", atol, "Your own absolute tolerance: |c - r| <= atol + rtol |r|")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--rtol", rtol, "Your own relative tolerance")->check(CLI::NonNegativeNumber);
  ExportOptions::AddTo(command);
}

void WriteFile(const std::string& path, const std::string& text) {
  // A device or a pipe cannot be replaced by a file.
  std::error_code ignored;
  const bool replace = !std::filesystem::is_other(path, ignored);
  const std::string target = replace ? path + ".tmp" : path;
  std::FILE* file = std::fopen(target.c_str(), "wb");
  if (file == nullptr) throw Error(path + ": cannot be written: " + std::strerror(errno));
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  const bool closed = std::fclose(file) == 0;
  if (!written || !closed || (replace && std::rename(target.c_str(), path.c_str()) != 0)) {
    const std::string reason = std::strerror(errno);
    if (replace) std::remove(target.c_str());
    throw Error(path + ": " + std::to_string(text.size()) + " bytes cannot be written: " + reason);
  }
}

CompareOptions OptionsOf(const ComparisonOptions& options) {
  CompareOptions compare;
  compare.atol = options.atol;
  compare.rtol = options.rtol;
  compare.points = options.points;
  compare.layers = options.layers;
  for (const std::string& pair : options.pairs) compare.pairs.push_back(ParsePair(pair));
  compare.details = !options.html.empty();
  compare.progress = ProgressOf("compare");
  return compare;
}

Diagnosis DiagnoseSide(Side side, const std::vector<std::string>& traces, const std::string& model,
                       const ComparisonOptions& options) {
  return Diagnose(traces, model,
                  {.points = options.points,
                   .layers = options.layers,
                   .details = !options.html.empty(),
                   .progress = ProgressOf("replay of the " + std::string(SideName(side)))});
}

std::function<void(size_t, size_t)> ProgressOf(std::string what) {
  if (isatty(STDERR_FILENO) == 0) return nullptr;
  return [what = std::move(what)](size_t done, size_t total) {
    if (done == total) {
      std::fprintf(stderr, "\r\033[K");
    } else {
      std::fprintf(stderr, "\r%s: %zu of %zu points ", what.c_str(), done, total);
    }
  };
}

int Print(const Judged& judged, const ExportOptions& options, const std::string& model) {
  return PrintResult(judged, options, model);
}

int Print(const Diagnosis& diagnosis, const ExportOptions& options) { return PrintResult(diagnosis, options, ""); }

int Print(const CheckResult& result, const std::string& json, bool all) {
  PrintText(TextReport(result, TerminalOptions(all)));
  if (!json.empty()) WriteFile(json, JsonReport(result));
  return result.ExitCode() == 0 ? kSame : kDifferent;
}

}  // namespace lockstep::cli
