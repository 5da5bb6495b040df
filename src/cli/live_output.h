// The engine's tensors compared with a reference trace while it runs. Engine and comparison do not know each other:
// this tap is where they meet.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cli/compare_output.h"
#include "cli/run_engine.h"

namespace lockstep::cli {

class LiveTap;

// A tap that compares with a trace and tells nobody, to measure what that costs.
std::unique_ptr<Tap> MakeSilentLiveTap(const Model& model, const std::string& reference);

class LiveOutput : public EngineOutput {
 public:
  // failing: where the tensors that differ are written, or empty.
  LiveOutput(std::string reference, std::string failing, const ComparisonOptions& options);
  ~LiveOutput() override;
  Tap& Open(const Model& model, const EngineRun& run) override;
  void Close() override;

  // After the run.
  CompareResult Finish();

 private:
  std::string reference_, failing_;
  CompareOptions options_;
  std::unique_ptr<LiveTap> tap_;
};

}  // namespace lockstep::cli
