// Embedding: row `input_id` of the table. Which row was taken is searched; the shift, or the token it belongs to, is
// then described.
#include <algorithm>
#include <cmath>
#include <map>

#include "diagnose/causes.h"

namespace lockstep {
namespace {

constexpr int64_t kRowsAtOnce = 256;

// Rows of `table` instead of the right ones: `id_of` gives a row's index, negative for none.
Change RowsOf(const std::shared_ptr<Matrix>& table, std::function<int64_t(const TokenAt&)> id_of) {
  return [table, id_of](OpCall& call) {
    call.after = [table, id_of](const std::vector<TokenAt>& tokens, Block* block) {
      for (int64_t r = 0; r < block->rows; ++r) {
        const int64_t id = id_of(tokens[static_cast<size_t>(r)]);
        if (id >= 0 && id < table->rows) {
          table->read(id, 1, block->Row(r));
        } else {
          std::fill_n(block->Row(r), block->width, 0.0);
        }
      }
    };
  };
}

// Of each of these captured rows the row of the table that it equals, -1 where there is none.
std::vector<int64_t> Search(const Block& captured, const Matrix& table) {
  std::multimap<double, int64_t> wanted;  // by the first value
  for (int64_t r = 0; r < captured.rows; ++r) wanted.emplace(captured.Row(r)[0], r);
  std::vector<int64_t> found(static_cast<size_t>(captured.rows), -1);
  std::vector<double> rows(static_cast<size_t>(kRowsAtOnce * table.columns));
  for (int64_t begin = 0; begin < table.rows; begin += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, table.rows - begin);
    table.read(begin, count, rows.data());
    for (int64_t i = 0; i < count; ++i) {
      const double* row = rows.data() + i * table.columns;
      const auto [first, last] = wanted.equal_range(row[0]);
      for (auto at = first; at != last; ++at) {
        if (std::equal(row, row + table.columns, captured.Row(at->second))) {
          found[static_cast<size_t>(at->second)] = begin + i;
        }
      }
    }
  }
  return found;
}

// Every affected token with the row it got; empty where one is not in the table.
std::map<TokenAt, int64_t> RowsTaken(const Case& fault) {
  const PointErrors& errors = fault.errors;
  const std::vector<int64_t> of_sample = Search(fault.sample.captured, *errors.call.matrix);
  if (std::find(of_sample.begin(), of_sample.end(), -1) != of_sample.end()) return {};
  const std::vector<char>& affected = fault.affected;
  std::map<TokenAt, int64_t> out;
  const auto block = static_cast<size_t>(fault.evaluator.RowsPerBlock(errors.call.point));
  std::vector<TokenAt> part;
  for (size_t r = 0; r <= errors.tokens.size(); ++r) {
    const bool ends = r == errors.tokens.size();
    if (!part.empty() && (ends || part.size() == block || part.front().run != errors.tokens[r].run)) {
      const std::vector<int64_t> found =
          Search(fault.evaluator.Captured(errors.call.point, part).block, *errors.call.matrix);
      for (size_t i = 0; i < part.size(); ++i) {
        if (found[i] < 0) return {};
        out[part[i]] = found[i];
      }
      part.clear();
    }
    if (ends) break;
    const auto cells = affected.begin() + static_cast<ptrdiff_t>(r) * errors.cells;
    if (std::find(cells, cells + errors.cells, 1) != cells + errors.cells) part.push_back(errors.tokens[r]);
  }
  return out;
}

// Of the row's token in the same sequence, `distance` positions on; -1 where there is none.
int64_t NeighbourId(Captures& captures, const TokenAt& token, int distance) {
  const auto& written = captures.Written(token.run, token.sequence);
  const auto found = written.find(token.position + distance);
  return found == written.end() ? -1 : found->second.back().input_id;
}

std::string Signed(int64_t value) { return (value < 0 ? "- " : "+ ") + std::to_string(std::abs(value)); }

// What was found of every token: whole rows of the table that are equal to the bit leave no doubt.
void AddFound(const Case& fault, std::vector<Hypothesis>* out) {
  const std::shared_ptr<Matrix> table = fault.errors.call.matrix;
  const std::map<TokenAt, int64_t> taken = RowsTaken(fault);
  if (taken.empty()) return;
  const auto same = [&](auto&& of) {
    const auto first = of(taken.begin()->first, taken.begin()->second);
    return std::all_of(taken.begin(), taken.end(),
                       [&](const auto& entry) { return of(entry.first, entry.second) == first; });
  };
  std::string cause = "embedding-wrong-row", text;
  const int64_t last = table->rows - 1, first_row = taken.begin()->second;
  const int64_t shift = first_row - taken.begin()->first.input_id;
  if (taken.size() > 1 && same([](const TokenAt& t, int64_t row) { return row - t.input_id; })) {
    cause = "embedding-id-shifted";
    text = "reads row id " + Signed(shift) + " instead of row id";
  } else if (taken.size() > 1 && same([&](const TokenAt& t, int64_t row) { return row + t.input_id; }) &&
             first_row + taken.begin()->first.input_id == last) {
    text = "reads the table in reverse order";
  } else if (taken.size() > 1 && same([](const TokenAt&, int64_t row) { return row; })) {
    text = "reads row " + std::to_string(first_row) + " for all of these tokens";
  } else {
    text = "reads other rows: " + std::to_string(first_row) + " for id " +
           std::to_string(taken.begin()->first.input_id) + (taken.size() > 1 ? ", ..." : "");
  }
  AddRow(fault,
         {cause, text,
          RowsOf(table,
                 [taken](const TokenAt& t) {
                   const auto at = taken.find(t);
                   return at == taken.end() ? int64_t{t.input_id} : at->second;
                 })},
         out);
}

}  // namespace

void ProposeForEmbedding(const Case& fault, std::vector<Hypothesis>* out) {
  const std::shared_ptr<Matrix> table = fault.errors.call.matrix;
  const Config& config = fault.evaluator.model().config();
  Captures* captures = &fault.evaluator.captures();
  for (const int shift : {1, -1}) {
    AddRow(fault,
           {"embedding-id-shifted", shift > 0 ? "reads row id + 1" : "reads row id - 1",
            RowsOf(table, [shift](const TokenAt& t) { return int64_t{t.input_id} + shift; })},
           out);
  }
  for (const int distance : {1, -1}) {
    AddRow(
        fault,
        {"embedding-wrong-row", distance > 0 ? "reads the row of the next token" : "reads the row of the token before",
         RowsOf(table, [=](const TokenAt& t) { return NeighbourId(*captures, t, distance); })},
        out);
  }
  const double root = std::sqrt(static_cast<double>(config.hidden_size));
  const std::vector<double> weights = FitWeights(fault);
  std::vector<double> factors =
      LeastSquares({fault.sample.expected.block.value.data()}, fault.sample.captured.value.data(), weights.data(),
                   static_cast<int64_t>(weights.size()));
  const DType storage = fault.errors.arithmetic.storage;
  const auto scaled = [&](double factor, const std::string& text) {
    AddRow(fault,
           {"embedding-scaled", text,
            [=](OpCall& c) {
              c.after = [=](const std::vector<TokenAt>&, Block* block) { ScaleRounded(factor, storage, block); };
            }},
           out);
  };
  scaled(root, "scales by sqrt(hidden_size)");
  scaled(1 / root, "divides by sqrt(hidden_size)");
  if (!factors.empty()) scaled(factors[0], "scales by " + Number(factors[0], 4));
  AddFound(fault, out);
  const int64_t rows = table->rows, columns = table->columns;
  AddRow(fault,
         {"embedding-wrong-row", "reads a column of the table stored [hidden, vocabulary] as [vocabulary, hidden]",
          [=](OpCall& c) {
            c.after = [=](const std::vector<TokenAt>& tokens, Block* block) {
              std::vector<double> row(static_cast<size_t>(columns));
              for (int64_t r = 0; r < block->rows; ++r) {
                for (int64_t i = 0; i < columns; ++i) {
                  const int64_t flat = i * rows + tokens[static_cast<size_t>(r)].input_id;
                  table->read(flat / columns, 1, row.data());
                  block->Row(r)[i] = row[static_cast<size_t>(flat % columns)];
                }
              }
            };
          }},
         out);
}

}  // namespace lockstep
