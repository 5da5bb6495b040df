#include "cli/python.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>

#include "lockstep/error.h"

extern char** environ;

namespace lockstep::cli {
namespace {

namespace fs = std::filesystem;

fs::path OwnDirectory() {
  std::error_code error;
  return fs::read_symlink("/proc/self/exe", error).parent_path();
}

// The source tree or installation prefix around this binary: the nearest parent that holds `inside`.
std::optional<fs::path> NearestParentWith(const fs::path& inside) {
  std::error_code error;
  for (fs::path dir = OwnDirectory(); !dir.empty() && dir != dir.root_path(); dir = dir.parent_path()) {
    if (fs::exists(dir / inside, error)) return dir;
  }
  return std::nullopt;
}

std::string PackagePath() {
  for (const char* place : {"python", "share/lockstep/python"}) {
    if (const auto dir = NearestParentWith(fs::path(place) / "lockstep" / "reference.py")) return *dir / place;
  }
  return "";
}

bool IsExecutable(const fs::path& path) { return access(path.c_str(), X_OK) == 0 && !fs::is_directory(path); }

std::optional<std::string> InPath(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::string rest = path == nullptr ? "" : path;
  while (!rest.empty()) {
    const size_t colon = rest.find(':');
    fs::path candidate = fs::path(rest.substr(0, colon)) / name;
    if (IsExecutable(candidate)) return candidate;
    rest = colon == std::string::npos ? "" : rest.substr(colon + 1);
  }
  return std::nullopt;
}

std::string MustRun(const std::string& executable, const std::string& where) {
  if (executable.find('/') == std::string::npos) {
    if (const auto found = InPath(executable)) return *found;
  } else if (IsExecutable(executable)) {
    return executable;
  }
  throw Error(where + ": expected a Python interpreter, found nothing that can be run at " + executable);
}

std::vector<std::string> Environment(const Python& python) {
  std::vector<std::string> out;
  std::string python_path = python.package_path;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string text = *variable;
    constexpr const char* kPythonPath = "PYTHONPATH=";
    if (text.starts_with(kPythonPath)) {
      python_path += (python_path.empty() ? "" : ":") + text.substr(std::strlen(kPythonPath));
    } else {
      out.push_back(text);
    }
  }
  if (!python_path.empty()) out.push_back("PYTHONPATH=" + python_path);
  return out;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (std::string& string : strings) out.push_back(string.data());
  out.push_back(nullptr);
  return out;
}

std::string ReadAll(int fd) {
  std::string out;
  char buffer[65536];
  while (true) {
    const ssize_t count = read(fd, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return out;
    out.append(buffer, static_cast<size_t>(count));
  }
}

int WaitFor(pid_t pid, const std::string& what) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) throw Error(what + ": cannot be waited for: " + std::strerror(errno));
  }
  if (WIFSIGNALED(status)) {
    throw Error(what + " was killed by signal " + std::to_string(WTERMSIG(status)) +
                (WTERMSIG(status) == SIGKILL ? "; out of memory? Try --num-layers or --dtype bf16" : ""));
  }
  return WEXITSTATUS(status);
}

// With `output`, which receives its stdout, its stderr is dropped.
int Spawn(const Python& python, std::vector<std::string> arguments, std::string* output) {
  arguments.insert(arguments.begin(), python.executable);
  const std::string what = python.executable + " " + (arguments.size() > 2 ? arguments[2] : "");
  int pipe_ends[2] = {-1, -1};
  if (output != nullptr && pipe2(pipe_ends, O_CLOEXEC) != 0)
    throw Error(std::string("no pipe: ") + std::strerror(errno));

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (output != nullptr) posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO);
  if (output != nullptr) posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  std::vector<std::string> environment = Environment(python);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, python.executable.c_str(), &actions, nullptr, Pointers(arguments).data(),
                                Pointers(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  if (output != nullptr) close(pipe_ends[1]);
  if (error == 0 && output != nullptr) *output = ReadAll(pipe_ends[0]);
  if (output != nullptr) close(pipe_ends[0]);
  if (error != 0) throw Error(python.executable + ": cannot be started: " + std::strerror(error));
  return WaitFor(pid, what);
}

}  // namespace

Python FindPython(const std::string& given) {
  const std::string package_path = PackagePath();
  if (!given.empty()) return {MustRun(given, "--python"), "--python", package_path};
  if (const char* variable = std::getenv("LOCKSTEP_PYTHON"); variable != nullptr && *variable != '\0') {
    return {MustRun(variable, "LOCKSTEP_PYTHON"), "LOCKSTEP_PYTHON", package_path};
  }
  // A wheel puts this program beside its interpreter.
  const fs::path beside = OwnDirectory() / "python";
  if (IsExecutable(beside)) return {beside, "the interpreter beside the program", package_path};
  constexpr const char* kVenvPython = ".venv/bin/python";
  if (IsExecutable(kVenvPython)) return {fs::absolute(kVenvPython), "./.venv", package_path};
  if (const auto dir = NearestParentWith(kVenvPython)) {
    return {*dir / kVenvPython, "the .venv beside the program", package_path};
  }
  if (const auto python = InPath("python3")) return {*python, "PATH", package_path};
  throw Error(
      "no Python: expected --python, LOCKSTEP_PYTHON, ./.venv or python3 in PATH; `lockstep doctor` tells more");
}

int RunPython(const Python& python, const std::string& module, const std::vector<std::string>& arguments) {
  std::vector<std::string> all = {"-m", module};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return Spawn(python, all, nullptr);
}

int RunPythonCode(const Python& python, const std::string& code, std::string* output) {
  return Spawn(python, {"-c", code}, output);
}

}  // namespace lockstep::cli
