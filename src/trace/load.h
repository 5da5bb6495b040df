// Everything of a trace, mapped and checked; no locks here.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "lockstep/trace.h"

namespace lockstep {

// The axes of a point of the table, where the tensor has as many; other tensors' are unnamed.
void NameTableAxes(TraceTensor* tensor);

struct LoadedTrace {
  TraceMeta meta;
  std::vector<TraceStep> steps;
  std::vector<std::string> warnings;
  std::vector<std::shared_ptr<const MappedFile>> files;  // what the tensors point into
};

// Throws Error. What a killed writer may leave behind is a warning in a trace that is not closed.
LoadedTrace LoadTrace(const std::string& directory);

}  // namespace lockstep
