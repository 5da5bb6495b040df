// The Python side: the reference and the converters run as child processes.
#pragma once

#include <string>
#include <vector>

namespace lockstep::cli {

struct Python {
  std::string executable;
  std::string found_by;      // "--python", "LOCKSTEP_PYTHON", "./.venv", …: doctor prints it
  std::string package_path;  // directory that holds the `lockstep` package, or empty: it is installed
};

// --python, LOCKSTEP_PYTHON, the interpreter beside this program (where a wheel puts it), ./.venv, the .venv of the
// source tree that this program was built in, then PATH. Throws Error when a given one cannot be run, or none is found.
Python FindPython(const std::string& given);

// Runs `python -m module arguments…` with this program's stdout and stderr. Returns its exit code. Throws Error when it
// cannot be started or is killed.
int RunPython(const Python& python, const std::string& module, const std::vector<std::string>& arguments);

// Runs `python -c code`, for doctor. `output` receives its stdout; its stderr is dropped.
int RunPythonCode(const Python& python, const std::string& code, std::string* output);

}  // namespace lockstep::cli
