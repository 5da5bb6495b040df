// One op of the model as data: what it reads and everything that decides what it computes. The replay evaluates the
// right call of each point (CallOf); a hypothesis of the diagnosis is a call with something changed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lockstep/checkpoint.h"
#include "lockstep/points.h"
#include "lockstep/trace.h"
#include "replay/block.h"

namespace lockstep {

enum class Op : uint8_t {
  kEmbedding,  // row of `matrix` by input_id
  kCopy,
  kRmsNorm,
  kLinear,
  kRope,
  kScores,
  kSoftmax,
  kAttention,
  kAdd,
  kSwiGlu,
};

// A point in a layer; -1 outside the layers.
struct PointAt {
  Point id = Point::kInputEmbeddings;
  int layer = -1;
  bool operator==(const PointAt&) const = default;
  std::string Name() const { return PointName(id, layer); }
};

// A matrix [rows, columns] in float64, read by rows: a weight as the engine uses it (rounded to its dtype), or as a
// mistake would.
struct Matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  // out: [count, columns]. Called from several threads.
  std::function<void(int64_t begin, int64_t count, double* out)> read;
};

struct NormParams {
  int64_t group = 0;  // elements that share a mean: hidden_size, or head_dim
  double count = 0;   // what their sum of squares is divided by
  double eps = 0;
  std::vector<double> weight;  // [group], or [width]
  bool eps_outside_root = false;
  bool subtract_mean = false;
  int times = 1;                       // applied
  DType statistics = DType::kF64;      // in which the squares and their mean are rounded
  bool statistics_of_rounded = false;  // the values that are squared are rounded to it, too
};

struct RopeParams {
  std::vector<double> frequencies;  // [pairs] radians a position; pairs beyond them are left alone
  bool interleaved = false;         // pairs (2i, 2i + 1) instead of (i, i + half)
  double direction = 1;
  double magnitude = 1;                            // of cos and sin
  int times = 1;                                   // applied; 0: skipped
  DType tables = DType::kF64;                      // in which the angles are rounded (F64: not at all)
  DType values = DType::kF64;                      // in which cos and sin are rounded
  std::function<double(const TokenAt&)> position;  // null: the token's own
};

struct AttentionParams {
  double scale = 0;
  std::vector<int> kv_head;                         // [query heads] the key/value head that each reads
  std::vector<int> out_head;                        // [query heads] where its result stands; empty: in order
  int64_t mask_shift = 0;                           // keys up to the row's position + mask_shift are seen
  std::function<int64_t(const TokenAt&)> last_key;  // position of the last key seen; null: by mask_shift
  bool causal = true;                               // false: all keys of the sequence that were written up to the step
  int64_t window = 0;                               // only the last so many keys; 0: all
  bool this_step_only = false;                      // keys of earlier calls are not seen
  int64_t key_shift = 0;  // key j is read where key j - key_shift lies (rows of the cache off by so many)
  int64_t value_shift = 0;
  bool by_step = false;               // each step reads the cache as it was then: `before` is called for its keys alone
  double softcap = 0;                 // scores become cap * tanh(score / cap); 0: they stay
  DType plain_softmax = DType::kF64;  // exp in that dtype, without subtracting the maximum; F64: a right softmax
  // The keys of another sequence than the row's; null: its own. -1: none.
  std::function<int(const TokenAt&)> sequence;
};

enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh, kRelu, kSigmoid, kIdentity, kQuickGelu };

struct SwiGluParams {
  Activation activation = Activation::kSilu;
  bool swapped = false;  // the activation on up
  bool multiply = true;  // false: sum if `add`, else the activation alone
  bool add = false;
};

struct OpCall {
  PointAt point;
  Op op = Op::kCopy;
  std::vector<PointAt> inputs;     // in the order of docs/points.md, without input_ids and positions
  std::vector<double> factors;     // of kAdd: one an input
  std::shared_ptr<Matrix> matrix;  // of kEmbedding and kLinear
  std::vector<double> bias;        // of kLinear: [rows of matrix], or empty
  int64_t partial_sums = 1;        // of kLinear: so many slices of the input, each rounded before they are added
  NormParams norm;
  RopeParams rope;
  AttentionParams attention;
  SwiGluParams swiglu;
  int64_t heads = 0;  // of the output; 0: it has none
  int64_t head_dim = 0;
  // Changes what was computed before it is judged, variance included; null: nothing. tokens: [block.rows]
  std::function<void(const std::vector<TokenAt>& tokens, Block* block)> after;
  // The same for an input before it is used.
  std::function<void(const std::vector<TokenAt>& tokens, size_t input, Block* block)> before;
};

// Weights of the checkpoint by their names, in float64 as an implementation of that arithmetic holds them.
class ReplayModel {
 public:
  explicit ReplayModel(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  const Config& config() const { return checkpoint_.config(); }
  const Checkpoint& checkpoint() const { return checkpoint_; }

  // "model.layers.3.self_attn.q_proj.weight", rounded to `dtype`. A vector is one row.
  std::shared_ptr<Matrix> Weight(const std::string& name, DType dtype) const;
  std::vector<double> Vector(const std::string& name, DType dtype) const;

  // What the point's op is when it is right. `arithmetic`: of that point. heads and head_dim of points without heads:
  // 0.
  OpCall CallOf(const PointAt& point, const Arithmetic& arithmetic) const;
  // Elements of a row; 0 for attn_scores and attn_probs, whose rows are [heads, keys].
  int64_t WidthOf(Point point) const;
  // The checkpoint's name of a point's weight: "model.layers.3.self_attn.q_proj.weight"; empty where it has none.
  std::string WeightName(const PointAt& point) const;

 private:
  const Checkpoint& checkpoint_;
};

// Frequencies of the default RoPE: theta^(-2i/d), i in [0, d/2).
std::vector<double> RopeFrequencies(double theta, int64_t head_dim);

}  // namespace lockstep
