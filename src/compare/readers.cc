#include "compare/readers.h"

namespace lockstep {

std::vector<TraceReader> OpenAll(const std::vector<std::string>& paths, std::string_view side) {
  if (paths.empty()) throw Error("no trace of the " + std::string(side) + " was given");
  std::vector<TraceReader> readers;
  for (const std::string& path : paths) readers.push_back(TraceReader::Open(path));
  return readers;
}

std::vector<TraceView> Views(const std::vector<TraceReader>& readers) {
  std::vector<TraceView> views;
  for (const TraceReader& reader : readers)
    views.push_back({reader.path(), &reader.meta(), &reader.steps(), /*mapped=*/true});
  return views;
}

void NoteWarnings(const std::vector<TraceReader>& readers, std::vector<std::string>* notes) {
  for (const TraceReader& reader : readers) {
    notes->insert(notes->end(), reader.warnings().begin(), reader.warnings().end());
  }
}

}  // namespace lockstep
