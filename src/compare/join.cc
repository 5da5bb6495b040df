#include "compare/join.h"

#include <algorithm>
#include <optional>
#include <tuple>

namespace lockstep {
namespace {

// The first position where both know the token and it differs; and how many positions both have.
struct Overlap {
  size_t common = 0;
  std::optional<int32_t> differs_at;
};

Overlap Compare(const SequenceTokens& a, const SequenceTokens& b) {
  Overlap overlap;
  for (auto i = a.begin(), j = b.begin(); i != a.end() && j != b.end();) {
    if (i->first != j->first) {
      i->first < j->first ? ++i : ++j;
      continue;
    }
    if (i->second >= 0 && j->second >= 0 && i->second != j->second) {
      overlap.differs_at = i->first;
      return overlap;
    }
    ++overlap.common, ++i, ++j;
  }
  return overlap;
}

// Positions that both have, with what either side knows of the token.
std::vector<std::pair<int32_t, int32_t>> CommonIds(const SequenceTokens& a, const SequenceTokens& b) {
  std::vector<std::pair<int32_t, int32_t>> ids;
  for (const auto& [position, id] : a) {
    const auto other = b.find(position);
    if (other != b.end()) ids.emplace_back(position, id >= 0 ? id : other->second);
  }
  return ids;
}

std::string Ends(const SequenceTokens& tokens) {
  return std::to_string(tokens.size()) + " tokens, positions " + std::to_string(tokens.begin()->first) + " to " +
         std::to_string(tokens.rbegin()->first);
}

[[noreturn]] void ThrowDifferentTokens(const SideRuns& reference, int ref, const SideRuns& candidate, int cand) {
  const SequenceTokens &a = reference.sequences.at(ref), &b = candidate.sequences.at(cand);
  const Overlap overlap = Compare(a, b);
  const std::string who = "sequence " + std::to_string(ref) + " of the reference and sequence " + std::to_string(cand) +
                          " of the candidate";
  if (!overlap.differs_at) {
    throw Error(who + " have no position in common: the reference has " + Ends(a) + ", the candidate " + Ends(b));
  }
  const int32_t at = *overlap.differs_at;
  throw Error(who + " hold different tokens from position " + std::to_string(at) + " on: token id " +
              std::to_string(a.at(at)) + " in the reference, " + std::to_string(b.at(at)) +
              " in the candidate; give both the same input, and decode with the reference's tokens: "
              "lockstep capture --from REFERENCE");
}

// By sequence, the first position of a decode step.
std::map<int, int32_t> FirstDecoded(const SideRuns& side) {
  std::map<int, int32_t> first;
  for (const Run& run : side.runs) {
    for (size_t i = 0; i < run.num_steps(); ++i) {
      const TraceStep& step = run.Tokens(i);
      for (size_t token = 0; step.phase == Phase::kDecode && token < step.sequences.size(); ++token) {
        if (step.sequences[token] < 0) continue;
        const int32_t position = step.positions[token];
        const auto [at, added] = first.emplace(run.numbers.at(step.sequences[token]), position);
        at->second = std::min(at->second, position);
      }
    }
  }
  return first;
}

class Pairing {
 public:
  Pairing(const SideRuns& reference, const SideRuns& candidate)
      : reference_(reference),
        candidate_(candidate),
        reference_decoded_(FirstDecoded(reference)),
        candidate_decoded_(FirstDecoded(candidate)) {
    for (const auto& [number, tokens] : reference.sequences) left_reference_.push_back(number);
    for (const auto& [number, tokens] : candidate.sequences) left_candidate_.push_back(number);
  }

  void PairAsWanted(const std::vector<std::pair<int, int>>& wanted) {
    for (const auto& [ref, cand] : wanted) {
      Require(reference_, ref);
      Require(candidate_, cand);
      const auto at = std::find(left_reference_.begin(), left_reference_.end(), ref);
      const auto bt = std::find(left_candidate_.begin(), left_candidate_.end(), cand);
      if (at == left_reference_.end() || bt == left_candidate_.end()) {
        throw Error("pair " + std::to_string(ref) + ":" + std::to_string(cand) +
                    ": a sequence can be paired only once");
      }
      const Overlap overlap = Compare(reference_.sequences.at(ref), candidate_.sequences.at(cand));
      if (overlap.differs_at || overlap.common == 0) ThrowDifferentTokens(reference_, ref, candidate_, cand);
      Take(at, bt, overlap.common);
    }
  }

  void PairByTokens() {
    TakeBest([](const SequenceTokens& a, const SequenceTokens& b, const Overlap&) { return a == b; });
    TakeBest([](const SequenceTokens&, const SequenceTokens&, const Overlap&) { return true; });
    if (!left_reference_.empty() && !left_candidate_.empty()) ThrowClosest();
  }

  std::vector<SequencePair> Finish(std::vector<std::string>* notes) {
    Note(left_reference_, reference_.side, notes);
    Note(left_candidate_, candidate_.side, notes);
    std::sort(pairs_.begin(), pairs_.end(), [](const auto& a, const auto& b) { return a.reference < b.reference; });
    return pairs_;
  }

 private:
  using Left = std::vector<int>;

  static void Require(const SideRuns& side, int number) {
    if (side.sequences.contains(number)) return;
    throw Error("the " + std::string(SideName(side.side)) + " has no sequence " + std::to_string(number) + "; it has " +
                std::to_string(side.sequences.size()) + " sequences from " +
                std::to_string(side.sequences.begin()->first) + " to " +
                std::to_string(side.sequences.rbegin()->first));
  }

  int32_t FirstDecode(int ref, int cand) const {
    const auto reference = reference_decoded_.find(ref);
    if (reference != reference_decoded_.end()) return reference->second;
    const auto candidate = candidate_decoded_.find(cand);
    return candidate != candidate_decoded_.end() ? candidate->second : -1;
  }

  void Take(Left::iterator ref, Left::iterator cand, size_t common) {
    pairs_.push_back({*ref, *cand, common, CommonIds(reference_.sequences.at(*ref), candidate_.sequences.at(*cand)),
                      FirstDecode(*ref, *cand)});
    left_reference_.erase(ref);
    left_candidate_.erase(cand);
  }

  // In the order of the reference; among those that fit, the one with the longest common part, the first of equals.
  template <typename Fits>
  void TakeBest(Fits fits) {
    for (size_t i = 0; i < left_reference_.size();) {
      std::optional<size_t> best;
      size_t best_common = 0;
      for (size_t j = 0; j < left_candidate_.size(); ++j) {
        const auto& a = reference_.sequences.at(left_reference_[i]);
        const auto& b = candidate_.sequences.at(left_candidate_[j]);
        const Overlap overlap = Compare(a, b);
        if (overlap.differs_at || overlap.common <= best_common || !fits(a, b, overlap)) continue;
        best = j;
        best_common = overlap.common;
      }
      if (best) {
        Take(left_reference_.begin() + i, left_candidate_.begin() + *best, best_common);
      } else {
        ++i;
      }
    }
  }

  // Names the pair whose tokens agree longest.
  [[noreturn]] void ThrowClosest() const {
    int ref = left_reference_.front(), cand = left_candidate_.front();
    size_t longest = 0;
    for (int i : left_reference_) {
      for (int j : left_candidate_) {
        const Overlap overlap = Compare(reference_.sequences.at(i), candidate_.sequences.at(j));
        if (overlap.common <= longest) continue;
        longest = overlap.common, ref = i, cand = j;
      }
    }
    ThrowDifferentTokens(reference_, ref, candidate_, cand);
  }

  static void Note(const Left& left, Side side, std::vector<std::string>* notes) {
    if (left.empty()) return;
    std::string numbers;
    constexpr size_t kShown = 8;
    for (size_t i = 0; i < std::min(kShown, left.size()); ++i) numbers += (i ? ", " : "") + std::to_string(left[i]);
    if (left.size() > kShown) numbers += ", …";
    notes->push_back("the " + std::string(SideName(side)) + " has " + std::to_string(left.size()) +
                     " more sequence(s), which are not compared: " + numbers);
  }

  const SideRuns& reference_;
  const SideRuns& candidate_;
  const std::map<int, int32_t> reference_decoded_, candidate_decoded_;
  Left left_reference_, left_candidate_;
  std::vector<SequencePair> pairs_;
};

void AddRows(const Run& run, const StepTensors& where, const std::map<int, int>& numbers, PointRows* point) {
  const TraceStep& step = run.Tokens(where.step);
  const auto piece = static_cast<int32_t>(point->pieces.size() - 1);
  const std::vector<int32_t>& rows = point->pieces.back().rows();
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto token = static_cast<size_t>(rows[i]);
    if (step.sequences[token] < 0) continue;
    const auto number = numbers.find(run.numbers.at(step.sequences[token]));
    if (number == numbers.end()) continue;
    const int32_t id = step.input_ids.empty() ? kUnknownId : step.input_ids[token];
    point->rows.push_back({number->second, step.positions[token], id, {piece, static_cast<int32_t>(i)}});
  }
}

// The same token twice in one step. Different tokens at one position are the branches of a speculation.
void CheckTwice(const std::string& name, Side side, const PointRows& point, std::vector<Failure>* failures) {
  const auto key = [&](const RowRef& row) {
    const StepTensors& where = point.where[static_cast<size_t>(row.at.piece)];
    return std::tuple(where.run, where.step, row.sequence, row.position, row.input_id);
  };
  std::vector<RowRef> rows = point.rows;
  const auto before = [&](const RowRef& a, const RowRef& b) { return key(a) < key(b); };
  if (!std::is_sorted(rows.begin(), rows.end(), before)) std::sort(rows.begin(), rows.end(), before);
  const auto twice =
      std::adjacent_find(rows.begin(), rows.end(), [&](const auto& a, const auto& b) { return key(a) == key(b); });
  if (twice == rows.end()) return;
  const size_t step = point.where[static_cast<size_t>(twice->at.piece)].step;
  failures->push_back({FailureKind::kDuplicate, side, name,
                       "step " + std::to_string(step) + " holds sequence " + std::to_string(twice->sequence) +
                           ", position " + std::to_string(twice->position) + " twice"});
}

bool SameId(const RowRef& a, const RowRef& b) { return a.input_id < 0 || b.input_id < 0 || a.input_id == b.input_id; }

}  // namespace

SideRuns GroupRuns(Side side, const std::vector<TraceView>& traces) { return {GroupRuns(traces), side}; }

std::vector<SequencePair> PairSequences(const SideRuns& reference, const SideRuns& candidate,
                                        const std::vector<std::pair<int, int>>& wanted,
                                        std::vector<std::string>* notes) {
  for (const SideRuns* side : {&reference, &candidate}) {
    if (side->sequences.empty()) {
      throw Error("the " + std::string(SideName(side->side)) + " holds no token (" +
                  side->runs.front().traces.front().path + ")");
    }
  }
  Pairing pairing(reference, candidate);
  if (wanted.empty()) {
    pairing.PairByTokens();
  } else {
    pairing.PairAsWanted(wanted);
  }
  return pairing.Finish(notes);
}

PointRows CollectRows(const SideRuns& side, const std::string& name, const std::vector<StepTensors>& steps,
                      const std::vector<std::string>& axes, const std::map<int, int>& numbers,
                      std::vector<Failure>* failures) {
  PointRows point;
  for (const StepTensors& where : steps) {
    for (const auto& tensors : ByRows(where.tensors)) {
      std::vector<Piece::Problem> problems;
      Piece piece = Piece::Build(tensors, axes, &problems);
      bool fatal = false;
      for (const Piece::Problem& problem : problems) {
        failures->push_back({problem.replicas ? FailureKind::kReplicas : FailureKind::kShards, side.side, name,
                             "step " + std::to_string(where.step) + ": " + problem.text});
        fatal = fatal || problem.fatal;
      }
      if (fatal) continue;
      point.pieces.push_back(std::move(piece));
      point.where.push_back(where);
      AddRows(side.runs[where.run], where, numbers, &point);
    }
  }
  CheckTwice(name, side.side, point, failures);
  return point;
}

Joined JoinRows(std::vector<RowRef> reference, std::vector<RowRef> candidate) {
  const auto key = [](const RowRef& row) { return Key{row.sequence, row.position}; };
  const auto before = [&](const RowRef& a, const RowRef& b) { return key(a) < key(b); };
  for (std::vector<RowRef>* rows : {&reference, &candidate}) {
    if (!std::is_sorted(rows->begin(), rows->end(), before)) std::stable_sort(rows->begin(), rows->end(), before);
  }
  const auto group_end = [&](const std::vector<RowRef>& rows, size_t begin) {
    size_t end = begin;
    while (end < rows.size() && key(rows[end]) == key(rows[begin])) ++end;
    return end;
  };

  Joined joined;
  size_t i = 0, j = 0;
  while (i < reference.size() || j < candidate.size()) {
    const bool only_reference = j == candidate.size() || (i < reference.size() && before(reference[i], candidate[j]));
    const bool only_candidate = i == reference.size() || (j < candidate.size() && before(candidate[j], reference[i]));
    if (only_reference) {
      joined.only_reference.push_back(key(reference[i]));
      i = group_end(reference, i);
      continue;
    }
    if (only_candidate) {
      joined.only_candidate.push_back(key(candidate[j]));
      j = group_end(candidate, j);
      continue;
    }
    const size_t i_end = group_end(reference, i), j_end = group_end(candidate, j);
    bool found = false;
    for (size_t r = i_end; r-- > i && !found;) {
      for (size_t c = j_end; c-- > j && !found;) {
        if (!SameId(reference[r], candidate[c])) continue;
        joined.rows.push_back({reference[r].sequence, reference[r].position, reference[r].at, candidate[c].at});
        found = true;
      }
    }
    if (!found) {
      joined.only_reference.push_back(key(reference[i]));
      joined.only_candidate.push_back(key(candidate[j]));
    }
    i = i_end;
    j = j_end;
  }
  return joined;
}

const RowRef* FindRow(const std::vector<RowRef>& reference, const RowRef& candidate, size_t* hint) {
  const auto key = [](const RowRef& row) { return Key{row.sequence, row.position}; };
  const Key wanted = key(candidate);
  size_t begin = *hint;
  const bool at_hint = begin < reference.size() && key(reference[begin]) == wanted &&
                       (begin == 0 || key(reference[begin - 1]) != wanted);
  if (!at_hint) {
    const auto found = std::lower_bound(reference.begin(), reference.end(), wanted,
                                        [&](const RowRef& row, const Key& k) { return key(row) < k; });
    begin = static_cast<size_t>(found - reference.begin());
  }
  size_t end = begin;
  while (end < reference.size() && key(reference[end]) == wanted) ++end;
  *hint = end;
  for (size_t i = end; i-- > begin;) {
    if (SameId(reference[i], candidate)) return &reference[i];
  }
  return nullptr;
}

std::set<Key> SelectedKeys(const SideRuns& side, const std::map<int, int>& numbers) {
  std::set<Key> keys;
  for (const Run& run : side.runs) {
    for (size_t i = 0; i < run.num_steps(); ++i) {
      if (!run.selection.WantsStep(static_cast<int64_t>(i))) continue;
      const TraceStep& step = run.Tokens(i);
      for (int32_t token : run.selection.SelectRows(step.positions, step.sequences)) {
        if (step.sequences[token] < 0) continue;
        const auto number = numbers.find(run.numbers.at(step.sequences[token]));
        if (number != numbers.end()) keys.insert({number->second, step.positions[token]});
      }
    }
  }
  return keys;
}

}  // namespace lockstep
