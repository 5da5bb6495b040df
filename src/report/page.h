// A report as text: lines wrapped to the terminal, painted where colour is on.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "lockstep/report.h"
#include "report/columns.h"
#include "report/paint.h"
#include "report/words.h"

namespace lockstep {

class Page {
 public:
  explicit Page(const TextOptions& options)
      : color_(options.color), width_(std::max(kNarrowest, static_cast<size_t>(std::max(0, options.width)))) {}

  size_t width() const { return width_; }
  bool color() const { return color_; }

  // `label` stands before the first line, blanks before the others. REQUIRES: both are escaped.
  void Line(const std::string& label, const std::string& text, Color color = Color::kNone) {
    out_ += Paint(Wrapped(label, text, width_), color, color_);
  }
  void Rule() { out_ += std::string(std::min<size_t>(width_, 120), '=') + "\n"; }
  // Lines that are ready.
  void Add(const std::string& lines) { out_ += lines; }

  std::string Take() { return std::move(out_); }

 private:
  bool color_;
  size_t width_;
  std::string out_;
};

}  // namespace lockstep
