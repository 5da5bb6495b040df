"""Rotary embeddings and positions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo import ops
from zoo.context import Op, Wrong, from_position, mutant
from zoo.noise import ROPE_INPUTS

Q, K = "attn_q_rope", "attn_k_rope"
BOTH = f"{Q} {K}"


def own_input(op: Op) -> Tensor:
    return op[ROPE_INPUTS[op.point]]


def rotated(
    positions: Callable[[Op], Tensor] = lambda op: op.positions, theta: float | None = None, **knobs: Any
) -> Wrong:
    return lambda op: ops.rope(own_input(op), positions(op), theta or op.config.rope_theta, **knobs)


def scaled(recipe: Callable[[int, float], Tensor], magnitude: float = 1.0) -> Wrong:
    def wrong(op: Op) -> Tensor:
        inverse = recipe(op.config.head_dim, op.config.rope_theta)
        return ops.rope(own_input(op), op.positions, 0, inverse=inverse, magnitude=magnitude)

    return wrong


def yarn(factor: float, original: int, use_magnitude: bool) -> Wrong:
    def wrong(op: Op) -> Tensor:
        inverse, magnitude = ops.yarn_scaling(op.config.head_dim, op.config.rope_theta, factor, original)
        chosen = magnitude if use_magnitude else 1.0
        return ops.rope(own_input(op), op.positions, 0, inverse=inverse, magnitude=chosen)

    return wrong


def skipped(op: Op) -> Tensor:
    return own_input(op)


def twice(op: Op) -> Tensor:
    return ops.rope(rotated()(op), op.positions, op.config.rope_theta)


def before_norm(op: Op) -> Tensor:
    """The norm runs after the rotation (torchtune#2809)."""
    name, weight = {Q: ("attn_q_proj_raw", "self_attn.q_norm"), K: ("attn_k_proj_raw", "self_attn.k_norm")}[op.point]
    turned = ops.rope(op[name], op.positions, op.config.rope_theta)
    return ops.rms_norm(turned, op.weight(weight), op.config.rms_norm_eps)


def overlapping(op: Op) -> Tensor:
    """E2: the rotation of each head runs in place through a contiguous descriptor [T, d] at base head * d, while rows
    are H * d apart; overlapping slots turn several times, with other tokens' positions."""
    x = own_input(op)
    heads, slots = x.shape[1], x.reshape(-1, 1, x.shape[-1]).clone()
    for head in range(heads):
        end = min(head + op.tokens, len(slots))
        slots[head:end] = ops.rope(slots[head:end], op.positions[: end - head], op.config.rope_theta)
    return slots.reshape(x.shape)


def only_first_token_count(op: Op) -> Tensor:
    """Positions counted over the flattened batch: each sequence goes on where the one before ended."""
    return op.positions + sum(len(call["input_embeddings", None]) for calls in op.others.values() for call in calls[:1])


def inner_pairs(op: Op) -> Tensor:
    """The pairs are (i, d - 1 - i): neither half-split nor interleaved."""
    x = own_input(op)
    first, second = x.chunk(2, -1)
    turned = ops.rope(torch.cat((first, second.flip(-1)), -1), op.positions, op.config.rope_theta)
    first, second = turned.chunk(2, -1)
    return torch.cat((first, second.flip(-1)), -1)


def frequencies_reversed(op: Op) -> Tensor:
    inverse = ops.frequencies(op.config.head_dim, op.config.rope_theta, torch.float64).flip(0)
    return ops.rope(own_input(op), op.positions, 0, inverse=inverse)


def other_exponent(op: Op) -> Tensor:
    """Frequencies theta^(-i / d) instead of theta^(-2i / d)."""
    d = op.config.head_dim
    return ops.rope(own_input(op), op.positions, op.config.rope_theta**0.5) if d else own_input(op)


def sign_lost(op: Op) -> Tensor:
    """rotate_half without its minus sign."""
    x = own_input(op)
    angles = op.positions[:, None].to(ops.wide_dtype(x.dtype)) * ops.frequencies(
        x.shape[-1], op.config.rope_theta, x.dtype
    )
    cos, sin = (f(angles).to(x.dtype)[:, None] for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos + b * sin, b * cos + a * sin), -1)


MUTANTS = (
    mutant(
        "rope-k-reads-v",
        "the rotation of k reads v",
        K,
        lambda op: ops.rope(op["attn_v_proj_raw"], op.positions, op.config.rope_theta),
        "rope-wrong-input",
        layers=1,
    ),
    mutant(
        "rope-interleaved",
        "E3: interleaved rotation of half-split weights (AiDotNet#2074, TinyLlama#24)",
        BOTH,
        rotated(interleaved=True),
        "rope-interleaved",
        sample=True,
    ),
    mutant(
        "rope-k-interleaved-one-layer",
        "k is rotated in interleaved pairs at one layer (Camelid#266)",
        K,
        rotated(interleaved=True),
        "rope-interleaved",
        layers=1,
    ),
    mutant(
        "rope-q-interleaved-one-head",
        "one head of q is rotated in interleaved pairs",
        Q,
        rotated(interleaved=True),
        "rope-interleaved",
        heads=(2,),
        layers=0,
    ),
    mutant("rope-direction", "rotates the wrong way", BOTH, rotated(direction=-1), "rope-direction"),
    mutant(
        "rope-theta-1e4",
        "theta falls back to 10000 (airllm#369, DeepSpeed#8345)",
        BOTH,
        rotated(theta=1e4),
        "rope-theta",
        sample=True,
    ),
    mutant("rope-theta-5e5", "theta 500000", BOTH, rotated(theta=5e5), "rope-theta"),
    mutant("rope-theta-5e6", "theta 5000000, of the 2507 releases", BOTH, rotated(theta=5e6), "rope-theta"),
    mutant("rope-theta-odd", "theta 123456, as no model has it", BOTH, rotated(theta=123456), "rope-theta"),
    mutant("rope-theta-near", "theta 1010000", BOTH, rotated(theta=1.01e6), "rope-theta", run="long"),
    mutant(
        "rope-theta-decode",
        "theta 10000 in decode only",
        Q,
        rotated(theta=1e4),
        "rope-theta",
        run="decode",
        phase="decode",
    ),
    mutant(
        "rope-offset-1",
        "positions start at 1",
        BOTH,
        rotated(lambda op: op.positions + 1),
        "rope-position-offset",
        sample=True,
    ),
    mutant(
        "rope-offset-decode",
        "positions in decode are one too small",
        BOTH,
        rotated(lambda op: op.positions - 1),
        "rope-position-offset",
        run="decode",
        phase="decode",
    ),
    mutant(
        "rope-offset-37",
        "k's positions are 37 too large",
        K,
        rotated(lambda op: op.positions + 37),
        "rope-position-offset",
    ),
    mutant(
        "rope-zero-decode",
        "the position in decode is always 0 (mlx-vlm#1983, flashinfer#847)",
        BOTH,
        rotated(lambda op: op.positions * 0),
        ("rope-position-zero", "rope-position-restarted", "rope-skipped", "op-skipped"),
        run="decode",
        phase="decode",
        sample=True,
    ),
    mutant(
        "rope-zero-long-decode",
        "the position in decode is always 0, after 1060 tokens",
        BOTH,
        rotated(lambda op: op.positions * 0),
        ("rope-position-zero", "rope-position-restarted", "rope-skipped", "op-skipped"),
        run="long-decode",
        phase="decode",
    ),
    mutant(
        "rope-restarted",
        "positions restart in the second chunk",
        BOTH,
        rotated(lambda op: op.positions - op.start),
        ("rope-position-restarted", "rope-position-offset"),
        run="chunks",
        sample=True,
    ),
    mutant(
        "rope-batch-flat",
        "positions are counted over the flattened batch",
        BOTH,
        rotated(only_first_token_count),
        ("rope-position-other", "rope-position-offset"),
        run="batch",
        phase="prefill",
    ),
    mutant(
        "rope-batch-row",
        "the row of the batch is the position",
        BOTH,
        rotated(lambda op: op.positions * 0 + op.sequence),
        "rope-position-other",
        run="batch",
        phase="decode",
    ),
    mutant(
        "rope-batch-one",
        "positions of one sequence of the batch are 2 too large",
        BOTH,
        rotated(lambda op: op.positions + 2),
        "rope-position-offset",
        run="batch",
        sequence=1,
    ),
    mutant(
        "rope-position-halved",
        "position / 2, rounded down",
        BOTH,
        rotated(lambda op: op.positions // 2),
        "rope-position-other",
    ),
    mutant(
        "rope-position-reversed",
        "positions count from the end of the prompt",
        BOTH,
        rotated(lambda op: op.tokens - 1 - op.positions),
        "rope-position-other",
    ),
    mutant(
        "rope-position-squared",
        "an odd map of positions",
        BOTH,
        rotated(lambda op: op.positions**2 % 61),
        "rope-position-other",
    ),
    mutant(
        "rope-position-clamped",
        "tables end at position 1087",
        BOTH,
        rotated(lambda op: op.positions.clamp(max=1087)),
        "rope-position-other",
        run="long",
    ),
    mutant(
        "rope-position-wraps",
        "positions are kept in 10 bits",
        BOTH,
        rotated(lambda op: op.positions % 1024),
        ("rope-position-other", "rope-position-offset"),
        run="long",
    ),
    mutant(
        "rope-linear-scaling",
        "linear scaling by 4 where there is none (llama.cpp#8676)",
        BOTH,
        scaled(lambda d, theta: ops.linear_scaling(d, theta, 4)),
        "rope-scaling",
    ),
    mutant(
        "rope-ntk-scaling",
        "ntk scaling by 4 where there is none",
        BOTH,
        scaled(lambda d, theta: ops.ntk_scaling(d, theta, 4)),
        ("rope-scaling", "rope-theta"),
    ),
    mutant(
        "rope-yarn",
        "YaRN by 4 over 32768 where there is none (tiny-vllm#1)",
        BOTH,
        yarn(4, 32768, True),
        "rope-scaling",
    ),
    mutant(
        "rope-yarn-no-magnitude",
        "YaRN by 4 over 4096 without its magnitude",
        BOTH,
        yarn(4, 4096, False),
        "rope-scaling",
        run="long",
    ),
    mutant(
        "rope-llama3",
        "Llama 3's scaling by 8 over 8192 where there is none (ik_llama.cpp#2291)",
        BOTH,
        scaled(lambda d, theta: ops.llama3_scaling(d, theta, 8, 8192)),
        "rope-scaling",
    ),
    mutant(
        "rope-magnitude",
        "cos and sin are multiplied by YaRN's 1.1386",
        BOTH,
        rotated(magnitude=1.1386),
        ("rope-magnitude", "values-scaled"),
    ),
    mutant("rope-skipped", "no rotation", BOTH, skipped, ("rope-skipped", "op-skipped", "rope-position-zero")),
    mutant(
        "rope-k-skipped",
        "k is not rotated, at one layer",
        K,
        skipped,
        ("rope-skipped", "op-skipped", "rope-position-zero"),
        layers="last",
    ),
    mutant(
        "rope-skipped-later-chunk",
        "no rotation in the second chunk",
        BOTH,
        skipped,
        ("rope-skipped", "op-skipped", "rope-position-zero"),
        run="chunks",
        later_chunk=True,
    ),
    mutant("rope-twice", "q and k are rotated twice", BOTH, twice, ("rope-twice", "op-twice", "rope-position-other")),
    mutant(
        "rope-before-norm", "the norm runs after the rotation (torchtune#2809)", BOTH, before_norm, "rope-before-norm"
    ),
    mutant(
        "rope-tables-bf16",
        "tables in bf16 (transformers#29285)",
        BOTH,
        rotated(tables=torch.bfloat16),
        ("rope-tables-rounded", "values-rounded"),
        dtypes=("f32",),
        sample=True,
    ),
    mutant(
        "rope-tables-f16", "tables in f16", Q, rotated(tables=torch.float16), "rope-tables-rounded", dtypes=("f32",)
    ),
    mutant(
        "rope-angles-bf16",
        "angles in bf16 (sglang-jax#1472)",
        BOTH,
        rotated(angles_in=torch.bfloat16),
        ("rope-tables-rounded", "rope-position-other"),
        run="long",
    ),
    mutant(
        "rope-angles-f16",
        "angles in f16",
        BOTH,
        rotated(angles_in=torch.float16),
        ("rope-tables-rounded", "rope-position-other"),
        run="long",
    ),
    mutant(
        "rope-partial",
        "only the first half of the channels turns",
        BOTH,
        lambda op: ops.rope(own_input(op), op.positions, op.config.rope_theta, width=op.config.head_dim // 2),
        "rope-partial",
    ),
    mutant(
        "rope-width-of-hidden",
        "the rotary width is hidden / heads (the seed's golden reference)",
        BOTH,
        lambda op: ops.rope(
            own_input(op),
            op.positions,
            op.config.rope_theta,
            width=op.config.hidden_size // op.config.num_attention_heads,
        ),
        "rope-partial",
        models=("tiny",),
    ),
    mutant(
        "rope-overlapping",
        "E2: in place through a contiguous descriptor",
        BOTH,
        overlapping,
        "rows-overlapping",
        run="decode",
        sample=True,
    ),
    mutant("rope-inner-pairs", "pairs (i, d - 1 - i)", BOTH, inner_pairs, (None,), patterns="exact-at-position-0"),
    mutant(
        "rope-frequencies-reversed",
        "frequencies in reversed order",
        BOTH,
        frequencies_reversed,
        "rope-frequencies",
    ),
    mutant("rope-other-exponent", "frequencies theta^(-i/d)", BOTH, other_exponent, ("rope-theta",)),
    mutant("rope-sign-lost", "rotate_half without its minus", BOTH, sign_lost, (None,), patterns="exact-at-position-0"),
    mutant(
        "rope-from-1024",
        "theta 10000 from position 1088 on",
        BOTH,
        rotated(theta=1e4),
        "rope-theta",
        run="long",
        rows=from_position(1088),
    ),
    mutant(
        "rope-k-head-skipped",
        "one kv head is not rotated",
        K,
        skipped,
        ("rope-skipped", "op-skipped", "rope-position-zero"),
        heads=(1,),
    ),
)
