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

// For each row of the sample the row of the table that it equals, -1 where there is none.
std::vector<int64_t> Search(const Case& fault, const Matrix& table) {
  const Block& captured = fault.sample.captured;
  std::multimap<double, int64_t> wanted;  // first value: row of the sample
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

// Of the row's token in the same sequence, `distance` positions on; -1 where there is none.
int64_t NeighbourId(Captures& captures, const TokenAt& token, int distance) {
  const auto& written = captures.Written(token.run, token.sequence);
  const auto found = written.find(token.position + distance);
  return found == written.end() ? -1 : found->second.back().input_id;
}

void AddFound(const Case& fault, std::vector<Hypothesis>* out) {
  const std::shared_ptr<Matrix> table = fault.errors.call.matrix;
  const std::vector<int64_t> found = Search(fault, *table);
  const std::vector<TokenAt>& tokens = fault.sample.tokens;
  std::map<int64_t, int> shifts;
  for (size_t r = 0; r < found.size(); ++r) {
    if (found[r] >= 0 && found[r] != tokens[r].input_id) ++shifts[found[r] - tokens[r].input_id];
  }
  const auto best =
      std::max_element(shifts.begin(), shifts.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  if (best != shifts.end() && best->second >= 2) {
    const int64_t shift = best->first;
    AddRow(fault,
           {"embedding-id-shifted",
            "reads row id " + std::string(shift > 0 ? "+ " : "- ") + std::to_string(std::abs(shift)) +
                " instead of row id",
            RowsOf(table, [shift](const TokenAt& t) { return t.input_id + shift; })},
           out);
  }
  std::map<std::tuple<int, int, int>, int64_t> ids;
  for (size_t r = 0; r < found.size(); ++r) {
    if (found[r] >= 0) ids[{tokens[r].run, tokens[r].step, tokens[r].token}] = found[r];
  }
  if (ids.size() == 1 && tokens.size() == 1) {
    const int64_t id = ids.begin()->second;
    AddRow(fault,
           {"embedding-wrong-row", "reads row " + std::to_string(id) + " of the embedding",
            RowsOf(table, [id](const TokenAt&) { return id; })},
           out);
  }
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
