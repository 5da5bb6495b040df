// `lockstep doctor`: what is installed, what is missing and how to get it; then a self-test that must find a planted
// difference.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <thread>
#include <vector>

#include "cli/command.h"
#include "cli/python.h"
#include "lockstep/capture.hpp"
#include "lockstep/compare.h"
#ifdef LOCKSTEP_ENGINE
#include "lockstep/engine.h"
#endif
#include "lockstep/error.h"
#include "lockstep/version.h"

namespace lockstep::cli {
namespace {

struct Package {
  const char* name;
  const char* needed_for;
};
constexpr std::array<Package, 5> kPackages = {{
    {"torch", "the reference"},
    {"numpy", "the reference, import and export"},
    {"safetensors", "the reference"},
    {"tokenizers", "reference --input"},
    {"transformers", "--reference transformers"},
}};

std::string CpuFlags() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (!line.starts_with("flags")) continue;
    std::string out;
    for (const char* flag : {"avx2", "fma", "avx512f", "avx512bw", "avx512_bf16", "amx_bf16"}) {
      if ((line + " ").find(std::string(" ") + flag + " ") != std::string::npos)
        out += std::string(out.empty() ? "" : " ") + flag;
    }
    return out.empty() ? "none of AVX2 and later" : out;
  }
  return "unknown";
}

void CheckMachine() {
  fmt::print("lockstep      {}\n", LOCKSTEP_VERSION);
  fmt::print("processor     {} threads, {}\n", std::thread::hardware_concurrency(), CpuFlags());
#ifdef LOCKSTEP_ENGINE
  fmt::print("engine        {}\n", MatmulDescription());
#else
  fmt::print("engine        not built (LOCKSTEP_ENGINE=OFF)\n");
#endif
}

// Returns whether the reference can run.
bool CheckPython(const std::string& given) {
  Python python;
  try {
    python = FindPython(given);
  } catch (const Error& e) {
    fmt::print("python        missing: {}\n", e.what());
    return false;
  }
  std::string version;
  if (RunPythonCode(python, "import sys; print(sys.version.split()[0])", &version) != 0) {
    fmt::print("python        {} does not run\n", python.executable);
    return false;
  }
  version.erase(version.find_last_not_of('\n') + 1);
  fmt::print("python        {} {} (found by {})\n", python.executable, version, python.found_by);
  bool complete = true;
  for (const Package& package : kPackages) {
    std::string found;
    const std::string code = fmt::format("import importlib.metadata as m, {0}; print(m.version('{0}'))", package.name);
    const bool there = RunPythonCode(python, code, &found) == 0;
    found.erase(found.find_last_not_of('\n') + 1);
    fmt::print("  {:<14}{}\n", package.name,
               there ? found : fmt::format("missing; needed for {}: pip install {}", package.needed_for, package.name));
    complete = complete && (there || std::string(package.name) == "transformers");
  }
  std::string where;
  const bool own = RunPythonCode(python, "import lockstep; print(lockstep.__path__[0])", &where) == 0;
  where.erase(where.find_last_not_of('\n') + 1);
  fmt::print("  {:<14}{}\n", "lockstep",
             own ? where : "missing; install the wheel, or set PYTHONPATH to the source's python/");
  return complete && own;
}

// A directory that is gone again at the end.
class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "lockstep-doctor-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw Error(pattern + ": no temporary directory can be made");
    path_ = pattern;
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string Inside(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

constexpr int64_t kTokens = 3;
constexpr int64_t kHidden = 8;
constexpr const char* kPlanted = "layer_1_attn_norm_output";

// Three points of three tokens; one value of the planted point is off by `error`.
void WriteSample(const std::string& path, float error) {
  TraceInfo info;
  info.producer = "doctor";
  info.points = {"input_embeddings", "layer_0_attn_norm_output", kPlanted};
  info.throw_errors = true;
  Trace trace(path, info);
  const std::vector<int32_t> ids = {5, 6, 7};
  const std::vector<int32_t> positions = {0, 1, 2};
  const std::vector<int32_t> sequences = {0, 0, 0};
  Step step = trace.BeginStep(ids.data(), positions.data(), sequences.data(), kTokens, Phase::kPrefill);
  for (size_t p = 0; p < info.points.size(); ++p) {
    std::vector<float> values(kTokens * kHidden);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i + p) / 7.0F - 1.0F;
    if (info.points[p] == kPlanted) values[kHidden + 3] += error;
    step.Record(info.points[p], values.data(), DType::kF32, {kTokens, kHidden});
  }
  step.End();
  trace.Close();
}

// Empty when all is well.
std::string SelfTest() {
  const ScratchDirectory scratch;
  WriteSample(scratch.Inside("a"), 0.0F);
  WriteSample(scratch.Inside("b"), 0.0F);
  WriteSample(scratch.Inside("c"), 0.5F);
  if (Compare({scratch.Inside("a")}, {scratch.Inside("b")}).ExitCode() != 0)
    return "two equal traces were called different";
  const CompareResult result = Compare({scratch.Inside("a")}, {scratch.Inside("c")});
  if (result.ExitCode() != 1 || !result.first_significant) return "a planted difference was not found";
  const PointResult& first = result.points[*result.first_significant];
  if (first.name != kPlanted || first.worst.position != 1 || first.worst.channel != 3) {
    return "a planted difference was found in the wrong place: " + first.name;
  }
  return "";
}

}  // namespace

void AddDoctor(CLI::App& app, int& exit_code) {
  auto python = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("doctor", "Say what is installed and what is missing, and test itself");
  command->add_option("--python", *python, "Python interpreter to look at");
  command->callback([python, &exit_code] {
    CheckMachine();
    const bool complete = CheckPython(*python);
    const std::string problem = SelfTest();
    fmt::print("self-test     {}\n",
               problem.empty() ? "passed: wrote, read and compared traces and found a planted difference" : problem);
    if (!problem.empty()) {
      exit_code = kDifferent;
    } else {
      exit_code = complete ? kSame : kCannotTell;
    }
  });
}

}  // namespace lockstep::cli
