// Writes a trace until it is killed, and tells on stdout of every tensor that is finished: kill_test.cc reads it.
// It uses nothing but capture.hpp, from two threads, with strides, rows, several ranks and header regions that fill up.
#include <unistd.h>

#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kill_pattern.h"
#include "lockstep/capture.hpp"

namespace {

void WriteSteps(lockstep::Trace* trace, int rank) {
  std::mt19937 random(static_cast<unsigned>(getpid() + rank));
  const std::vector<int32_t> positions = {0, 1};
  for (int32_t step = 0;; ++step) {
    auto open = trace->BeginStep(positions.data(), positions.data(), nullptr, 2, lockstep::Phase::kPrefill, rank);
    const int32_t tensors = static_cast<int32_t>(random() % 400);
    for (int32_t i = 0; i < tensors; ++i) {
      const pattern::Finished finished{rank, step, i, static_cast<int32_t>(1 + random() % (i % 16 == 0 ? 20000 : 100))};
      const std::vector<int32_t> values = pattern::Values(finished);
      const int64_t columns = finished.columns;
      if (i % 3 == 0) {
        open.Record(pattern::Name(i), values.data(), lockstep::DType::kI32, {2, columns}, {columns, 1});
      } else if (i % 3 == 1) {  // the transposed view of the same numbers
        std::vector<int32_t> transposed(values.size());
        for (int64_t k = 0; k < 2 * columns; ++k)
          transposed[static_cast<size_t>(k % columns * 2 + k / columns)] = values[static_cast<size_t>(k)];
        open.Record(pattern::Name(i), transposed.data(), lockstep::DType::kI32, {2, columns}, {1, 2});
      } else {
        open.RecordRows(pattern::Name(i), values.data(), lockstep::DType::kI32, {2, columns}, {1, 0});
      }
      // A pipe takes a few bytes at once, or not at all.
      if (write(STDOUT_FILENO, &finished, sizeof(finished)) != sizeof(finished)) return;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  lockstep::TraceInfo info;
  info.producer = "kill_writer";
  info.points = {"few"};  // a small header region: continuation files
  lockstep::Trace trace(argv[1], info);
  if (!trace) return 1;
  std::thread other([&] { WriteSteps(&trace, 1); });
  WriteSteps(&trace, 0);
  other.join();
}
