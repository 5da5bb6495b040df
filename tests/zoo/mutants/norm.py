"""RMS norms."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo import ops
from zoo.context import Op, Wrong, from_position, mutant, only
from zoo.noise import NORM_WEIGHTS, norm_input

LAYER_NORMS = "attn_norm_output mlp_norm_output"
HEAD_NORMS = "attn_q_normed attn_k_normed"
EVERY = f"{LAYER_NORMS} {HEAD_NORMS} final_norm_output"
PARTNER = {
    "input_layernorm": "post_attention_layernorm",
    "post_attention_layernorm": "input_layernorm",
    "self_attn.q_norm": "self_attn.k_norm",
    "self_attn.k_norm": "self_attn.q_norm",
}


def own_weight(op: Op) -> Tensor:
    return op.weight(NORM_WEIGHTS[op.point][0])


def norm(weight: Callable[[Op], Tensor | None] = own_weight, eps: float | None = None, **knobs: Any) -> Wrong:
    def wrong(op: Op) -> Tensor:
        chosen = op.config.rms_norm_eps if eps is None else eps
        return ops.rms_norm(norm_input(op), weight(op), chosen, **knobs)

    return wrong


def partner(op: Op) -> Tensor:
    return op.weight(PARTNER[NORM_WEIGHTS[op.point][0]])


def next_layer(op: Op) -> Tensor:
    return op.weight(NORM_WEIGHTS[op.point][0], (op.layer + 1) % op.config.num_hidden_layers)


def whole_row(op: Op) -> Tensor:
    """Statistics over all heads of a token (vllm#16311)."""
    x = norm_input(op)
    flat = ops.rms_norm(x.flatten(1), None, op.config.rms_norm_eps)
    return own_weight(op) * flat.reshape(x.shape)


def skipped(op: Op) -> Tensor:
    return norm_input(op)


def twice(op: Op) -> Tensor:
    return ops.rms_norm(norm()(op), own_weight(op), op.config.rms_norm_eps)


def last_rows_statistics(op: Op) -> Tensor:
    """Each row is divided by the root mean square of the row before."""
    x = ops.widened(norm_input(op))
    inverse = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + op.config.rms_norm_eps).roll(1, 0)
    return own_weight(op) * (x * inverse).to(op.dtype)


def mean_absolute(op: Op) -> Tensor:
    x = ops.widened(norm_input(op))
    return own_weight(op) * (x / x.abs().mean(-1, keepdim=True)).to(op.dtype)


def largest(op: Op) -> Tensor:
    x = ops.widened(norm_input(op))
    return own_weight(op) * (x / x.abs().amax(-1, keepdim=True)).to(op.dtype)


def overlapping(stale: Callable[[Op], Tensor]) -> Wrong:
    """E1: each head is normed through a contiguous descriptor [T, d] at base head * d, while rows are H * d apart: only
    the first H + T - 1 of H * T slots are written."""

    def wrong(op: Op) -> Tensor:
        right = norm()(op)
        slots, heads = right.reshape(-1, right.shape[-1]), right.shape[1]
        memory = stale(op).reshape(slots.shape).clone()
        written = min(heads + op.tokens - 1, len(slots))
        memory[:written] = slots[:written]
        return memory.reshape(right.shape)

    return wrong


def garbage(op: Op) -> Tensor:
    return op.random(*op.right.shape) * 3


def of_layer_before(op: Op) -> Tensor:
    return op.at(op.point, op.layer - 1) if op.layer else torch.zeros_like(op.right)


def unrounded_sum(op: Op) -> Tensor:
    """vllm-omni#6878: the norm reads the residual sum before it is rounded to the storage dtype."""
    total = ops.widened(op["input_hidden_states"]) + ops.widened(op["attn_o_proj"])
    return own_weight(op) * ops.rms_norm(total, None, op.config.rms_norm_eps).to(op.dtype)


MUTANTS = (
    mutant(
        "norm-mlp-reads-layer-input",
        "the MLP's norm reads the stream that entered the layer",
        "mlp_norm_output",
        lambda op: ops.rms_norm(op["input_hidden_states"], own_weight(op), op.config.rms_norm_eps),
        "norm-wrong-input",
    ),
    mutant(
        "norm-eps-1e-5",
        "eps 1e-5 for 1e-6 in every norm (llama.cpp#2373, aprender#1606)",
        EVERY,
        norm(eps=1e-5),
        "norm-eps",
        tags="subtle",
        sample=True,
    ),
    mutant(
        "norm-eps-1e-5-small",
        "eps 1e-5 for 1e-6 where rows have an RMS of 0.02",
        LAYER_NORMS,
        norm(eps=1e-5),
        "norm-eps",
        run="small",
        layers=0,
        tags="subtle",
        sample=True,
    ),
    mutant("norm-eps-1e-8", "eps 1e-8 (FastDeploy#2804)", "attn_norm_output", norm(eps=1e-8), "norm-eps", run="small"),
    mutant("norm-eps-0", "no eps at all", "attn_norm_output", norm(eps=0.0), "norm-eps", run="small"),
    mutant("norm-eps-1e-3", "eps 1e-3, read from the wrong place (llama.cpp#14545)", EVERY, norm(eps=1e-3), "norm-eps"),
    mutant("norm-eps-odd", "eps 3.3e-4, as no recipe has it", "mlp_norm_output", norm(eps=3.3e-4), "norm-eps"),
    mutant(
        "norm-eps-outside",
        "eps is added after the root (MinivLLM#82)",
        LAYER_NORMS,
        norm(eps_outside=True, eps=1e-4),
        ("norm-eps-outside-root", "norm-eps"),
        run="small",
        layers=0,
    ),
    mutant(
        "norm-eps-outside-1e-6",
        "the configured eps is added after the root",
        LAYER_NORMS,
        norm(eps_outside=True),
        "norm-eps-outside-root",
        run="small",
        layers=0,
        twins=(("norm-eps", norm(eps=1e-8)),),  # 4e-5 apart where rows have an RMS of 0.02: far below a step of bf16
    ),
    mutant("norm-no-weight", "the weight is not applied", LAYER_NORMS, norm(lambda op: None), "norm-no-weight"),
    mutant(
        "norm-one-plus-weight",
        "1 + weight, as Gemma stores it",
        EVERY,
        norm(lambda op: 1 + own_weight(op)),
        "norm-one-plus-weight",
        sample=True,
    ),
    mutant(
        "norm-input-post-swapped",
        "the weights of input_layernorm and post_attention_layernorm are swapped",
        LAYER_NORMS,
        norm(partner),
        "norm-other-weight",
    ),
    mutant("norm-q-k-swapped", "q_norm and k_norm are swapped", HEAD_NORMS, norm(partner), "norm-other-weight"),
    mutant(
        "norm-next-layer",
        "layer 1 reads the next layer's input_layernorm",
        "attn_norm_output",
        norm(next_layer),
        "norm-other-weight",
        layers=1,
    ),
    mutant(
        "norm-final-wrong-weight",
        "the final norm uses the last layer's input_layernorm",
        "final_norm_output",
        norm(lambda op: op.weight("input_layernorm", op.config.num_hidden_layers - 1)),
        "norm-other-weight",
    ),
    mutant(
        "norm-layernorm", "LayerNorm: the mean is subtracted", LAYER_NORMS, norm(center=True), "norm-mean-subtracted"
    ),
    mutant(
        "norm-q-layernorm",
        "q_norm subtracts the mean, at one layer",
        "attn_q_normed",
        norm(center=True),
        "norm-mean-subtracted",
        layers=1,
    ),
    mutant(
        "norm-whole-row",
        "q/k norm over all heads together (vllm#16311)",
        HEAD_NORMS,
        whole_row,
        "norm-whole-row",
        sample=True,
    ),
    mutant("norm-qk-skipped", "no q/k norm path (aprender#479)", HEAD_NORMS, skipped, ("norm-skipped", "op-skipped")),
    mutant(
        "norm-qk-skipped-decode",
        "q/k norm is skipped in decode (tt-mlir#9042)",
        HEAD_NORMS,
        skipped,
        ("norm-skipped", "op-skipped"),
        run="decode",
        phase="decode",
        sample=True,
    ),
    mutant(
        "norm-k-skipped-later-chunk",
        "k_norm is skipped in later chunks",
        "attn_k_normed",
        skipped,
        ("norm-skipped", "op-skipped"),
        run="chunks",
        later_chunk=True,
    ),
    mutant(
        "norm-q-skipped-one-head",
        "q_norm skips one head",
        "attn_q_normed",
        skipped,
        ("norm-skipped", "op-skipped"),
        heads=(3,),
        layers=1,
    ),
    mutant("norm-final-skipped", "no final norm", "final_norm_output", skipped, ("norm-skipped", "op-skipped")),
    mutant("norm-twice", "the MLP's norm runs twice", "mlp_norm_output", twice, ("norm-twice", "op-twice")),
    mutant(
        "norm-q-twice", "q_norm runs twice at one layer", "attn_q_normed", twice, ("norm-twice", "op-twice"), layers=0
    ),
    mutant(
        "norm-bf16-statistics",
        "squares and their mean in bf16 (sglang#27540)",
        EVERY,
        norm(statistics=torch.bfloat16),
        "norm-low-precision-statistics",
    ),
    mutant(
        "norm-f16-statistics",
        "squares and their mean in f16",
        LAYER_NORMS,
        norm(statistics=torch.float16),
        "norm-low-precision-statistics",
        dtypes=("f32",),
    ),
    mutant(
        "norm-count-minus-one",
        "the mean divides by D - 1",
        LAYER_NORMS,
        norm(count=-1),
        "norm-count",
        tags="subtle",
        sample=True,
    ),
    mutant("norm-count-plus-one", "the mean divides by D + 1", "final_norm_output", norm(count=1), "norm-count"),
    mutant(
        "norm-head-count-padded",
        "q/k norm divides by a head_dim padded by 16",
        HEAD_NORMS,
        norm(count=16),
        "norm-count",
    ),
    mutant("norm-sum", "the sum of squares instead of their mean", LAYER_NORMS, norm(mean=False), "norm-no-mean"),
    mutant(
        "norm-unrounded-residual",
        "the norm of the un-rounded residual (vllm-omni#6878)",
        "mlp_norm_output",
        unrounded_sum,
        ("norm-low-precision-statistics", "linear-wrong-input", "noise", None),
        patterns="all-layers",
        dtypes=("bf16",),
    ),
    mutant(
        "norm-overlapping-garbage",
        "E1: per-head norm through a contiguous descriptor; the rest is garbage (1bit-MONSTER#2147)",
        HEAD_NORMS,
        overlapping(garbage),
        "rows-overlapping",
        run="decode",
        sample=True,
    ),
    mutant(
        "norm-overlapping-zero",
        "E1 in memory that was zero",
        HEAD_NORMS,
        overlapping(lambda op: torch.zeros_like(op.right)),
        ("rows-overlapping", "values-zero"),
    ),
    mutant(
        "norm-overlapping-reused",
        "E1 in a buffer that still holds the layer before",
        "attn_q_normed",
        overlapping(of_layer_before),
        ("rows-overlapping", "rows-stale"),
    ),
    mutant(
        "norm-stale-statistics",
        "each row is scaled by the statistics of the row before",
        "attn_norm_output",
        last_rows_statistics,
        (None, "rows-stale"),
        patterns="all-layers",
    ),
    mutant(
        "norm-mean-absolute",
        "the mean of absolute values instead of the root mean square",
        "mlp_norm_output",
        mean_absolute,
        (None,),
        patterns="all-layers",
    ),
    mutant(
        "norm-maximum",
        "rows are divided by their largest value",
        "attn_k_normed",
        largest,
        (None,),
        patterns="all-layers",
    ),
    mutant(
        "norm-one-token",
        "one token of one layer misses its norm weight",
        "mlp_norm_output",
        norm(lambda op: None),
        "norm-no-weight",
        layers=1,
        rows=only(17),
    ),
    mutant(
        "norm-from-1024",
        "q_norm misses its weight from position 1088 on",
        "attn_q_normed",
        norm(lambda op: None),
        "norm-no-weight",
        run="long",
        rows=from_position(1088),
    ),
)
