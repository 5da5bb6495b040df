#include "cli/text_files.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "lockstep/error.h"

namespace lockstep::cli {

void CheckUtf8(const std::string& name, const std::string& text) {
  try {
    nlohmann::json(text).dump();  // which names the byte
  } catch (const nlohmann::json::type_error& e) {
    const std::string what = e.what();  // "[json.exception.type_error.316] invalid UTF-8 byte at index 0: 0xFF"
    throw Error(name + ": expected UTF-8, found " + what.substr(what.find(' ') + 1) + "; convert the text");
  }
}

std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  char buffer[65536];
  while (file.read(buffer, sizeof(buffer)) || file.gcount() > 0)
    text.append(buffer, static_cast<size_t>(file.gcount()));
  if (!file.eof()) throw Error(path + ": expected a text file, found " + std::strerror(errno));
  CheckUtf8(path, text);
  return text;
}

std::vector<std::string> ReadPrompts(const std::string& path) {
  std::istringstream text(ReadText(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) {
    if (line.ends_with('\r')) line.pop_back();
    lines.push_back(std::move(line));
  }
  if (lines.empty()) throw Error(path + ": expected one prompt a line, found an empty file");
  return lines;
}

}  // namespace lockstep::cli
