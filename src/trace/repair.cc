#include <dirent.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "base/json.h"
#include "base/safetensors.h"
#include "trace/directory.h"
#include "trace/load.h"
#include "trace/meta.h"

namespace lockstep {
namespace {

using Lines = std::vector<std::string>;

void CutTail(const std::string& path, Lines* done) {
  size_t size = 0, indexed = 0;
  {
    const SafetensorsFile file = OpenSafetensors(path, /*allow_tail=*/true);
    if (!file.duplicates.empty())
      throw Error(path + ": tensor " + file.duplicates.front() + " stands in it twice; this can not be repaired");
    size = file.file->bytes().size();
    indexed = file.indexed_bytes;
  }
  if (indexed == size) return;
  if (truncate(path.c_str(), static_cast<off_t>(indexed)) != 0)
    throw Error(path + ": cannot be cut: " + std::strerror(errno));
  done->push_back(path + ": cut " + std::to_string(size - indexed) + " bytes that belonged to no tensor");
}

bool HasTokens(const std::string& path) {
  bool positions = false, sequences = false;
  for (const StoredTensor& tensor : OpenSafetensors(path, /*allow_tail=*/true).tensors) {
    positions |= tensor.name == "positions";
    sequences |= tensor.name == "sequences";
  }
  return positions && sequences;
}

// The files of a step that can stay: those that are there, of ranks whose first file tells the tokens.
Json KeptFiles(const std::string& directory, const Json& files, int default_rank, Lines* done) {
  std::map<int, bool> good;
  Json kept = Json::array();
  for (const Json& entry : files) {
    const std::string path = directory + "/" + entry.at("file").get<std::string>();
    const int rank = entry.value("rank", default_rank);
    const bool there = access(path.c_str(), F_OK) == 0;
    if (!good.count(rank)) good[rank] = there && HasTokens(path);
    if (there && good[rank]) {
      kept.push_back(entry);
    } else {
      done->push_back(path + (there ? ": holds no tokens; taken from the list of files"
                                    : ": is not there; taken from the list of files"));
    }
  }
  return kept;
}

void RemoveTemporaries(const std::string& directory, Lines* done) {
  DIR* dir = opendir(directory.c_str());
  if (dir == nullptr) return;
  Lines names;
  while (const dirent* entry = readdir(dir)) names.emplace_back(entry->d_name);
  closedir(dir);
  for (const std::string& name : names) {
    const bool ours = name.ends_with(".tmp") && (name.starts_with("step-") || name.starts_with("trace.json"));
    if (ours && unlink((directory + "/" + name).c_str()) == 0) done->push_back(directory + "/" + name + ": removed");
  }
}

void ReplaceFile(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  if (!out || std::rename(temporary.c_str(), path.c_str()) != 0) {
    const int code = errno;
    unlink(temporary.c_str());
    throw Error(path + ": cannot be written: " + std::strerror(code));
  }
}

}  // namespace

std::vector<std::string> RepairTrace(const std::string& path) {
  const LockedDirectory lock(path, LockKind::kWrite);
  const std::string& directory = lock.path();
  LoadTrace(directory);  // throws where more than a kill has damaged it

  Lines done;
  const std::string json_path = directory + "/trace.json";
  Json json = ParseJson(ReadTextFile(json_path, kMaxTraceJsonBytes), json_path);  // keeps unknown keys, in their order
  const int default_rank = json.value("rank", 0);
  if (json.contains("steps")) {
    for (Json& step : json["steps"]) {
      if (!step.contains("files")) continue;
      step["files"] = KeptFiles(directory, step["files"], default_rank, &done);
      for (const Json& entry : step["files"]) CutTail(directory + "/" + entry["file"].get<std::string>(), &done);
    }
  }
  RemoveTemporaries(directory, &done);
  if (json.value("closed", false) && done.empty()) return done;
  json["closed"] = true;
  ReplaceFile(json_path, json.dump(1) + "\n");
  done.push_back(json_path + ": closed");
  return done;
}

}  // namespace lockstep
