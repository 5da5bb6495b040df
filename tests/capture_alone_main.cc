#include "lockstep/capture.hpp"

int RecordOnce(const std::string& path);

int main(int argc, char** argv) { return argc == 2 ? RecordOnce(argv[1]) : 2; }
