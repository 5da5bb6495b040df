// capture.hpp compiled as its users compile it: C++17, nothing else of Lockstep, every warning an error. Two of these
// are linked together.
#include "lockstep/capture.hpp"

int RecordOnce(const std::string& path) {
  lockstep::Trace trace(path, {});
  const int32_t positions[] = {0, 1};
  const float x[] = {1, 2, 3, 4};
  const int64_t num_tokens = 2;
  auto step = trace.BeginStep(positions, positions, nullptr, num_tokens, lockstep::Phase::kPrefill);
  step.Record("a", x, lockstep::DType::kF32, {num_tokens, 2}, {1, 2});
  step.RecordRows("b", x, lockstep::DType::kF32, {1, 4}, {1});
  step.Record("c", x, lockstep::DType::kF32, std::vector<int64_t>{2, 2});
  step.End();
  trace.Close();
  return trace.error().empty() ? 0 : 1;
}
