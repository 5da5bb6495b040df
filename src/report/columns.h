// Columns of a table, right of the point's name. What does not fit the terminal is left out whole, the least telling
// first.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "report/words.h"

namespace lockstep {

constexpr size_t kNarrowest = 80;  // terminals narrower than that get lines of that width
constexpr size_t kLongTable = 60;  // rows; beyond it, layers without anything to tell are folded
constexpr size_t kNarrowestName = 12;

template <typename Row>
struct Column {
  std::string title;  // as wide as the cells
  int keep = 0;       // columns of smaller numbers go first
  std::function<std::string(const Row&)> cell;
};

template <typename Row>
size_t WidthOf(const std::vector<Column<Row>>& columns) {
  size_t width = 0;
  for (const Column<Row>& column : columns) width += 1 + TextWidth(column.title);
  return width;
}

// Leaves out columns until the rest fits; one always stays.
template <typename Row>
void FitColumns(size_t room, std::vector<Column<Row>>* columns) {
  while (columns->size() > 1 && WidthOf(*columns) > room) {
    columns->erase(std::min_element(columns->begin(), columns->end(),
                                    [](const auto& a, const auto& b) { return a.keep < b.keep; }));
  }
}

inline std::string WithoutBlanksAtTheEnd(std::string line) {
  line.resize(line.find_last_not_of(' ') + 1);
  return line;
}

template <typename Row>
std::string TitlesOf(const std::vector<Column<Row>>& columns) {
  std::string line;
  for (const Column<Row>& column : columns) line.append(" ").append(column.title);
  return WithoutBlanksAtTheEnd(line);
}

template <typename Row>
std::string CellsOf(const std::vector<Column<Row>>& columns, const Row& row) {
  std::string line;
  for (const Column<Row>& column : columns) line.append(" ").append(column.cell(row));
  return WithoutBlanksAtTheEnd(line);
}

}  // namespace lockstep
