"""Mechanisms that no op is named after: scales, signs, noise, permutations, stale rows, coarse grids, one element."""

from collections.abc import Callable

import torch
from torch import Tensor

from zoo import ops
from zoo.context import Op, Wrong, from_position, last_row, mutant, only

Change = Callable[[Op, Tensor], Tensor]


def made(change: Change) -> Wrong:
    """A change of what the right op gave."""
    return lambda op: change(op, op.right)


def scaled(factor: float) -> Wrong:
    return lambda op: op.right * factor


def noisy(size: float) -> Wrong:
    """Random errors of `size` times the tensor's RMS."""
    return lambda op: (
        op.right + size * ops.widened(op.right).pow(2).mean().sqrt().to(op.dtype) * op.random(*op.right.shape)
    )


def one_element(factor: float) -> Wrong:
    def wrong(op: Op) -> Tensor:
        y = op.right.clone()
        flat = y.flatten(1)
        flat[op.tokens // 2, flat.shape[1] // 3] = flat[op.tokens // 2].abs().mean() * factor
        return flat.reshape(y.shape)

    return wrong


def channels(first: int, end: int, value: Callable[[Tensor], Tensor]) -> Wrong:
    def wrong(op: Op) -> Tensor:
        y = op.right.clone()
        y[..., first:end] = value(y[..., first:end])
        return y

    return wrong


def shuffled(op: Op) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return op.right[..., torch.randperm(op.right.shape[-1], generator=generator)]


def row_copied(row: int, source: int) -> Wrong:
    def wrong(op: Op) -> Tensor:
        y = op.right.clone()
        y[row] = y[source]
        return y

    return wrong


def tokens_swapped(op: Op) -> Tensor:
    y = op.right.clone()
    y[[10, 20]] = y[[20, 10]]
    return y


def layer_before(op: Op) -> Tensor:
    """The buffer still holds the layer before."""
    return op.at(op.point, op.layer - 1)


def call_before(op: Op) -> Tensor:
    """The buffer still holds the row of the step before."""
    if not op.past:
        return op.right
    return op.past[-1][op.point, op.layer][-op.tokens :].to(op.dtype)


def other_sequence(op: Op) -> Tensor:
    theirs = op.of_sequence(op.point, 0)
    return theirs[: op.tokens] if len(theirs) >= op.tokens else op.right


def head_token_mixed(op: Op) -> Tensor:
    """[heads, T, d] read as [T, heads, d]."""
    return op.right.transpose(0, 1).reshape(op.right.shape)


def with_nan(op: Op) -> Tensor:
    y = op.right.clone()
    y[op.tokens // 2, ..., 3] = float("nan")
    return y


MUTANTS = (
    mutant(
        "any-scale-k",
        "k is 0.5 % too large",
        "attn_k_normed",
        scaled(1.005),
        "values-scaled",
        tags="subtle",
        sample=True,
    ),
    mutant(
        "any-scale-down", "down_proj is 0.5 % too large", "mlp_down_proj", scaled(1.005), "values-scaled", tags="subtle"
    ),
    mutant(
        "any-scale-context",
        "the context is 0.5 % too large",
        "attn_context",
        scaled(1.005),
        "values-scaled",
        tags="subtle",
    ),
    mutant(
        "any-scale-swiglu",
        "the product is 0.5 % too large, at one layer",
        "mlp_intermediate",
        scaled(1.005),
        "values-scaled",
        layers=1,
        tags="subtle",
    ),
    mutant(
        "any-scale-stream",
        "the stream is 0.5 % too large, at one layer",
        "layer_output",
        scaled(1.005),
        "values-scaled",
        layers=1,
        tags="subtle",
    ),
    mutant(
        "any-scale-rope",
        "rotated q is 0.5 % too large",
        "attn_q_rope",
        scaled(1.005),
        ("values-scaled", "rope-magnitude"),
        tags="subtle",
    ),
    mutant(
        "any-scale-norm",
        "the final norm is 0.5 % too large",
        "final_norm_output",
        scaled(1.005),
        "values-scaled",
        tags="subtle",
    ),
    mutant("any-scale-logits", "logits are 0.5 % too large", "logits", scaled(1.005), "values-scaled", tags="subtle"),
    mutant("any-scale-odd", "gate is scaled by 1.37", "mlp_gate_proj", scaled(1.37), "values-scaled"),
    mutant(
        "any-scale-one-head",
        "one head of v is scaled by 1.25",
        "attn_v_proj_raw",
        scaled(1.25),
        "values-scaled",
        heads=(1,),
    ),
    mutant(
        "any-one-element",
        "one element of one row is wrong",
        "mlp_down_proj",
        one_element(3.0),
        (None, "noise"),
        patterns="one-element",
        layers=1,
        tags="subtle",
        sample=True,
    ),
    mutant(
        "any-one-element-q",
        "one element of one row of q is wrong",
        "attn_q_rope",
        one_element(2.0),
        (None, "noise"),
        patterns="one-element",
        layers=0,
        tags="subtle",
    ),
    mutant(
        "any-one-element-norm",
        "one element of one row of a norm is wrong",
        "attn_norm_output",
        one_element(2.0),
        (None, "noise"),
        patterns="one-element",
        layers="last",
        tags="subtle",
    ),
    mutant(
        "any-one-logit",
        "one logit is wrong",
        "logits",
        one_element(5.0),
        (None, "noise"),
        patterns="one-element",
        tags="subtle",
    ),
    mutant(
        "any-noise-head",
        "random errors of 1 % in one head of q",
        "attn_q_rope",
        noisy(0.01),
        (None, "noise"),
        patterns="some-heads",
        heads=(3,),
        layers=1,
    ),
    mutant(
        "any-noise",
        "random errors of 3 % in up_proj",
        "mlp_up_proj",
        noisy(0.03),
        (None, "noise"),
        patterns="all-layers",
    ),
    mutant(
        "any-noise-decode",
        "random errors of 5 % in o_proj in decode",
        "attn_o_proj",
        noisy(0.05),
        (None, "noise"),
        patterns="decode-only",
        run="decode",
        phase="decode",
    ),
    mutant(
        "any-sign-head",
        "one head of the context has the wrong sign",
        "attn_context",
        scaled(-1),
        ("values-scaled", None),
        patterns="some-heads constant-ratio",
        heads=(1,),
        layers=1,
        sample=True,
    ),
    mutant("any-sign", "k has the wrong sign", "attn_k_proj_raw", scaled(-1), "values-scaled"),
    mutant(
        "any-clamp-10",
        "q and k are clamped (the seed's debug branch)",
        "attn_q_proj_raw attn_k_proj_raw",
        made(lambda op, y: y.clamp(-1.5, 1.5)),
        "values-clamped",
        sample=True,
    ),
    mutant(
        "any-clamp-stream",
        "the stream is clamped",
        "layer_output",
        made(lambda op, y: y.clamp(-2, 2)),
        "values-clamped",
        layers="last",
    ),
    mutant(
        "any-block-zero",
        "channels 64 to 127 of gate are zero",
        "mlp_gate_proj",
        channels(64, 128, torch.zeros_like),
        (None, "values-zero"),
        patterns="channel-block zeros",
    ),
    mutant(
        "any-block-scaled",
        "channels 32 to 63 of the norm are scaled by 2",
        "mlp_norm_output",
        channels(32, 64, lambda y: 2 * y),
        (None, "values-scaled"),
        patterns="channel-block",
        layers=1,
    ),
    mutant(
        "any-channel-zero",
        "one channel of down_proj is zero",
        "mlp_down_proj",
        channels(7, 8, torch.zeros_like),
        (None, "values-zero"),
        patterns="some-channels zeros channel-block",
    ),
    mutant(
        "any-zero-layer",
        "one layer's context is never written",
        "attn_context",
        made(lambda op, y: torch.zeros_like(y)),
        "values-zero",
        layers=2,
        sample=True,
    ),
    mutant(
        "any-zero-head",
        "one kv head of v is never written",
        "attn_v_proj_raw",
        made(lambda op, y: torch.zeros_like(y)),
        "values-zero",
        heads=(0,),
    ),
    mutant(
        "any-zero-row",
        "one row of swiglu is never written",
        "mlp_intermediate",
        made(lambda op, y: torch.zeros_like(y)),
        "values-zero",
        rows=only(20),
        layers=0,
    ),
    mutant(
        "any-zero-from",
        "rows of the norm are never written from position 1088 on",
        "attn_norm_output",
        made(lambda op, y: torch.zeros_like(y)),
        "values-zero",
        rows=from_position(1088),
        run="long",
    ),
    mutant(
        "any-channels-reversed",
        "channels are in reversed order",
        "mlp_up_proj",
        made(lambda op, y: y.flip(-1)),
        ("values-permuted", "linear-rows-permuted"),
        layers=1,
    ),
    mutant("any-channels-shuffled", "channels are in a random order", "mlp_norm_output", shuffled, "values-permuted"),
    mutant(
        "any-channels-rolled",
        "channels of each head of q are rolled by one",
        "attn_q_normed",
        made(lambda op, y: y.roll(1, -1)),
        "values-permuted",
    ),
    mutant(
        "any-heads-rolled",
        "heads of q are rolled by one",
        "attn_q_rope",
        made(lambda op, y: y.roll(1, 1)),
        "values-permuted",
    ),
    mutant(
        "any-tokens-reversed",
        "rows of v are in reversed order",
        "attn_v_proj_raw",
        made(lambda op, y: y.flip(0)),
        "values-permuted",
        layers=0,
    ),
    mutant(
        "any-tokens-swapped",
        "two rows of gate are swapped",
        "mlp_gate_proj",
        tokens_swapped,
        ("values-permuted", "rows-stale"),
        layers=1,
    ),
    mutant(
        "any-head-token-mixed",
        "[heads, T, d] is read as [T, heads, d]",
        "attn_k_normed",
        head_token_mixed,
        "values-permuted",
        layers=1,
    ),
    mutant(
        "any-row-copied", "row 7 of up_proj is a copy of row 6", "mlp_up_proj", row_copied(7, 6), "rows-stale", layers=1
    ),
    mutant(
        "any-layer-before",
        "up_proj still holds the layer before",
        "mlp_up_proj",
        layer_before,
        "rows-stale",
        layers=2,
        sample=True,
    ),
    mutant(
        "any-layer-before-norm",
        "the attention's norm still holds the layer before",
        "attn_norm_output",
        layer_before,
        "rows-stale",
        layers=1,
    ),
    mutant(
        "any-step-before",
        "q still holds the step before",
        "attn_q_normed",
        call_before,
        "rows-stale",
        run="decode",
        phase="decode",
        layers=1,
    ),
    mutant(
        "any-step-before-logits",
        "logits are those of the step before",
        "logits",
        call_before,
        "rows-stale",
        run="decode",
        phase="decode",
    ),
    mutant(
        "any-other-sequence",
        "sequence 2 of a batch gets the rows of sequence 0",
        "mlp_down_proj",
        other_sequence,
        ("rows-stale", None),
        patterns="one-sequence",
        run="batch",
        sequence=2,
        layers=1,
    ),
    mutant(
        "any-int8",
        "activations are rounded to int8 rows",
        "mlp_intermediate",
        made(lambda op, y: ops.int_grid(y, 8)),
        ("values-rounded", None),
        patterns="coarse-grid",
    ),
    mutant(
        "any-fp8",
        "v is stored in fp8",
        "attn_v_proj_raw",
        made(lambda op, y: op.rounded(y, torch.float8_e4m3fn)),
        "values-rounded",
        sample=True,
    ),
    mutant(
        "any-bf16",
        "the context is rounded to bf16",
        "attn_context",
        made(lambda op, y: op.rounded(y, torch.bfloat16)),
        "values-rounded",
        dtypes=("f32",),
    ),
    mutant(
        "any-bf16-one-layer",
        "down_proj is rounded to bf16 at one layer",
        "mlp_down_proj",
        made(lambda op, y: op.rounded(y, torch.bfloat16)),
        "values-rounded",
        dtypes=("f32",),
        layers=1,
    ),
    mutant(
        "any-f16-logits",
        "logits are rounded to f16",
        "logits",
        made(lambda op, y: op.rounded(y, torch.float16)),
        "values-rounded",
        dtypes=("f32",),
    ),
    mutant(
        "any-truncated",
        "results are truncated to bf16, not rounded",
        "mlp_norm_output",
        made(lambda op, y: (y.float().view(torch.int32) & -65536).view(torch.float32).to(op.dtype)),
        ("values-rounded", None),
        patterns="coarse-grid",
        dtypes=("f32",),
    ),
    mutant("any-nan", "one value of one row is NaN", "attn_o_proj", with_nan, "values-nan", layers=1),
    mutant(
        "any-offset",
        "a constant is added to the norm's output",
        "mlp_norm_output",
        made(lambda op, y: y + 0.1),
        (None, "linear-bias"),
        patterns="constant-offset",
    ),
    mutant(
        "any-last-row",
        "the last row of q is scaled by 0.8",
        "attn_q_proj_raw",
        scaled(0.8),
        ("values-scaled", None),
        patterns="last-token-only one-row",
        rows=last_row,
        layers=0,
    ),
    mutant(
        "any-first-row",
        "the first row of o_proj is doubled",
        "attn_o_proj",
        scaled(2.0),
        ("linear-doubled", "values-scaled", None),
        patterns="first-token-only one-row",
        rows=only(0),
    ),
    mutant(
        "any-later-chunk",
        "up_proj is scaled by 1.1 in the second chunk",
        "mlp_up_proj",
        scaled(1.1),
        ("values-scaled", None),
        patterns="later-chunk-only constant-ratio",
        run="chunks",
        later_chunk=True,
    ),
    mutant(
        "any-one-sequence",
        "gate of one sequence is scaled by 0.9",
        "mlp_gate_proj",
        scaled(0.9),
        ("values-scaled", None),
        patterns="one-sequence constant-ratio",
        run="batch",
        sequence=1,
    ),
)
