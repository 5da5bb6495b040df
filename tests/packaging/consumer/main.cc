// Writes two traces that differ in one value, and has both libraries find it. Looks for a tokenizer where there is
// none, which links ICU. Usage: consumer DIRECTORY
#include <cstdio>
#include <string>
#include <vector>

#include "lockstep/capture.hpp"
#include "lockstep/compare.h"
#include "lockstep/lockstep.h"
#include "lockstep/report.h"
#include "lockstep/tokenizer.h"

namespace {

void Write(const std::string& path, float error) {
  lockstep::Trace trace(path, {});
  const std::vector<int32_t> ids = {5, 6};
  const std::vector<int32_t> positions = {0, 1};
  const std::vector<float> x = {1, 2, 3, 4 + error};
  lockstep::Step step = trace.BeginStep(ids.data(), positions.data(), nullptr, 2, lockstep::Phase::kPrefill);
  step.Record("input_embeddings", x.data(), lockstep::DType::kF32, {2, 2});
}

bool FindsTokenizer(const std::string& directory) {
  try {
    return lockstep::Tokenizer::Load(directory).vocab_size() > 0;
  } catch (const lockstep::Error& error) {
    std::puts(error.what());
    return false;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  if (FindsTokenizer(argv[1])) return 1;
  const std::string a = std::string(argv[1]) + "/a.trace";
  const std::string b = std::string(argv[1]) + "/b.trace";
  Write(a, 0.0F);
  Write(b, 0.5F);
  const int same = lockstep::Compare({a}, {a}).ExitCode();
  const lockstep::CompareResult result = lockstep::Compare({a}, {b});
  const int by_c = lockstep_compare(a.c_str(), b.c_str(), -1, -1, nullptr, nullptr);
  std::fputs(lockstep::TextReport(result).c_str(), stdout);
  std::printf("version %s, same %d, different %d, by the C API %d\n", lockstep_version(), same, result.ExitCode(),
              by_c);
  return same == 0 && result.ExitCode() == 1 && by_c == LOCKSTEP_DIFFERENT ? 0 : 1;
}
