// The traces of one side, open.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "compare/join.h"
#include "lockstep/trace.h"

namespace lockstep {

// Throws Error, also where no path is given.
std::vector<TraceReader> OpenAll(const std::vector<std::string>& paths, std::string_view side);

// They live as long as the readers.
std::vector<TraceView> Views(const std::vector<TraceReader>& readers);

void NoteWarnings(const std::vector<TraceReader>& readers, std::vector<std::string>* notes);

}  // namespace lockstep
