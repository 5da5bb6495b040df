// small_engine MODEL COUNT ID…: reads the prompt's tokens, then prints COUNT greedy tokens.
// With TRACE=DIRECTORY in the environment, what it computes is recorded there.
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "model.h"

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: small_engine MODEL COUNT ID...\n";
    return 2;
  }
  try {
    Model model(argv[1]);
    lockstep::TraceInfo info;
    info.producer = "small-engine";
    if (const char* path = std::getenv("TRACE")) model.trace = lockstep::Trace(path, info);

    std::vector<int32_t> ids;
    for (int i = 3; i < argc; ++i) ids.push_back(std::stoi(argv[i]));
    for (int count = std::stoi(argv[2]); count > 0; --count) {
      const int32_t next = model.Forward(ids);
      std::cout << next << (count > 1 ? " " : "\n") << std::flush;
      ids = {next};
    }
  } catch (const std::exception& error) {
    std::cerr << "small_engine: " << error.what() << "\n";
    return 2;
  }
}
