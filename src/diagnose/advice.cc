// One practical sentence a cause.
#include "diagnose/causes.h"

namespace lockstep {
namespace {

struct Advice {
  std::string_view cause;
  std::string_view text;
};

constexpr Advice kAdvice[] = {
    {"embedding-id-shifted", "Check whether ids start at 0 or 1, and the offset of the vocabulary's shard."},
    {"embedding-scaled", "Qwen3 uses the embedding as it is; scaling by sqrt(hidden_size) is Gemma's."},
    {"embedding-wrong-row", "Check the layout of the embedding [vocabulary, hidden] and the order of the ids."},
    {"norm-eps", "Read rms_norm_eps from config.json instead of a default."},
    {"norm-eps-outside-root", "Add eps to the mean of squares, before the root."},
    {"norm-no-weight", "Multiply by the norm's weight after dividing."},
    {"norm-one-plus-weight", "Qwen3 multiplies by the weight itself; 1 + weight is Gemma's."},
    {"norm-other-weight", "Check the weight's name and layer in the loader."},
    {"norm-mean-subtracted", "RMSNorm does not centre; use no LayerNorm kernel."},
    {"norm-whole-row", "q_norm and k_norm work on each head's head_dim channels: pass that as the row length."},
    {"norm-skipped", "Call the norm on this path as well: prefill, decode and every chunk."},
    {"norm-twice", "Look for the norm both in the kernel and in its caller."},
    {"norm-low-precision-statistics", "Sum the squares in f32 whatever the storage is."},
    {"norm-count", "Divide the sum of squares by the number of channels that share the norm."},
    {"norm-no-mean", "Divide the sum of squares by the number of channels."},
    {"norm-wrong-input", "Check which buffer the norm is given, and whether it was overwritten."},
    {"linear-transposed", "Checkpoints hold [out, in]: transpose at load, or pass the flag to the matrix product."},
    {"linear-reinterpreted", "Transposing moves the elements; changing the shape alone does not."},
    {"linear-rows-permuted", "Remove the permutation at load, or permute its counterpart as well."},
    {"linear-other-layer", "Check the layer index in the loader and the stride between layers."},
    {"linear-other-weight", "Check the order and the offsets of the parts in the fused weight."},
    {"linear-bias", "Qwen3's projections have no bias: check what is passed as one."},
    {"linear-weight-rounded", "Keep the weights in the checkpoint's dtype, or declare the coarser one."},
    {"linear-shard-missing", "Sum the parts of all ranks (all-reduce), and check the count of shards."},
    {"linear-shard-doubled", "Check which slice each rank loads, and that every part is added once."},
    {"linear-shard-order", "Sort the shards by rank before they are put together."},
    {"linear-input-slices",
     "Row-parallel weights (o_proj, down_proj) are sliced along the columns, the others along the "
     "rows."},
    {"linear-doubled", "Look for a product that is issued twice, or that accumulates onto its own result."},
    {"linear-wrong-input", "Check which buffer the product reads."},
    {"linear-tie", "Use lm_head.weight, or embed_tokens where tie_word_embeddings is true."},
    {"rope-interleaved",
     "Hugging Face weights pair channel i with i + head_dim / 2 (NeoX): use that pairing, or permute "
     "the rows of q_proj and k_proj at load."},
    {"rope-direction", "First half: x1 cos - x2 sin; second half: x2 cos + x1 sin."},
    {"rope-theta", "Read rope_theta (or rope_parameters.rope_theta) from config.json; never use a default."},
    {"rope-position-offset", "Positions count from 0 at the sequence's start."},
    {"rope-position-zero", "Pass each token's position, in decode the number of tokens before it."},
    {"rope-position-restarted", "Add the number of tokens that are in the cache to the positions of a call."},
    {"rope-position-other", "Pass each token's position in its own sequence."},
    {"rope-scaling", "Apply rope_scaling as config.json has it: not at all where it is null."},
    {"rope-frequencies", "Pair i turns by position * theta^(-2i/head_dim)."},
    {"rope-skipped", "Call the rotation on this path as well: prefill, decode, q and k."},
    {"rope-twice", "Look for the rotation both in the kernel and in its caller, or on rows of the cache."},
    {"rope-before-norm", "Norm first, then rotate."},
    {"rope-tables-rounded", "Compute angles, cos and sin in f32; round only the products."},
    {"rope-partial", "Rotate all head_dim channels; head_dim is a key of config.json, not hidden_size / heads."},
    {"rope-magnitude", "cos and sin are not scaled unless config.json asks for YaRN."},
    {"rope-wrong-input", "Check which buffer the rotation reads."},
    {"attention-no-mask", "Mask keys after the query's position, in prefill too."},
    {"attention-mask-shifted",
     "A token sees itself and what came before: key <= position, counted from the sequence's "
     "start."},
    {"attention-scale", "Scale by 1 / sqrt(head_dim), once."},
    {"attention-heads-tiled", "Query head h reads key/value head h / (heads / kv_heads): repeat, do not tile."},
    {"attention-unrotated-k", "Write k to the cache after the rotation."},
    {"attention-unrotated-q", "Use q after norm and rotation."},
    {"attention-stale-cache",
     "Check the row that each token's k and v are written to, and the order of write and read."},
    {"attention-window", "Apply sliding_window only where config.json sets use_sliding_window."},
    {"attention-softmax-overflow", "Subtract the row's maximum before exp, and compute the softmax in f32."},
    {"attention-softcapped", "Qwen3 does not cap its scores."},
    {"attention-other-sequence", "Index the cache by the row's own sequence."},
    {"attention-head-order", "Transpose the result back to [token, head, head_dim] before o_proj."},
    {"attention-past-ignored", "Attend to the cache as well as to the call's own keys."},
    {"attention-value", "Check the pointers of k and v that the kernel is given."},
    {"attention-wrong-input", "Check the pointers that the kernel is given."},
    {"residual-missing", "Add the residual stream to the branch."},
    {"residual-doubled", "Look for a product that already adds the residual."},
    {"residual-branch-doubled", "Look for a product that is issued twice onto the residual."},
    {"residual-branch-missing", "Add the branch to the residual stream."},
    {"residual-after-norm", "Keep the stream before the norm for the residual."},
    {"residual-other", "Check which buffers are added, and whether one was overwritten before."},
    {"swiglu-gelu", "hidden_act is silu."},
    {"swiglu-gelu-tanh", "hidden_act is silu."},
    {"swiglu-quick-gelu", "hidden_act is silu."},
    {"swiglu-relu", "hidden_act is silu."},
    {"swiglu-sigmoid", "silu(x) is x * sigmoid(x)."},
    {"swiglu-swapped", "The activation belongs on gate: check the order of gate and up in the fused weight."},
    {"swiglu-no-product", "Multiply silu(gate) by up."},
    {"swiglu-no-activation", "Apply silu to gate before the product."},
    {"swiglu-sum", "Multiply silu(gate) by up."},
    {"swiglu-wrong-input", "Check which buffers the kernel is given."},
    {"shape", "Take head_dim from config.json: it is not hidden_size / num_attention_heads."},
    {"values-overflow", "bf16 values do not fit f16: keep bf16, or scale."},
    {"values-nan", "Look for a division by zero, a row without any visible key, or memory that was never written."},
};

}  // namespace

std::string_view AdviceFor(std::string_view cause) {
  for (const Advice& advice : kAdvice) {
    if (advice.cause == cause) return advice.text;
  }
  return "";
}

}  // namespace lockstep
