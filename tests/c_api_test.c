/* The C API, used as a C program would. Arguments: the directory of tiny-qwen3, and a directory for traces. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lockstep/lockstep.h"

static int failures = 0;

static void Fail(int line, const char* what) {
  ++failures;
  fprintf(stderr, "%s:%d: %s (last error: %s)\n", __FILE__, line, what, lockstep_last_error());
}

#define EXPECT(condition) ((condition) ? (void)0 : Fail(__LINE__, #condition))
#define EXPECT_OK(call) EXPECT((call) == LOCKSTEP_OK)
/* LOCKSTEP_ERROR, with a message that holds `text`. */
#define EXPECT_ERROR(call, text) EXPECT((call) == LOCKSTEP_ERROR && strstr(lockstep_last_error(), text) != NULL)
#define REQUIRE(condition)        \
  do {                            \
    if (!(condition)) {           \
      Fail(__LINE__, #condition); \
      exit(1);                    \
    }                             \
  } while (0)

enum { kVocab = 2048, kTokens = 7, kLayers = 5, kHeads = 6, kHeadDim = 48 };

static const int32_t kText[kTokens] = {5, 260, 31, 1000, 77, 2047, 0};

static const char* model_dir;

/* Room for the names of traces. */
typedef struct {
  char text[4096];
} Path;

static Path Join(const char* dir, const char* name) {
  Path path;
  const int length = snprintf(path.text, sizeof(path.text), "%s/%s", dir, name);
  REQUIRE(length > 0 && (size_t)length < sizeof(path.text));
  return path;
}

static lockstep_model* Load(const char* dtype) {
  lockstep_model* model = NULL;
  REQUIRE(lockstep_model_load(model_dir, dtype, 0, &model) == LOCKSTEP_OK && model != NULL);
  return model;
}

/* The logits of all of kText from an empty cache, and then those of one more token. Free them. */
static float* Logits(lockstep_model* model) {
  float* logits = malloc((kTokens + 1) * kVocab * sizeof(float));
  lockstep_session* session = NULL;
  const int32_t more = 42;
  REQUIRE(logits != NULL);
  REQUIRE(lockstep_session_create(model, 1, kTokens + 1, &session) == LOCKSTEP_OK && session != NULL);
  EXPECT_OK(lockstep_forward(session, kText, NULL, kTokens, 1, logits, NULL));
  EXPECT_OK(lockstep_forward(session, &more, NULL, 1, 0, logits + kTokens * kVocab, NULL));
  lockstep_session_free(session);
  return logits;
}

static int SameBits(const float* a, const float* b) {
  return memcmp(a, b, (kTokens + 1) * kVocab * sizeof(float)) == 0;
}

static int Exists(const char* dir, const char* name) {
  const Path path = Join(dir, name);
  FILE* file = fopen(path.text, "rb");
  if (file != NULL) fclose(file);
  return file != NULL;
}

static int FileHolds(const char* dir, const char* name, const char* text) {
  static char bytes[1 << 20];
  const Path path = Join(dir, name);
  FILE* file = fopen(path.text, "rb");
  size_t size, i;
  if (file == NULL) return 0;
  size = fread(bytes, 1, sizeof(bytes), file);
  fclose(file);
  for (i = 0; i + strlen(text) <= size; ++i) {
    if (memcmp(bytes + i, text, strlen(text)) == 0) return 1;
  }
  return 0;
}

/* ---- Engine ---- */

static void TestConfig(void) {
  static const struct {
    const char* key;
    int64_t value;
  } kNumbers[] = {{"vocab_size", kVocab},         {"hidden_size", 192},
                  {"num_hidden_layers", kLayers}, {"num_attention_heads", kHeads},
                  {"num_key_value_heads", 2},     {"head_dim", kHeadDim},
                  {"intermediate_size", 512},     {"max_position_embeddings", 4096}};
  lockstep_model* model = Load(NULL);
  int64_t value;
  size_t i;
  for (i = 0; i < sizeof(kNumbers) / sizeof(kNumbers[0]); ++i) {
    value = -1;
    EXPECT_OK(lockstep_model_config(model, kNumbers[i].key, &value));
    EXPECT(value == kNumbers[i].value);
  }
  EXPECT_ERROR(lockstep_model_config(model, "rope_theta", &value), "rope_theta");
  EXPECT_ERROR(lockstep_model_config(model, "", &value), "config key");
  EXPECT_ERROR(lockstep_model_config(model, NULL, &value), "key");
  EXPECT_ERROR(lockstep_model_config(model, "head_dim", NULL), "out");
  EXPECT_ERROR(lockstep_model_config(NULL, "head_dim", &value), "model");
  lockstep_model_free(model);

  REQUIRE(lockstep_model_load(model_dir, "BF16", 2, &model) == LOCKSTEP_OK);
  EXPECT_OK(lockstep_model_config(model, "num_hidden_layers", &value));
  EXPECT(value == 2);
  lockstep_model_free(model);
}

static void TestForward(const char* dtype) {
  lockstep_model* model = Load(dtype);
  float* all = Logits(model);
  float* again = Logits(model);
  float* last = malloc(2 * kVocab * sizeof(float));
  int32_t next[kTokens];
  int32_t largest[kTokens];
  /* Sequence 1 holds the text, sequence 0 its first three tokens. */
  int32_t tokens[kTokens + 3];
  int32_t sequences[kTokens + 3];
  lockstep_session* session = NULL;
  int t, i;

  REQUIRE(last != NULL);
  EXPECT(SameBits(all, again));
  for (t = 0; t < kTokens; ++t) {
    largest[t] = 0;
    for (i = 0; i < kVocab; ++i) {
      EXPECT(isfinite(all[t * kVocab + i]));
      if (all[t * kVocab + i] > all[t * kVocab + largest[t]]) largest[t] = i;
    }
  }
  for (t = 0; t < kTokens + 3; ++t) {
    tokens[t] = kText[t < kTokens ? t : t - kTokens];
    sequences[t] = t < kTokens ? 1 : 0;
  }
  REQUIRE(lockstep_session_create(model, 2, kTokens, &session) == LOCKSTEP_OK);
  EXPECT_OK(lockstep_forward(session, tokens, sequences, kTokens + 3, 0, last, next));
  if (strcmp(dtype, "f32") == 0) {
    for (i = 0; i < kVocab; ++i) {
      EXPECT(fabs(last[i] - all[(kTokens - 1) * kVocab + i]) < 1e-3);
      EXPECT(fabs(last[kVocab + i] - all[2 * kVocab + i]) < 1e-3);
    }
    EXPECT(next[0] == largest[kTokens - 1] && next[1] == largest[2]);
  }
  lockstep_session_free(session);

  /* Either result may be left out. */
  REQUIRE(lockstep_session_create(model, 1, kTokens, &session) == LOCKSTEP_OK);
  EXPECT_OK(lockstep_forward(session, kText, NULL, kTokens - 1, 1, NULL, next));
  EXPECT(memcmp(next, largest, (kTokens - 1) * sizeof(int32_t)) == 0 || strcmp(dtype, "f32") != 0);
  EXPECT_OK(lockstep_forward(session, kText, NULL, 1, 0, NULL, NULL));
  lockstep_session_free(session);
  free(all);
  free(again);
  free(last);
  lockstep_model_free(model);
}

static void TestErrors(const char* scratch) {
  lockstep_model* model = Load("f32");
  lockstep_model* none = NULL;
  lockstep_session* session = NULL;
  const Path no_model = Join(scratch, "no-such-model");
  const Path no_parent = Join(scratch, "no/such/parent/t.trace");
  const int32_t two[2] = {1, 2};
  const int32_t three[3] = {1, 2, 3};
  const int32_t apart[3] = {0, 1, 0};
  float* before = Logits(model);
  float* after;
  int32_t bad;
  int32_t next;
  int t;

  EXPECT_ERROR(lockstep_model_load(NULL, "f32", 0, &none), "model_dir");
  EXPECT_ERROR(lockstep_model_load(model_dir, "f32", 0, NULL), "out");
  EXPECT_ERROR(lockstep_model_load(model_dir, "int8", 0, &none), "int8");
  EXPECT_ERROR(lockstep_model_load(model_dir, "", 0, &none), "dtype");
  EXPECT_ERROR(lockstep_model_load(model_dir, "f64", 0, &none), "expected f32, bf16 or f16");
  EXPECT_ERROR(lockstep_model_load(model_dir, "f32", kLayers + 1, &none), "layers");
  EXPECT_ERROR(lockstep_model_load(model_dir, "f32", -2, &none), "layers");
  EXPECT_ERROR(lockstep_model_load(no_model.text, "f32", 0, &none), "no-such-model");
  EXPECT_ERROR(lockstep_model_load(scratch, "f32", 0, &none), "config.json");
  EXPECT(none == NULL);

  EXPECT_ERROR(lockstep_session_create(NULL, 1, 4, &session), "model");
  EXPECT_ERROR(lockstep_session_create(model, 1, 4, NULL), "out");
  EXPECT_ERROR(lockstep_session_create(model, 0, 4, &session), "at least one");
  EXPECT_ERROR(lockstep_session_create(model, -1, 4, &session), "at least one");
  EXPECT_ERROR(lockstep_session_create(model, 1, 0, &session), "at least one");
  EXPECT_ERROR(lockstep_session_create(model, 1, 4097, &session), "max_position_embeddings");
  EXPECT_ERROR(lockstep_session_create(model, 1, INT64_MAX, &session), "max_position_embeddings");
  EXPECT_ERROR(lockstep_session_create(model, INT32_MAX, 4096, &session), "KV cache");
  EXPECT(session == NULL);

  REQUIRE(lockstep_session_create(model, 2, 4, &session) == LOCKSTEP_OK);
  EXPECT_ERROR(lockstep_forward(NULL, two, NULL, 2, 0, NULL, NULL), "session");
  EXPECT_ERROR(lockstep_forward(session, NULL, NULL, 2, 0, NULL, NULL), "tokens");
  EXPECT_ERROR(lockstep_forward(session, two, NULL, 0, 0, NULL, NULL), "num_tokens");
  EXPECT_ERROR(lockstep_forward(session, two, NULL, -1, 0, NULL, NULL), "num_tokens");
  EXPECT_ERROR(lockstep_forward(session, two, NULL, INT64_MAX, 0, NULL, NULL), "");
  bad = -1;
  EXPECT_ERROR(lockstep_forward(session, &bad, NULL, 1, 0, NULL, NULL), "found -1");
  bad = kVocab;
  EXPECT_ERROR(lockstep_forward(session, &bad, NULL, 1, 0, NULL, NULL), "found 2048");
  bad = 2;
  EXPECT_ERROR(lockstep_forward(session, two, &bad, 1, 0, NULL, NULL), "found 2");
  bad = -1;
  EXPECT_ERROR(lockstep_forward(session, two, &bad, 1, 0, NULL, NULL), "found -1");
  EXPECT_ERROR(lockstep_forward(session, three, apart, 3, 0, NULL, NULL), "consecutive");
  for (t = 0; t < 4; ++t) EXPECT_OK(lockstep_forward(session, two, NULL, 1, 0, NULL, &next));
  EXPECT_ERROR(lockstep_forward(session, two, NULL, 1, 0, NULL, NULL), "room for 4");
  lockstep_session_free(session);

  EXPECT_ERROR(lockstep_model_set_debug(NULL, no_parent.text, NULL), "model");
  EXPECT_ERROR(lockstep_model_set_debug(model, no_parent.text, NULL), "");
  EXPECT(lockstep_last_error()[0] != '\0');
  EXPECT_ERROR(lockstep_model_set_tap(NULL, NULL, NULL, NULL), "model");
  EXPECT_OK(lockstep_model_set_debug(model, NULL, NULL)); /* nothing to finish */

  /* After all that the model is as it was. */
  after = Logits(model);
  EXPECT(SameBits(before, after));
  free(before);
  free(after);
  lockstep_model_free(model);
  lockstep_model_free(NULL);
  lockstep_session_free(NULL);
  lockstep_string_free(NULL);
}

/* ---- Taps ---- */

typedef struct {
  int calls;
  int scores;
  int bad;
} Count;

static void CountTensors(void* user, const lockstep_tensor* tensor) {
  Count* count = user;
  char name[128];
  int64_t stride = 1;
  int32_t axis;
  ++count->calls;
  count->scores += strcmp(tensor->point, "attn_scores") == 0;
  if (tensor->layer >= 0) {
    sprintf(name, "layer_%d_%s", (int)tensor->layer, tensor->point);
  } else {
    strcpy(name, tensor->point);
  }
  count->bad += strcmp(name, tensor->name) != 0 || strcmp(tensor->dtype, "F32") != 0 || tensor->data == NULL;
  count->bad += tensor->rank < 2 || tensor->rank > LOCKSTEP_MAX_RANK;
  for (axis = tensor->rank - 1; axis > 0; --axis) {
    count->bad += tensor->strides[axis] != stride;
    stride *= tensor->shape[axis];
  }
  count->bad += tensor->strides[0] < stride; /* rows may lie apart */
  for (axis = 0; axis < tensor->shape[0]; ++axis) count->bad += tensor->rows[axis] < 0 || tensor->rows[axis] >= kTokens;
  if (strcmp(tensor->point, "attn_q_rope") == 0) {
    count->bad += tensor->rank != 3 || tensor->shape[1] != kHeads || tensor->shape[2] != kHeadDim;
  }
}

/* Negates head 4 of token 3. */
static void NegateHead(void* user, const lockstep_tensor* tensor) {
  const int64_t token = 3, head = 4;
  float* q = (float*)tensor->data + token * tensor->strides[0] + head * tensor->strides[1];
  int i;
  if (tensor->shape[0] <= token) return; /* the decode step */
  ++*(int*)user;
  for (i = 0; i < kHeadDim; ++i) q[i] = -q[i];
}

static void TestTaps(void) {
  lockstep_model* model = Load("f32");
  lockstep_model* other = Load("f32");
  float* before = Logits(model);
  float* after;
  Count count = {0, 0, 0};
  int calls = 0;
  int t;

  EXPECT_OK(lockstep_model_set_tap(model, CountTensors, &count, NULL));
  after = Logits(model);
  EXPECT(SameBits(before, after));
  EXPECT(count.calls == 2 * (3 + kLayers * 18)); /* two calls; 20 points a layer, two of them on request */
  EXPECT(count.scores == 0 && count.bad == 0);
  free(after);

  memset(&count, 0, sizeof(count));
  EXPECT_OK(lockstep_model_set_tap(model, CountTensors, &count, "layer_1_attn_scores,logits"));
  after = Logits(model);
  EXPECT(SameBits(before, after));
  EXPECT(count.calls == 4 && count.scores == 2 && count.bad == 0);
  free(after);

  /* A tap that replaces: tokens before it are untouched, it and those after it are not; other models know nothing of
   * it. */
  EXPECT_OK(lockstep_model_set_tap(model, NegateHead, &calls, "layer_2_attn_q_rope"));
  after = Logits(model);
  EXPECT(calls == 1);
  for (t = 0; t < kTokens; ++t) {
    const int same = memcmp(before + t * kVocab, after + t * kVocab, kVocab * sizeof(float)) == 0;
    EXPECT(same == (t < 3));
  }
  free(after);
  after = Logits(other);
  EXPECT(SameBits(before, after) && calls == 1);
  free(after);

  EXPECT_OK(lockstep_model_set_tap(model, NULL, NULL, NULL));
  after = Logits(model);
  EXPECT(SameBits(before, after) && calls == 1);
  free(after);
  free(before);
  lockstep_model_free(model);
  lockstep_model_free(other);
}

/* ---- Debug traces ---- */

static void TestDebug(const char* scratch, const char* dtype) {
  lockstep_model* traced = Load(dtype);
  lockstep_model* untraced = Load(dtype);
  const Path trace = Join(scratch, "debug.trace");
  const Path part = Join(scratch, "part.trace");
  const Path freed = Join(scratch, "freed.trace");
  float* before = Logits(traced);
  float* after;
  float* elsewhere;

  EXPECT_OK(lockstep_model_set_debug(traced, trace.text, NULL));
  after = Logits(traced);
  elsewhere = Logits(untraced);
  EXPECT(FileHolds(trace.text, "trace.json", "\"closed\"") && !FileHolds(trace.text, "trace.json", "\"closed\": true"));
  EXPECT_OK(lockstep_model_set_debug(traced, NULL, NULL));
  EXPECT(SameBits(before, after) && SameBits(before, elsewhere));
  free(after);
  free(elsewhere);
  /* The two calls of the traced model, and none of the other. */
  EXPECT(Exists(trace.text, "step-000001.safetensors") && !Exists(trace.text, "step-000002.safetensors"));
  EXPECT(FileHolds(trace.text, "step-000000.safetensors", "layer_4_layer_output"));
  EXPECT(!FileHolds(trace.text, "step-000000.safetensors", "attn_scores"));

  /* Switched off, nothing more is written; switched on again, a new trace begins. */
  after = Logits(traced);
  EXPECT(SameBits(before, after) && !Exists(trace.text, "step-000002.safetensors"));
  free(after);
  EXPECT_OK(lockstep_model_set_debug(traced, part.text, "attn_q_rope,attn_scores"));
  after = Logits(traced);
  EXPECT(SameBits(before, after));
  free(after);
  EXPECT_OK(lockstep_model_set_debug(traced, freed.text, "logits")); /* finishes the one before */
  EXPECT(FileHolds(part.text, "step-000000.safetensors", "layer_0_attn_q_rope"));
  EXPECT(FileHolds(part.text, "step-000000.safetensors", "layer_0_attn_scores"));
  EXPECT(!FileHolds(part.text, "step-000000.safetensors", "layer_0_attn_k_rope"));
  free(Logits(traced));
  lockstep_model_free(traced); /* finishes it, too */
  EXPECT(FileHolds(freed.text, "step-000001.safetensors", "logits"));
  EXPECT_ERROR(lockstep_model_set_debug(untraced, scratch, NULL), ""); /* not a trace: left alone */
  EXPECT_ERROR(lockstep_model_set_debug(untraced, trace.text, ",,"), "");
  free(before);
  lockstep_model_free(untraced);
}

/* ---- Comparison ---- */

static void TestCompare(const char* scratch) {
  const Path same_a = Join(scratch, "a.trace");
  const Path same_b = Join(scratch, "b.trace");
  const Path negated = Join(scratch, "negated.trace");
  const Path none = Join(scratch, "none.trace");
  lockstep_model* model = Load("f32");
  char* json = NULL;
  int calls = 0;

  EXPECT_OK(lockstep_model_set_debug(model, same_a.text, NULL));
  free(Logits(model));
  EXPECT_OK(lockstep_model_set_debug(model, same_b.text, NULL));
  free(Logits(model));
  EXPECT_OK(lockstep_model_set_tap(model, NegateHead, &calls, "layer_2_attn_q_rope"));
  EXPECT_OK(lockstep_model_set_debug(model, negated.text, NULL));
  free(Logits(model));
  lockstep_model_free(model);
  EXPECT(calls == 1);

  EXPECT(lockstep_compare(same_a.text, same_b.text, -1, -1, NULL, NULL) == LOCKSTEP_OK);
  EXPECT(lockstep_compare(same_a.text, same_b.text, 0, 0, NULL, &json) == LOCKSTEP_OK);
  EXPECT(json != NULL && json[0] == '{' && strstr(json, "layer_2_attn_q_rope") != NULL);
  lockstep_string_free(json);
  json = NULL;
  EXPECT(lockstep_compare(same_a.text, negated.text, -1, -1, NULL, &json) == LOCKSTEP_DIFFERENT);
  EXPECT(json != NULL && strstr(json, "layer_2_attn_q_rope") != NULL);
  lockstep_string_free(json);

  json = (char*)scratch;
  EXPECT_ERROR(lockstep_compare(same_a.text, none.text, -1, -1, NULL, &json), "none.trace");
  EXPECT(json == NULL); /* nothing to free */
  /* With the checkpoint, it also says which side is wrong. */
  EXPECT(lockstep_compare(same_a.text, negated.text, -1, -1, model_dir, &json) == LOCKSTEP_DIFFERENT);
  EXPECT(json != NULL && strstr(json, "\"first_faulty\": \"layer_2_attn_q_rope\"") != NULL);
  lockstep_string_free(json);
  EXPECT(lockstep_compare(same_a.text, same_b.text, -1, -1, model_dir, NULL) == LOCKSTEP_OK);
  EXPECT(lockstep_replay(same_a.text, model_dir, NULL) == LOCKSTEP_OK);
  EXPECT(lockstep_replay(negated.text, model_dir, &json) == LOCKSTEP_DIFFERENT);
  EXPECT(json != NULL && strstr(json, "lockstep-replay/1") != NULL);
  lockstep_string_free(json);
  json = (char*)scratch;
  EXPECT_ERROR(lockstep_replay(same_a.text, none.text, &json), "none.trace");
  EXPECT(json == NULL);
  EXPECT_ERROR(lockstep_replay(NULL, model_dir, NULL), "NULL");
  EXPECT_ERROR(lockstep_replay(same_a.text, NULL, NULL), "NULL");
  EXPECT_ERROR(lockstep_compare(same_a.text, same_b.text, -1, -1, none.text, NULL), "none.trace");
  EXPECT_ERROR(lockstep_compare(NULL, same_a.text, -1, -1, NULL, NULL), "NULL");
  EXPECT_ERROR(lockstep_compare(same_a.text, NULL, -1, -1, NULL, NULL), "NULL");
}

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: %s MODEL_DIR SCRATCH_DIR\n", argv[0]);
    return 1;
  }
  model_dir = argv[1];
  EXPECT(lockstep_version()[0] != '\0');
  EXPECT(strcmp(lockstep_last_error(), "") == 0);
  TestConfig();
  TestForward("f32");
  TestForward("bf16");
  TestForward("f16");
  TestErrors(argv[2]);
  TestTaps();
  TestDebug(argv[2], "f32");
  TestDebug(argv[2], "bf16");
  TestDebug(argv[2], "f16");
  TestCompare(argv[2]);
  if (failures > 0) fprintf(stderr, "%d failures\n", failures);
  return failures > 0;
}
