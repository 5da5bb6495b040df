// What the proposers of matrix products share: a few output channels of the sample, by which a weight is accepted or
// rejected after reading as few of its rows.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "diagnose/causes.h"
#include "diagnose/weights.h"

namespace lockstep {

class Probe {
 public:
  // Rows of the sample with their input as the product reads it, and affected channels spread over the row. Empty where
  // the input is not there.
  explicit Probe(const Case& fault);

  bool empty() const { return rows_ == 0 || channels_.empty(); }
  // Whether `weight` gives the captured values at the probed channels. REQUIRES: its columns are the input's width.
  bool Reproduces(const Matrix& weight) const;
  // What all rows of `weight` give: [rows, weight.rows].
  std::vector<double> Products(const Matrix& weight) const { return Products(weight, input_, rows_); }
  static std::vector<double> Products(const Matrix& weight, const std::vector<double>& input, int64_t rows);

  // Whether a value is what was captured at a channel of a row, up to rounding.
  bool Is(int64_t row, int64_t channel, double value) const;
  bool Affected(int64_t row, int64_t channel) const;
  double Captured(int64_t row, int64_t channel) const { return fault_.sample.captured.Row(row)[channel]; }

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }  // of the input
  int64_t width() const { return fault_.sample.captured.width; }
  const std::vector<double>& input() const { return input_; }  // [rows, columns]
  const Case& fault() const { return fault_; }

 private:
  const Case& fault_;
  int64_t rows_ = 0, columns_ = 0;
  std::vector<double> input_;
  std::vector<double> weights_;  // of a fit, [sample rows, width]: 0 where the right call explains the cell
  std::vector<int64_t> channels_;
};

// A named order of `count` channels in heads of `d` (1 head where there are none): channel c is channel map[c] of the
// right order.
struct NamedOrder {
  std::string text;
  std::vector<int64_t> map;
};
std::vector<NamedOrder> NamedOrders(int64_t count, int64_t d);

// Every output channel found among the rows of the layer's weights: other weights, slices, permutations, shards.
void AddRowMaps(const Probe& probe, std::vector<Hypothesis>* out);
// Sums over slices of the input: shards missing, doubled, in another order, cut the wrong way.
void AddShards(const Probe& probe, std::vector<Hypothesis>* out);
// Coarser weights.
void AddGrids(const Probe& probe, std::vector<Hypothesis>* out);

// Adds the right product with another weight.
void AddWeight(const Probe& probe, const std::string& cause, const std::string& text, const MatrixPtr& weight,
               std::vector<Hypothesis>* out);

}  // namespace lockstep
