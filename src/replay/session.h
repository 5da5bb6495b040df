// A side and its checkpoint, open and checked: what Replay() and Diagnose() work on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lockstep/replay.h"
#include "replay/evaluator.h"
#include "replay/judge.h"
#include "replay/model_check.h"
#include "trace/runs.h"

namespace lockstep {

class ReplaySession {
 public:
  // Opens and checks both. Throws Error: no trace, another model.
  ReplaySession(const std::vector<std::string>& traces, const std::string& model);

  // Every captured point that the options select, in execution order. `faulty` is shown the errors of each point that
  // is faulty, while its captures are still there; it may change the verdict.
  ReplayResult Run(const ReplayOptions& options, const std::function<void(PointErrors&)>& faulty = nullptr);

  Evaluator& evaluator() { return *evaluator_; }
  const Config& config() const { return checkpoint_->config(); }

 private:
  void InferOperands();
  // Gives the pages of its captures and weights back: they are not needed again.
  void ReleaseLayer(int layer);
  void JudgePoint(const PointAt& point, bool details, const std::function<void(PointErrors&)>& faulty,
                  ReplayResult* result);

  std::vector<std::string> paths_;
  std::string model_path_;
  std::vector<TraceReader> readers_;
  TraceRuns runs_;
  TraceMeta meta_;  // of the first trace, with what was inferred where it declares no arithmetic
  ModelCheck check_;
  std::vector<std::string> notes_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<ReplayModel> model_;
  std::unique_ptr<Captures> captures_;
  std::unique_ptr<Evaluator> evaluator_;
};

}  // namespace lockstep
