// Text that a user gives, which must be UTF-8.
#pragma once

#include <string>
#include <vector>

namespace lockstep::cli {

// Throws Error unless `text` is UTF-8; `name` says where it came from.
void CheckUtf8(const std::string& name, const std::string& text);

// A whole file of UTF-8. Throws Error.
std::string ReadText(const std::string& path);

// One prompt a line. Lines end in \n or \r\n alone: other Unicode line ends belong to the prompt. Throws Error for a
// file without a line.
std::vector<std::string> ReadPrompts(const std::string& path);

}  // namespace lockstep::cli
