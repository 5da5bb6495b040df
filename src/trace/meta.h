// trace.json, checked.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lockstep/trace.h"

namespace lockstep {

// An entry of `tensors`: how the tensors whose name matches differ from the point table.
struct TensorRule {
  std::string pattern;
  std::vector<std::string> axes;
  std::string layout;
  std::string shard_axis;          // empty: no shard
  std::optional<int> shard_index;  // none: the rank
  int shard_count = 1;
  bool partial = false;
};

struct ListedFile {
  std::string file;  // a plain name in the directory
  int rank = 0;
};

struct ListedStep {
  Phase phase = Phase::kPrefill;
  std::vector<ListedFile> files;
};

struct TraceJson {
  TraceMeta meta;
  std::vector<TensorRule> rules;
  std::vector<ListedStep> steps;

  // Of the rules whose pattern matches, the one with most letters in it; null where none does.
  const TensorRule* RuleFor(const std::string& name) const;
};

constexpr size_t kMaxTraceJsonBytes = size_t{1} << 28;

// What trace.json would say of a writer with that info. Throws Error for a config that is no JSON object.
TraceMeta MetaOf(const TraceInfo& info);

// Reads DIRECTORY/trace.json. Throws Error.
TraceJson ReadTraceJson(const std::string& directory);

}  // namespace lockstep
