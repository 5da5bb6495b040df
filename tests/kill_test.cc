// kill_test WRITER DIRECTORY…: kills the writer at random moments, on each file system, and reads what it left. Every
// tensor whose Record had returned must be there and whole.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kill_pattern.h"
#include "lockstep/trace.h"

namespace {

constexpr int kKills = 200;
constexpr int kLongestMicroseconds = 60'000;

[[noreturn]] void Fail(const std::string& message) {
  std::fprintf(stderr, "kill_test: %s\n", message.c_str());
  std::exit(1);
}

// Runs the writer, kills it after a while, and returns what it had finished by then.
std::vector<pattern::Finished> RunAndKill(const char* writer, const std::string& trace, int microseconds) {
  int ends[2];
  if (pipe(ends) != 0) Fail("no pipe");
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    close(ends[0]);
    close(ends[1]);
    execl(writer, writer, trace.c_str(), nullptr);
    _exit(127);
  }
  close(ends[1]);
  std::vector<pattern::Finished> finished;
  std::thread reader([&] {
    pattern::Finished one;
    for (size_t have = 0;;) {
      const ssize_t n = read(ends[0], reinterpret_cast<char*>(&one) + have, sizeof(one) - have);
      if (n <= 0) return;
      have += static_cast<size_t>(n);
      if (have < sizeof(one)) continue;
      finished.push_back(one);
      have = 0;
    }
  });
  std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
  if (kill(child, SIGKILL) != 0) Fail("the writer could not be killed");
  int status = 0;
  waitpid(child, &status, 0);
  reader.join();
  close(ends[0]);
  if (!WIFSIGNALED(status)) Fail("the writer ended by itself, exit status " + std::to_string(WEXITSTATUS(status)));
  return finished;
}

void Expect(const lockstep::TraceReader& trace, const pattern::Finished& f) {
  const std::string what =
      "step " + std::to_string(f.step) + ", rank " + std::to_string(f.rank) + ", " + pattern::Name(f.tensor);
  if (static_cast<size_t>(f.step) >= trace.steps().size()) Fail(what + ": the step is not there");
  const lockstep::TraceTensor* tensor =
      trace.steps()[static_cast<size_t>(f.step)].Find(pattern::Name(f.tensor), f.rank);
  if (tensor == nullptr) Fail(what + ": is not there");
  const std::vector<int32_t> expected = pattern::Values(f);
  if (tensor->bytes != expected.size() * sizeof(int32_t) ||
      std::memcmp(tensor->data, expected.data(), tensor->bytes) != 0) {
    Fail(what + ": has other contents");
  }
  const std::vector<int32_t> rows = f.tensor % 3 == 2 ? std::vector<int32_t>{1, 0} : std::vector<int32_t>{0, 1};
  if (tensor->rows != rows) Fail(what + ": has other rows");
}

// Kept out of the loop: Find looks through all tensors of a step.
void ExpectAll(const lockstep::TraceReader& trace, const std::vector<pattern::Finished>& finished) {
  for (const pattern::Finished& f : finished) Expect(trace, f);
}

void KillOften(const char* writer, const std::string& directory) {
  const std::string path = directory + "/kill_test." + std::to_string(getpid()) + ".trace";
  std::mt19937 random(std::random_device{}());
  size_t tensors = 0, unindexed = 0, continued = 0;
  for (int i = 0; i < kKills; ++i) {
    const std::vector<pattern::Finished> finished =
        RunAndKill(writer, path, static_cast<int>(random() % kLongestMicroseconds));
    tensors += finished.size();
    if (finished.empty() && !std::filesystem::exists(path + "/trace.json")) continue;  // killed before it had begun
    {
      const auto trace = lockstep::TraceReader::Open(path);
      ExpectAll(trace, finished);
      unindexed += trace.warnings().size() - 1;
      for (const lockstep::TraceStep& step : trace.steps()) continued += step.files.size() > 2;
    }
    if (i % 10 != 0) continue;  // the next writer replaces the trace as the killed one left it
    lockstep::RepairTrace(path);
    const auto repaired = lockstep::TraceReader::Open(path);
    ExpectAll(repaired, finished);
    for (const std::string& warning : repaired.warnings()) {
      if (warning.find("at the end") != warning.npos) Fail("after repair: " + warning);
    }
  }
  std::filesystem::remove_all(path);
  std::printf("%s: %d kills, %zu finished tensors, %zu tails or orphans, %zu steps in several files of a rank\n",
              directory.c_str(), kKills, tensors, unindexed, continued);
  if (tensors < kKills) Fail("the writer hardly wrote anything");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) Fail("usage: kill_test WRITER DIRECTORY…");
  try {
    for (int i = 2; i < argc; ++i) KillOften(argv[1], argv[i]);
  } catch (const lockstep::Error& error) {
    Fail(error.what());
  }
}
