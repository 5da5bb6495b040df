// Columns of a table, right of the point's name. What does not fit the terminal is left out whole, the least telling
// first.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "report/words.h"

namespace lockstep {

constexpr size_t kNarrowest = 40;  // terminals narrower than that get lines of that width
constexpr size_t kNarrowestName = 10;
constexpr size_t kUsualName = 24;  // kept whole on terminals that are not narrow

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

// Leaves out columns until the rest fits.
template <typename Row>
void FitColumns(size_t room, std::vector<Column<Row>>* columns) {
  std::erase_if(*columns, [room](const Column<Row>& column) { return 1 + TextWidth(column.title) > room; });
  while (WidthOf(*columns) > room) {
    columns->erase(std::min_element(columns->begin(), columns->end(),
                                    [](const auto& a, const auto& b) { return a.keep < b.keep; }));
  }
}

// Leaves out columns for the names, then gives the names what is left. `fixed`: left of the names.
template <typename Row>
size_t FitNames(size_t width, size_t fixed, size_t natural, std::vector<Column<Row>>* columns) {
  const size_t room = width > fixed ? width - fixed : 0;
  const size_t name = std::min({natural, width < 80 ? kNarrowestName : kUsualName, room});
  FitColumns(room - name, columns);
  return std::max<size_t>(3, std::min(natural, room - std::min(room, WidthOf(*columns))));
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
