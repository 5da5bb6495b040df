#include "lockstep/diagnose.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <iterator>
#include <map>

#include "diagnose/causes.h"
#include "diagnose/layout.h"
#include "diagnose/search.h"
#include "replay/session.h"

namespace lockstep {
namespace {

// What was found of one point.
struct Found {
  PointAt point;
  Finding finding;
};

// Fitted figures differ a little from layer to layer: "scales by 1.003".
std::string WithoutFigures(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    size_t end = i;
    while (end < text.size() && (std::isdigit(static_cast<unsigned char>(text[end])) || text[end] == '.')) ++end;
    const std::string figure = text.substr(i, std::max<size_t>(end, i + 1) - i);
    out += end > i && figure.find('.') != figure.npos ? "#" : figure;
    i = std::max(end, i + 1);
  }
  return out;
}

// The patterns of `a` that `b` has as well.
std::vector<Pattern> Shared(const std::vector<Pattern>& a, const std::vector<Pattern>& b) {
  std::vector<Pattern> out;
  std::copy_if(a.begin(), a.end(), std::back_inserter(out), [&](const Pattern& pattern) {
    return std::any_of(b.begin(), b.end(), [&](const Pattern& other) { return other.id == pattern.id; });
  });
  return out;
}

// Of the same point in two layers. Without a cause it is one fault where it looks alike.
bool SameFault(const Finding& a, const Finding& b) {
  if (a.point != b.point || a.cause.has_value() != b.cause.has_value()) return false;
  if (a.cause)
    return a.cause->cause == b.cause->cause && WithoutFigures(a.cause->text) == WithoutFigures(b.cause->text);
  return !Shared(a.patterns, b.patterns).empty();
}

// E6 and its kind: rows of another width than the model's.
Explanation ShapeOf(const PointAt& point, int64_t width, const Config& config) {
  const bool q = SpecOf(point.id).axes.at(1) == Axis::kQHead, kv = SpecOf(point.id).axes.at(1) == Axis::kKvHead;
  const int64_t heads = q ? config.num_attention_heads : kv ? config.num_key_value_heads : 0;
  std::string text = "has rows of " + std::to_string(width) + " elements";
  if (heads > 0 && width % heads == 0) {
    const int64_t d = width / heads;
    text += ", as head_dim " + std::to_string(d) + " would give";
    if (d == config.hidden_size / config.num_attention_heads) text += ": hidden_size / num_attention_heads";
    text += "; config.json has head_dim " + std::to_string(config.head_dim);
  }
  return {"shape", text, std::string(AdviceFor("shape")), 0};
}

// Where values are not finite though their inputs are: whether they leave the storage's range.
std::optional<Explanation> NonFinite(const Case& fault) {
  if (fault.errors.summary.non_finite == 0) return std::nullopt;
  constexpr double kLargestF16 = 65504;
  const Block &captured = fault.sample.captured, &right = fault.sample.expected.block;
  int64_t broken = 0, infinite = 0, beyond = 0;
  double largest = 0;
  for (size_t i = 0; i < captured.value.size(); ++i) {
    if (std::isfinite(captured.value[i]) || !std::isfinite(right.value[i])) continue;
    ++broken;
    infinite += std::isinf(captured.value[i]);
    beyond += std::abs(right.value[i]) > kLargestF16 * 0.99;
    largest = std::max(largest, std::abs(right.value[i]));
  }
  if (broken == 0) return std::nullopt;
  if (beyond == broken) {
    return Explanation{"values-overflow",
                       "overflows f16: the values would reach " + Number(largest, 3) + ", f16 ends at 65504",
                       std::string(AdviceFor("values-overflow")), 0};
  }
  const bool nan = infinite < broken;
  return Explanation{nan ? "values-nan" : "values-overflow",
                     std::string("gives ") + (nan ? "NaN" : "infinity") + " from finite inputs; right values reach " +
                         Number(largest, 3),
                     std::string(AdviceFor(nan ? "values-nan" : "values-overflow")), 0};
}

class Diagnostician {
 public:
  explicit Diagnostician(ReplaySession& session) : session_(session), layouts_(session.evaluator()) {}

  void Look(PointErrors& errors) {
    if (std::optional<std::string> layout = layouts_.Explain(errors)) {
      if (std::find(layout_notes_.begin(), layout_notes_.end(), *layout) == layout_notes_.end()) {
        layout_notes_.push_back(*layout);
      }
      errors.summary.verdict = OpVerdict::kClean;
      errors.summary.reasons = {*layout};
      return;
    }
    if (errors.summary.bridged && !findings_.empty() && BridgedOverFaults(errors)) return;
    Finding finding = Described(errors);
    const PointAt point = errors.call.point;
    const int64_t width = session_.evaluator().captures().Of(point).width();
    const int64_t right = session_.evaluator().model().WidthOf(point.id);
    if (right > 0 && width != right) {
      finding.cause = ShapeOf(point, width, session_.config());
    } else if (!errors.tokens.empty()) {
      Diagnose(errors, &finding);
    }
    Group(std::move(finding), point.layer);
  }

  std::vector<Finding> Findings() {
    for (Finding& finding : findings_) {
      const std::vector<Pattern> layers =
          LayerPatterns(finding.layers, static_cast<int>(session_.config().num_hidden_layers));
      finding.patterns.insert(finding.patterns.end(), layers.begin(), layers.end());
    }
    return std::move(findings_);
  }
  std::vector<std::string> LayoutNotes() { return std::move(layout_notes_); }

 private:
  static Finding Described(const PointErrors& errors) {
    const LocalError& summary = errors.summary;
    const Limits limits = errors.limits();
    Finding finding;
    finding.point = summary.point;
    finding.names = {summary.name};
    finding.op = summary.op;
    finding.error = std::max(summary.worst_row, summary.worst_head);
    finding.clean = summary.worst_head > summary.worst_row ? limits.cell_faulty : limits.row_faulty;
    finding.worst = summary.worst_head > summary.worst_row ? summary.worst_head_at : summary.worst_row_at;
    return finding;
  }

  // Rows whose inputs were recomputed by right ops, where ops before were faulty, are not what the implementation had.
  // Rows whose inputs were captured remain to be judged.
  bool BridgedOverFaults(PointErrors& errors) {
    Captures& captures = session_.evaluator().captures();
    std::vector<TokenAt> direct;
    for (const TokenAt& token : errors.tokens) {
      const bool is_there = std::all_of(errors.call.inputs.begin(), errors.call.inputs.end(),
                                        [&](const PointAt& input) { return captures.Of(input).IndexOf(token) >= 0; });
      if (is_there) direct.push_back(token);
    }
    if (direct.size() == errors.tokens.size()) return false;
    LocalError& summary = errors.summary;
    PointErrors judged = Judge(session_.evaluator(), errors.call, &direct);
    if (judged.summary.verdict == OpVerdict::kFaulty) {
      judged.summary.name = summary.name, judged.summary.layer = summary.layer;
      judged.summary.point = summary.point, judged.summary.op = summary.op;
      errors = std::move(judged);
      return false;
    }
    summary.verdict = direct.empty() ? OpVerdict::kNotObservable : judged.summary.verdict;
    summary.rows_not_observable += static_cast<int64_t>(errors.tokens.size() - direct.size());
    summary.reasons = {"inputs of some rows would have to be recomputed by ops that are faulty here"};
    return true;
  }

  void Diagnose(const PointErrors& errors, Finding* finding) {
    Evaluator& evaluator = session_.evaluator();
    const int64_t width = evaluator.captures().Of(errors.call.point).width();
    const Sample sample = MakeSample(evaluator, errors, SampleRows(errors.call, width));
    const Case fault = {evaluator, errors, sample};
    finding->patterns = DescribePatterns(fault);
    std::vector<size_t>& likely = likely_[errors.call.point.id];
    // What two mistakes do not explain in one layer, they will not in the next.
    bool& unexplained = unexplained_[errors.call.point.id];
    const Explained explained = Explain(fault, likely, !unexplained);
    unexplained = unexplained || !explained.cause;
    finding->cause = explained.cause;
    finding->also = explained.also;
    finding->next = explained.next;
    if (!finding->cause) finding->cause = NonFinite(fault);
    if (explained.entry && std::find(likely.begin(), likely.end(), *explained.entry) == likely.end()) {
      likely.push_back(*explained.entry);
    }
  }

  void Group(Finding finding, int layer) {
    if (layer >= 0) finding.layers = {layer};
    for (Finding& other : findings_) {
      if (!SameFault(other, finding)) continue;
      if (layer >= 0) other.layers.push_back(layer);
      other.names.push_back(finding.names.front());
      if (other.cause) {
        other.cause->explained = std::max(other.cause->explained, finding.cause->explained);
      } else {
        other.patterns = Shared(other.patterns, finding.patterns);
      }
      if (finding.error > other.error) {
        other.error = finding.error;
        other.clean = finding.clean;
        other.worst = finding.worst;
      }
      return;
    }
    findings_.push_back(std::move(finding));
  }

  ReplaySession& session_;
  Layouts layouts_;
  std::map<Point, std::vector<size_t>> likely_;
  std::map<Point, bool> unexplained_;
  std::vector<Finding> findings_;
  std::vector<std::string> layout_notes_;
};

}  // namespace

int Diagnosis::ExitCode() const { return replay.first_faulty || !replay.weights.empty() ? 1 : 0; }

Diagnosis Diagnose(const std::vector<std::string>& traces, const std::string& model, const ReplayOptions& options) {
  ReplaySession session(traces, model);
  Diagnostician diagnostician(session);
  Diagnosis out;
  out.replay = session.Run(options, [&](PointErrors& errors) { diagnostician.Look(errors); });
  out.findings = diagnostician.Findings();
  out.layouts = diagnostician.LayoutNotes();
  return out;
}

}  // namespace lockstep
