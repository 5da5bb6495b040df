// A model's directory as a whole. Errors about it say what lies there instead: most often another format.
#pragma once

#include <string>

namespace lockstep {

// Throws Error unless `dir` is a directory.
void RequireModelDirectory(const std::string& dir);

bool FileExists(const std::string& path);

// What to do with weights in another format that lie in `dir`, as the tail of an error message; empty if there are
// none.
std::string AdviceOnOtherFormats(const std::string& dir);

}  // namespace lockstep
