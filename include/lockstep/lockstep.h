/* Lockstep's C API: the built-in Qwen3 engine with a tap at every point, and the comparison and replay of traces.
 * Usable from C and by ctypes.
 *
 * Functions return LOCKSTEP_OK (0) or LOCKSTEP_ERROR (2); lockstep_compare and lockstep_replay also
 * LOCKSTEP_DIFFERENT (1). After LOCKSTEP_ERROR, lockstep_last_error() says what was expected, what was found and what
 * to do. Nothing throws or aborts across this interface. A model may be used by several threads, each with its own
 * session, as long as no tap and no debug trace is set. */
#ifndef LOCKSTEP_LOCKSTEP_H_
#define LOCKSTEP_LOCKSTEP_H_

#include <stdint.h>

#if defined(__GNUC__)
#define LOCKSTEP_API __attribute__((visibility("default")))
#else
#define LOCKSTEP_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { LOCKSTEP_OK = 0, LOCKSTEP_DIFFERENT = 1, LOCKSTEP_ERROR = 2 };
enum { LOCKSTEP_MAX_RANK = 4 };

typedef struct lockstep_model lockstep_model;
typedef struct lockstep_session lockstep_session;

/* "0.1.0" */
LOCKSTEP_API const char* lockstep_version(void);

/* The message of this thread's last LOCKSTEP_ERROR; never NULL, valid until this thread's next call. */
LOCKSTEP_API const char* lockstep_last_error(void);

/* Gives back a string that a function of this interface made. NULL is allowed. */
LOCKSTEP_API void lockstep_string_free(char* text);

/* ---- Engine (absent in builds with LOCKSTEP_ENGINE=OFF) ---- */

/* Loads a Hugging Face Qwen3 directory. dtype: "f32", "bf16" or "f16" (NULL: "f32"). num_layers: the first N layers
 * only; 0 for all. */
LOCKSTEP_API int lockstep_model_load(const char* model_dir, const char* dtype, int32_t num_layers,
                                     lockstep_model** out);

/* REQUIRES: its sessions are freed. Finishes a debug trace that is still open. NULL is allowed. */
LOCKSTEP_API void lockstep_model_free(lockstep_model* model);

/* A number of config.json by name: "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
 * "num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings". */
LOCKSTEP_API int lockstep_model_config(const lockstep_model* model, const char* key, int64_t* out);

/* Debug mode of this one model: from now on every forward call writes all points into a new trace in `trace_dir`; NULL
 * finishes the trace and switches it off. `points` selects (docs/trace-format.md: "attn_*,logits"); NULL or "" means
 * all. */
LOCKSTEP_API int lockstep_model_set_debug(lockstep_model* model, const char* trace_dir, const char* points);

/* A tensor on its way through the model. Writing to `data` replaces it: the engine goes on with what is left there. */
typedef struct {
  const char* name;  /* "layer_2_attn_q_rope" */
  const char* point; /* "attn_q_rope" */
  int32_t layer;     /* -1 outside the layers */
  const char* dtype; /* "F32", "BF16", "F16" */
  int32_t rank;      /* number of axes, as in docs/points.md; the first is the token axis */
  int64_t shape[LOCKSTEP_MAX_RANK];
  int64_t strides[LOCKSTEP_MAX_RANK]; /* in elements; a row is dense, but rows may lie apart: use strides[0] */
  void* data;
  const int32_t* rows; /* [shape[0]] which tokens of the call these rows are */
} lockstep_tensor;

typedef void (*lockstep_tap)(void* user, const lockstep_tensor* tensor);

/* Calls `tap` at every point that `points` selects (NULL or "": all but attn_scores and attn_probs, which must be
 * named). A debug trace records what the tap leaves. A NULL tap removes it. The tap must not call back into this model.
 */
LOCKSTEP_API int lockstep_model_set_tap(lockstep_model* model, lockstep_tap tap, void* user, const char* points);

/* KV caches for `num_sequences` sequences of up to `max_tokens` tokens each. REQUIRES: the model outlives the session.
 */
LOCKSTEP_API int lockstep_session_create(lockstep_model* model, int32_t num_sequences, int64_t max_tokens,
                                         lockstep_session** out);
LOCKSTEP_API void lockstep_session_free(lockstep_session* session);

/* One forward call over `num_tokens` tokens; they follow what the sequences' caches hold. sequences: [num_tokens],
 * tokens of one sequence consecutive; NULL means all of sequence 0. logits: NULL, or room for [rows, vocab_size]
 * floats, where rows is num_tokens if all_rows is not 0, else the number of sequences in the call. next: NULL, or room
 * for the greedy choice of each of those rows. */
LOCKSTEP_API int lockstep_forward(lockstep_session* session, const int32_t* tokens, const int32_t* sequences,
                                  int64_t num_tokens, int all_rows, float* logits, int32_t* next);

/* ---- Comparison ---- */

/* Compares two traces. A negative atol or rtol sets no tolerance of one's own. model: NULL, or the checkpoint, to
 * recompute every op of both sides in float64 and judge each (docs/replay.md). json (may be NULL) receives everything
 * that was found (docs/compare.md); free it with lockstep_string_free. Returns LOCKSTEP_OK (same), LOCKSTEP_DIFFERENT
 * or LOCKSTEP_ERROR. */
LOCKSTEP_API int lockstep_compare(const char* reference_trace, const char* candidate_trace, double atol, double rtol,
                                  const char* model, char** json);

/* Recomputes every op of one trace in float64 from its own captured inputs and the checkpoint `model`. json (may be
 * NULL) receives everything that was found (docs/replay.md); free it with lockstep_string_free. Returns LOCKSTEP_OK
 * (clean), LOCKSTEP_DIFFERENT (an op is faulty, or a weight is not the checkpoint's) or LOCKSTEP_ERROR. */
LOCKSTEP_API int lockstep_replay(const char* trace, const char* model, char** json);

#ifdef __cplusplus
}
#endif

#endif /* LOCKSTEP_LOCKSTEP_H_ */
