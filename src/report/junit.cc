// JUnit's XML, as CI services read it: a test case a point, and one for each thing that is missing or differs.
#include <fmt/format.h>

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "lockstep/report.h"
#include "report/utf8.h"
#include "report/verdict.h"
#include "report/words.h"

namespace lockstep {
namespace {

struct Case {
  std::string group;  // "layer_3"
  std::string name;
  std::string figures;
  std::vector<std::string> wrong = {};  // what makes it fail; empty: it passes
  std::string type = {};                // "faulty", "tolerance", "completeness", "weight"
  std::string skipped = {};             // why it was not judged
};

// Control characters and noncharacters, which XML 1.0 does not know even as references, are replaced by Escaped().
std::string Xml(std::string_view text) {
  std::string out;
  for (std::string_view rest = text; !rest.empty();) {
    const Decoded character = Decode(rest);
    const size_t bytes = std::max<size_t>(1, character.bytes);
    const std::string_view here = rest.substr(0, bytes);
    rest.remove_prefix(bytes);
    switch (character.code) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += Escaped(here);
    }
  }
  return out;
}

std::string GroupOf(int layer) { return layer < 0 ? "model" : fmt::format("layer_{}", layer); }

void AddFindings(const std::optional<Diagnosis>& side, const char* who, const std::string& name, Case* out) {
  if (!side) return;
  for (const Finding& finding : side->findings) {
    if (std::find(finding.names.begin(), finding.names.end(), name) == finding.names.end()) continue;
    out->wrong.push_back(who + FindingSentence(finding));
  }
}

// The figures of an op, and why it is faulty.
void AddOp(const LocalError* error, const char* who, Case* out) {
  if (error == nullptr) return;
  const std::string figure = error->rows == 0 ? "" : NoiseCell(error->worst_row) + " ";
  out->figures += fmt::format("{}op error {}{}\n", who, figure, OpVerdictName(error->verdict));
  if (error->verdict != OpVerdict::kFaulty) return;
  out->type = "faulty";
  if (out->wrong.empty()) out->wrong.push_back(fmt::format("{}{}", who, fmt::join(error->reasons, "; ")));
}

Case CaseOf(const JudgedPoint& judged, const Judged& result) {
  const PointResult& point = *judged.compared;
  Case out{GroupOf(point.layer), point.point, fmt::format("{}\n", DiffClassName(point.diff_class))};
  out.figures += fmt::format("max_abs {:.2e}\nmax_rel {:.2e}\ncos_sim {:.6f}\ntoken_l2 {:.2e}\n", point.max_abs,
                             point.max_rel, point.cosine, point.worst_token_relative_l2);
  AddFindings(result.reference, "reference: ", point.name, &out);
  AddFindings(result.candidate, "candidate: ", point.name, &out);
  AddOp(judged.reference, "reference: ", &out);
  AddOp(judged.candidate, "candidate: ", &out);
  if (!judged.fails || judged.faulty) return out;
  out.type = "tolerance";
  out.wrong = point.reasons;
  if (point.user_tolerance_missed && out.wrong.empty()) out.wrong = {"values are outside the tolerance asked for"};
  return out;
}

// Ops of a replay, without those that the comparison already has.
void AddReplay(const std::optional<Diagnosis>& side, const char* who, const std::set<std::string_view>& known,
               std::vector<Case>* cases) {
  if (!side) return;
  for (const LocalError& error : side->replay.points) {
    if (known.contains(error.name)) continue;
    Case& out = cases->emplace_back(Case{GroupOf(error.layer), error.point, ""});
    AddFindings(side, who, error.name, &out);
    AddOp(&error, who, &out);
    if (error.rows > 0) {
      out.figures += fmt::format("worst head {}\nwhole {}\nmax {}\n", NoiseCell(error.worst_head),
                                 NoiseCell(error.whole), NoiseCell(error.max));
    }
    if (error.verdict == OpVerdict::kNotObservable) out.skipped = fmt::format("{}", fmt::join(error.reasons, "; "));
  }
  for (const WeightMismatch& weight : side->replay.weights) {
    cases->push_back({"weights", weight.name, "", {who + weight.text}, "weight"});
  }
}

void AddCompare(const CompareResult& result, std::vector<Case>* cases) {
  for (const Failure& failure : result.failures) {
    const std::string what = fmt::format("{} ({}){}{}", FailureKindName(failure.kind), SideName(failure.side),
                                         failure.point.empty() ? "" : ": ", failure.point);
    cases->push_back({"completeness", what, "", {failure.text}, "completeness"});
  }
  for (const WeightDifference& weight : result.weights) {
    cases->push_back({"weights", weight.name, "", {weight.text}, "weight"});
  }
  const auto add = [&](const std::vector<OneSidedPoint>& points, Side side) {
    for (const OneSidedPoint& point : points) {
      Case& out = cases->emplace_back(Case{"one side only", point.name, ""});
      out.skipped = fmt::format("only in the {}: {}", SideName(side), point.why);
    }
  };
  add(result.only_reference, Side::kReference);
  add(result.only_candidate, Side::kCandidate);
}

std::string CaseXml(const Case& test) {
  std::string out =
      fmt::format("    <testcase classname=\"lockstep.{}\" name=\"{}\" time=\"0\">\n", Xml(test.group), Xml(test.name));
  if (!test.type.empty()) {
    const std::string text = fmt::format("{}", fmt::join(test.wrong, "; "));
    out += fmt::format("      <failure message=\"{}\" type=\"{}\">", Xml(text), test.type);
    for (const std::string& line : test.wrong) out += Xml(line) + "\n";
    out += "</failure>\n";
  } else if (!test.skipped.empty()) {
    out += fmt::format("      <skipped message=\"{}\"/>\n", Xml(test.skipped));
  }
  // Xml() would escape the line breaks; figures are our own words.
  if (!test.figures.empty()) out += fmt::format("      <system-out>{}</system-out>\n", test.figures);
  return out + "    </testcase>\n";
}

std::string Document(const char* name, const std::string& verdict, const std::vector<Case>& cases) {
  size_t failures = 0, skipped = 0;
  std::string body;
  for (const Case& test : cases) {
    failures += !test.type.empty();
    skipped += test.type.empty() && !test.skipped.empty();
    body += CaseXml(test);
  }
  const std::string counts =
      fmt::format("name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"{}\" time=\"0\"", name, cases.size(),
                  failures, skipped);
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite {}>\n    <properties>\n"
      "      <property name=\"verdict\" value=\"{}\"/>\n    </properties>\n{}  </testsuite>\n</testsuites>\n",
      counts, Xml(verdict), body);
}

}  // namespace

std::string JunitReport(const Judged& judged) {
  std::vector<Case> cases;
  std::set<std::string_view> known;
  for (const JudgedPoint& point : JudgedPoints(judged)) {
    known.insert(point.compared->name);
    cases.push_back(CaseOf(point, judged));
  }
  AddCompare(judged.compare, &cases);
  AddReplay(judged.reference, "reference: ", known, &cases);
  AddReplay(judged.candidate, "candidate: ", known, &cases);
  return Document("lockstep compare", VerdictText(judged), cases);
}

std::string JunitReport(const Diagnosis& diagnosis) {
  std::vector<Case> cases;
  AddReplay(diagnosis, "", {}, &cases);
  return Document("lockstep replay", VerdictText(diagnosis), cases);
}

}  // namespace lockstep
