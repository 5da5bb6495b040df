#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "capi/error_boundary.h"
#include "lockstep/engine.h"
#include "lockstep/error.h"
#include "lockstep/lockstep.h"

namespace {

using lockstep::Batch;
using lockstep::Error;
using lockstep::Guarded;
using lockstep::Model;
using lockstep::Point;
using lockstep::Session;
using lockstep::TapTensor;
using lockstep::TraceTap;

// The user's function first, which may replace the tensor, then the debug trace, which records what it left.
class ModelTap : public lockstep::Tap {
 public:
  void SetUser(lockstep_tap function, void* user, const char* points) {
    selection_ = lockstep::Selection(points == nullptr ? "" : points, "", "", "");
    function_ = function;
    user_ = user;
  }
  void StartTrace(const Model& model, const char* path, const char* points) {
    lockstep::TraceTapOptions options;
    options.points = points == nullptr ? "" : points;
    trace_ = std::make_unique<TraceTap>(model, path, options);
  }
  void FinishTrace() {
    if (const std::unique_ptr<TraceTap> trace = std::move(trace_)) trace->Close();
  }
  bool active() const { return function_ != nullptr || trace_ != nullptr; }

  bool Wants(Point point, int layer) override {
    return UserWants(point, layer) || (trace_ != nullptr && trace_->Wants(point, layer));
  }
  void OnBegin(const Batch& batch, std::span<const int32_t> positions) override {
    if (trace_ != nullptr) trace_->OnBegin(batch, positions);
  }
  void OnTensor(const TapTensor& tensor) override {
    if (UserWants(tensor.point, tensor.layer)) CallUser(tensor);
    if (trace_ != nullptr && trace_->Wants(tensor.point, tensor.layer)) trace_->OnTensor(tensor);
  }
  void OnEnd(std::span<const int32_t> rows, std::span<const int32_t> next) override {
    if (trace_ != nullptr) trace_->OnEnd(rows, next);
  }

 private:
  bool UserWants(Point point, int layer) const {
    return function_ != nullptr && selection_.WantsPoint(lockstep::PointName(point, layer));
  }

  void CallUser(const TapTensor& tensor) const {
    const std::string name = lockstep::PointName(tensor.point, tensor.layer);
    const std::string point(lockstep::SpecOf(tensor.point).name);
    lockstep_tensor view{};
    view.name = name.c_str();
    view.point = point.c_str();
    view.layer = tensor.layer;
    view.dtype = lockstep::DTypeName(tensor.dtype);
    view.rank = static_cast<int32_t>(tensor.shape.size());
    std::copy(tensor.shape.begin(), tensor.shape.end(), view.shape);
    std::copy(tensor.strides.begin(), tensor.strides.end(), view.strides);
    view.data = tensor.data;
    view.rows = tensor.rows.data();
    function_(user_, &view);
  }

  lockstep::Selection selection_;
  lockstep_tap function_ = nullptr;
  void* user_ = nullptr;
  std::unique_ptr<TraceTap> trace_;
};

template <typename T>
T* NotNull(T* pointer, const char* what) {
  if (pointer == nullptr) throw Error(std::string(what) + ": expected a pointer, found NULL");
  return pointer;
}

}  // namespace

struct lockstep_model {
  Model model;
  ModelTap tap;
};

struct lockstep_session {
  lockstep_model* owner;
  int32_t num_sequences;
  Session session;
};

int lockstep_model_load(const char* model_dir, const char* dtype, int32_t num_layers, lockstep_model** out) {
  return Guarded([&] {
    NotNull(model_dir, "model_dir");
    *NotNull(out, "out") = nullptr;
    const char* name = dtype == nullptr ? "f32" : dtype;
    const std::optional<lockstep::DType> parsed = lockstep::ParseDType(name);
    if (!parsed) throw Error(std::string("dtype: expected f32, bf16 or f16, found ") + name);
    const int layers = num_layers == 0 ? -1 : num_layers;
    *out = new lockstep_model{Model::Load(model_dir, {.dtype = *parsed, .num_layers = layers}), {}};
    return LOCKSTEP_OK;
  });
}

void lockstep_model_free(lockstep_model* model) {
  if (model == nullptr) return;
  Guarded([&] {
    model->tap.FinishTrace();
    return LOCKSTEP_OK;
  });
  delete model;
}

int lockstep_model_config(const lockstep_model* model, const char* key, int64_t* out) {
  return Guarded([&] {
    using lockstep::Config;
    static constexpr std::array<std::pair<const char*, int64_t Config::*>, 8> kKeys = {{
        {"vocab_size", &Config::vocab_size},
        {"hidden_size", &Config::hidden_size},
        {"num_hidden_layers", &Config::num_hidden_layers},
        {"num_attention_heads", &Config::num_attention_heads},
        {"num_key_value_heads", &Config::num_key_value_heads},
        {"head_dim", &Config::head_dim},
        {"intermediate_size", &Config::intermediate_size},
        {"max_position_embeddings", &Config::max_position_embeddings},
    }};
    NotNull(key, "key");
    for (const auto& [name, member] : kKeys) {
      if (std::strcmp(name, key) != 0) continue;
      *NotNull(out, "out") = NotNull(model, "model")->model.config().*member;
      return LOCKSTEP_OK;
    }
    throw Error(std::string("config key: expected one that lockstep.h lists, found ") + key);
  });
}

int lockstep_model_set_debug(lockstep_model* model, const char* trace_dir, const char* points) {
  return Guarded([&] {
    NotNull(model, "model")->tap.FinishTrace();
    if (trace_dir != nullptr) model->tap.StartTrace(model->model, trace_dir, points);
    return LOCKSTEP_OK;
  });
}

int lockstep_model_set_tap(lockstep_model* model, lockstep_tap tap, void* user, const char* points) {
  return Guarded([&] {
    NotNull(model, "model")->tap.SetUser(tap, user, points);
    return LOCKSTEP_OK;
  });
}

int lockstep_session_create(lockstep_model* model, int32_t num_sequences, int64_t max_tokens, lockstep_session** out) {
  return Guarded([&] {
    *NotNull(out, "out") = nullptr;
    *out =
        new lockstep_session{model, num_sequences, Session(NotNull(model, "model")->model, num_sequences, max_tokens)};
    return LOCKSTEP_OK;
  });
}

void lockstep_session_free(lockstep_session* session) { delete session; }

int lockstep_forward(lockstep_session* session, const int32_t* tokens, const int32_t* sequences, int64_t num_tokens,
                     int all_rows, float* logits, int32_t* next) {
  return Guarded([&] {
    NotNull(session, "session");
    if (num_tokens < 1) throw Error("num_tokens: expected at least 1, found " + std::to_string(num_tokens));
    const auto count = static_cast<size_t>(num_tokens);
    const std::vector<int32_t> zeros(sequences == nullptr ? count : 0);
    Batch batch;
    batch.tokens = {NotNull(tokens, "tokens"), count};
    batch.sequences = {sequences == nullptr ? zeros.data() : sequences, count};
    batch.logits_rows = all_rows != 0 ? lockstep::LogitsRows::kAll : lockstep::LogitsRows::kLast;
    // A decode step: one token for each sequence, all of which have a past.
    const bool decode = std::all_of(batch.sequences.begin(), batch.sequences.end(), [&](int32_t s) {
      return s >= 0 && s < session->num_sequences && session->session.Length(s) > 0 &&
             std::count(batch.sequences.begin(), batch.sequences.end(), s) == 1;
    });
    batch.phase = decode ? lockstep::Phase::kDecode : lockstep::Phase::kPrefill;

    ModelTap& tap = session->owner->tap;
    const lockstep::Logits& result = session->session.Forward(batch, tap.active() ? &tap : nullptr);
    if (logits != nullptr) std::copy(result.values.begin(), result.values.end(), logits);
    for (size_t r = 0; next != nullptr && r < result.rows.size(); ++r) next[r] = result.Greedy(r);
    return LOCKSTEP_OK;
  });
}
