// How fast the engine is, as figures and as shares of what the machine can do, measured in the same run: on a shared
// machine only ratios that lie close together in time can be trusted.
//
//   BenchResult result = Bench({.shape = "qwen3-0.6b"});
//   result.decode[0].share.Median();  // of the read bandwidth
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lockstep/checkpoint.h"
#include "lockstep/dtype.h"
#include "lockstep/engine.h"

namespace lockstep {

struct BenchOptions {
  std::string model;  // a checkpoint's directory, or empty
  std::string shape;  // one of BenchShapes() with random weights, or empty
  DType dtype = DType::kBF16;
  std::vector<int64_t> prefill = {128, 512, 2048};  // lengths of prompts
  std::vector<int64_t> decode = {128, 2048};        // lengths of the context that decoding starts from
  int repeat = 5;                                   // rounds; each measures everything once
  int threads = 0;                                  // 0: as OpenMP decides
  // Makes a tap that compares a run of the model with a trace; none: live comparison is not measured. (The engine and
  // the comparison do not know each other: who knows both gives it.)
  std::function<std::unique_ptr<Tap>(const Model& model, const std::string& reference_trace)> live_tap;
  std::function<void(const std::string& what)> progress;
};

// One quantity, one value a round.
struct Samples {
  std::vector<double> values;
  double Median() const;  // 0 without values
  double Best() const;    // the largest; 0 without values
};

// Prefill counts FLOPs against the peak FLOP/s of the dtype; decode counts the bytes that must be read (weights and
// cache) against the read bandwidth.
struct Speed {
  int64_t tokens = 0;         // of the prompt, or of the context that decoding starts from
  double work_per_token = 0;  // FLOPs or bytes, the mean over the tokens of a round
  Samples tokens_per_second;
  Samples limit;  // FLOP/s or bytes/s, measured just before and just after: the better, as noise only lowers it
  Samples share;  // tokens_per_second · work_per_token / limit, round by round
};

// What a tap costs on top of the same calls without one: prompts of the middle one of BenchOptions::prefill.
struct CaptureCost {
  std::string mode;         // "off": a tap that wants nothing; "disk": every point into a trace; "live"
  std::string phase;        // "prefill" or "decode"
  int64_t tokens = 0;       // of the prompt, or of the context that decoding starts from
  int64_t bytes = 0;        // written
  Samples plain_seconds;    // the same calls, the same rows of logits, no tap
  Samples capture_seconds;  // until the trace is closed
  Samples write_bandwidth;  // bytes/s of as many bytes into one file beside the trace; empty where none are written
  Samples ratio;            // capture_seconds / (plain_seconds + bytes / write_bandwidth), round by round
};

struct BenchResult {
  std::string model;       // the directory or the shape
  bool is_random = false;  // weights
  Config config;
  DType dtype = DType::kF32;
  int threads = 0;
  std::string engine;              // MatmulDescription()
  std::string peak_loop;           // what the peak was measured with
  std::vector<std::string> notes;  // what limits the figures' meaning on this machine

  Samples read_bandwidth;  // bytes/s, every measurement of the run
  Samples peak_flops;      // FLOP/s, every measurement of the run

  double load_seconds = 0;          // of random weights: to make and pack them
  int64_t loaded_memory_bytes = 0;  // peak resident memory of the process, mapped files included, after loading
  int64_t peak_memory_bytes = 0;    // ... and after the longest prompt and a decode step
  std::vector<Speed> prefill, decode;
  std::vector<CaptureCost> capture;
};

// "qwen3-0.6b", ...: the shapes that need no checkpoint.
std::vector<std::string> BenchShapes();

// Traces go to the directory for temporary files (TMPDIR) and are removed. Throws Error for bad options, for a bad
// checkpoint, and when the memory will not suffice.
BenchResult Bench(const BenchOptions& options);

}  // namespace lockstep
