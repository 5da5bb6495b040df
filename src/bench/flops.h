// The work that a forward pass cannot do without, counted from the config: what the measured times are held against.
#pragma once

#include <cstdint>

#include "lockstep/checkpoint.h"
#include "lockstep/dtype.h"

namespace lockstep {

// Elements of all matrices and norms but the embedding, which stays in the checkpoint's mapped file: for a tied model,
// where the head is the embedding, its number of parameters.
int64_t PackedElements(const Config& config);

// FLOPs of a prompt of `tokens` tokens whose head is computed for `logits_rows` of them: 2 · in · out a token and
// matrix, and 4 · head_dim · heads for each of the keys that causal attention looks at. Norms, RoPE and SwiGLU are not
// counted.
double PrefillFlops(const Config& config, int64_t tokens, int64_t logits_rows);

// Bytes that the decoding of one token reads: every weight once (of the embedding one row), and the cached keys and
// values of `context` tokens, its own among them.
double DecodeBytes(const Config& config, DType dtype, int64_t context);

// Bytes of keys and values of `tokens` tokens in all layers.
int64_t CacheBytes(const Config& config, DType dtype, int64_t tokens);

}  // namespace lockstep
