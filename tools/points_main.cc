// Prints the point table: `points json` is python/lockstep/points.json, `points markdown` the table of docs/points.md.
// `make points` writes both; a test fails when they are out of date.
#include <cstdio>
#include <string_view>

#include "lockstep/points.h"

int main(int argc, char** argv) {
  const std::string_view format = argc == 2 ? argv[1] : "";
  if (format != "json" && format != "markdown") {
    std::fputs("usage: points json|markdown\n", stderr);
    return 2;
  }
  std::fputs((format == "json" ? lockstep::PointsAsJson() : lockstep::PointsAsMarkdown()).c_str(), stdout);
}
