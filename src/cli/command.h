// What the commands share: options of CLI11 in, an exit code out.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

namespace lockstep::cli {

// Exit codes of every command.
inline constexpr int kSame = 0;
inline constexpr int kDifferent = 1;
inline constexpr int kCannotTell = 2;  // usage, bad input, missing data

// Each adds its command to the app; its callback leaves the exit code in `exit_code`.
using AddCommand = void (*)(CLI::App& app, int& exit_code);
void AddDebug(CLI::App& app, int& exit_code);
void AddReference(CLI::App& app, int& exit_code);
void AddCapture(CLI::App& app, int& exit_code);
void AddGenerate(CLI::App& app, int& exit_code);
void AddCompare(CLI::App& app, int& exit_code);
void AddReplay(CLI::App& app, int& exit_code);
void AddRecord(CLI::App& app, int& exit_code);
void AddCheck(CLI::App& app, int& exit_code);
void AddShow(CLI::App& app, int& exit_code);
void AddImport(CLI::App& app, int& exit_code);
void AddExport(CLI::App& app, int& exit_code);
void AddBench(CLI::App& app, int& exit_code);
void AddDoctor(CLI::App& app, int& exit_code);

// "12.3 s", "410 MiB": for the lines on stderr that say what a side cost.
std::string SecondsText(double seconds);
std::string PeakMemoryText();  // of this process so far

}  // namespace lockstep::cli
