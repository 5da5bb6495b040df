#include "lockstep/trace.h"
#include "trace/directory.h"
#include "trace/load.h"

namespace lockstep {

const TraceTensor* TraceStep::Find(const std::string& name, int rank) const {
  for (const TraceTensor& tensor : tensors) {
    if (tensor.rank == rank && tensor.name == name) return &tensor;
  }
  return nullptr;
}

struct TraceReader::Impl {
  explicit Impl(const std::string& path) : directory(path, LockKind::kRead), trace(LoadTrace(directory.path())) {}

  LockedDirectory directory;
  LoadedTrace trace;
};

TraceReader::TraceReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TraceReader::TraceReader(TraceReader&&) noexcept = default;
TraceReader& TraceReader::operator=(TraceReader&&) noexcept = default;
TraceReader::~TraceReader() = default;

TraceReader TraceReader::Open(const std::string& path) { return TraceReader(std::make_unique<Impl>(path)); }

const std::string& TraceReader::path() const { return impl_->directory.path(); }
const TraceMeta& TraceReader::meta() const { return impl_->trace.meta; }
const std::vector<TraceStep>& TraceReader::steps() const { return impl_->trace.steps; }
const std::vector<std::string>& TraceReader::warnings() const { return impl_->trace.warnings; }

std::map<int, std::vector<int32_t>> TraceReader::Sequences() const {
  std::map<int, std::vector<int32_t>> sequences;
  for (const TraceStep& step : steps()) {
    for (size_t i = 0; i < step.positions.size(); ++i) {
      if (step.sequences[i] < 0) continue;
      std::vector<int32_t>& tokens = sequences[step.sequences[i]];
      const auto position = static_cast<size_t>(step.positions[i]);
      if (tokens.size() <= position) tokens.resize(position + 1, -1);
      tokens[position] = step.input_ids.empty() ? -1 : step.input_ids[i];
    }
  }
  return sequences;
}

}  // namespace lockstep
