// The measured calls of the engine, each timed between two measurements of what limits it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bench/machine.h"
#include "lockstep/bench.h"
#include "lockstep/engine.h"

namespace lockstep {

// Measured steps of decoding in a round; one more before them is not measured.
inline constexpr int kDecodeSteps = 16;

// Room that a session needs for a prompt and what is decoded after it.
inline int64_t Capacity(int64_t prompt) { return prompt + 1 + 2 * kDecodeSteps; }

// Every measurement is kept, for the machine's medians.
struct Limits {
  explicit Limits(DType dtype) : peak(dtype) {}

  double ReadBytes();  // bytes/s
  double Flops();      // FLOP/s

  ReadBandwidth read;
  PeakFlops peak;
  Samples read_samples, peak_samples;
};

// A sequence of fixed pseudo-random tokens in a session of its own.
class Sequence {
 public:
  Sequence(const Model& model, int64_t prompt_length);

  // Seconds of the call.
  double Prefill(LogitsRows rows, Tap* tap);
  // REQUIRES: Prefill() was called. Feeds the greedy choice.
  double DecodeStep(Tap* tap);
  int64_t length() const { return session_.Length(0); }

 private:
  double Timed(std::span<const int32_t> tokens, Phase phase, LogitsRows rows, Tap* tap);

  std::vector<int32_t> prompt_, sequences_;
  Session session_;
  int32_t next_ = 0;
};

// Each adds one value to every list of samples.
void MeasurePrefill(Sequence& sequence, const Config& config, Limits& limits, Speed& out);
void MeasureDecode(Sequence& sequence, const Config& config, DType dtype, Limits& limits, Speed& out);
// `round` alternates which of the two ways comes first.
void MeasureTapOffPrefill(const Model& model, int round, CaptureCost& out);
void MeasureTapOffDecode(const Model& model, CaptureCost& out);
// Into `trace`, which stays; one bit of every input embedding is changed, so that all its points differ from a run's.
void MeasureTrace(const Model& model, const std::string& trace, int round, CaptureCost& out);
void MeasureLive(const Model& model, const std::function<std::unique_ptr<Tap>()>& make_tap, int round,
                 CaptureCost& out);

}  // namespace lockstep
