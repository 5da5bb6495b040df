// How the result of `bench` is shown.
#pragma once

#include <string>

#include "lockstep/bench.h"

namespace lockstep::cli {

std::string BenchText(const BenchResult& result);

// Everything that was measured, every sample of it.
std::string BenchJson(const BenchResult& result);

}  // namespace lockstep::cli
