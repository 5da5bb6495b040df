"""The effect that a mutant must have, in noise units, computed in float64 and without the judge.

sigma is the standard deviation that rounding alone gives an element under the declared arithmetic, by the table of
variances that the judge is specified with; the effect is (wrong op - right op) / sigma on the mutant's own inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo import ops
from zoo.context import Op

SCALE_ERRORS = 8.0  # a scale counts from so many standard errors on
# The judge's sigma differs from ours by some percent, and noise adds to the effect: within this factor of a limit
# either answer is right.
GREY = 1.6

A = 2.0**-24  # rounding of f32 accumulation
MANTISSA = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
LEAST_EXPONENT = {torch.float32: -126, torch.bfloat16: -126, torch.float16: -14}
LINEAR_WEIGHTS = {
    "attn_q_proj_raw": ("self_attn.q_proj", "attn_norm_output"),
    "attn_k_proj_raw": ("self_attn.k_proj", "attn_norm_output"),
    "attn_v_proj_raw": ("self_attn.v_proj", "attn_norm_output"),
    "attn_o_proj": ("self_attn.o_proj", "attn_context"),
    "mlp_gate_proj": ("mlp.gate_proj", "mlp_norm_output"),
    "mlp_up_proj": ("mlp.up_proj", "mlp_norm_output"),
    "mlp_down_proj": ("mlp.down_proj", "mlp_intermediate"),
    "logits": ("lm_head", "final_norm_output"),
}
NORM_WEIGHTS = {
    "attn_norm_output": ("input_layernorm", "input_hidden_states"),
    "attn_q_normed": ("self_attn.q_norm", "attn_q_proj_raw"),
    "attn_k_normed": ("self_attn.k_norm", "attn_k_proj_raw"),
    "mlp_norm_output": ("post_attention_layernorm", "attn_residual_output"),
    "final_norm_output": ("norm", "layer_output"),
}
ROPE_INPUTS = {"attn_q_rope": "attn_q_normed", "attn_k_rope": "attn_k_normed"}
SUMS = {
    "attn_residual_output": ("input_hidden_states", "attn_o_proj"),
    "layer_output": ("attn_residual_output", "mlp_down_proj"),
}


def op_kind(point: str) -> str:
    if point in LINEAR_WEIGHTS:
        return "linear"
    if point in NORM_WEIGHTS:
        return "rms_norm"
    if point in ROPE_INPUTS:
        return "rope"
    if point in SUMS:
        return "residual"
    names = {
        "attn_scores": "scores",
        "attn_probs": "probs",
        "mlp_intermediate": "swiglu",
        "input_embeddings": "embedding",
        "input_hidden_states": "identity",
    }
    return names.get(point, "attention")


def norm_input(op: Op) -> Tensor:
    return op.stream() if op.layer is None else op[NORM_WEIGHTS[op.point][1]]


def right(op: Op) -> tuple[Tensor, Tensor]:
    """The right op in float64 and its variance, both [T, ...]. REQUIRES: op.dtype is float64."""
    kind = op_kind(op.point)
    value, variance = KINDS[kind](op)
    return value.reshape(op.right.shape), variance.reshape(op.right.shape)


def rounding(x: Tensor, storage: torch.dtype) -> Tensor:
    """r(x): the variance of rounding x to the storage dtype."""
    exponent = torch.frexp(x).exponent - 1
    exponent = exponent.clamp_min(LEAST_EXPONENT[storage]).masked_fill(x == 0, LEAST_EXPONENT[storage])
    return torch.ldexp(torch.ones_like(x), exponent - MANTISSA[storage]) ** 2 / 12


def _embedding(op: Op) -> tuple[Tensor, Tensor]:
    value = op.inputs if op.inputs is not None else op.weight("embed_tokens")[op.ids]
    return value.to(op.dtype), torch.zeros_like(value, dtype=op.dtype)


def _identity(op: Op) -> tuple[Tensor, Tensor]:
    value = op.at("input_embeddings", None) if op.layer == 0 else op.at("layer_output", op.layer - 1)
    return value, torch.zeros_like(value)


def _rms_norm(op: Op) -> tuple[Tensor, Tensor]:
    x, weight = norm_input(op), op.weight(NORM_WEIGHTS[op.point][0])
    z = ops.rms_norm(x, None, op.config.rms_norm_eps)
    y = weight * z
    return y, rounding(y, op.storage) + weight**2 * rounding(z, op.storage) + (2 * A * y) ** 2


def _linear(op: Op) -> tuple[Tensor, Tensor]:
    name, source = LINEAR_WEIGHTS[op.point]
    x, weight = op[source].flatten(1), op.weight(name)
    y = ops.linear(x, weight)
    return y, rounding(y, op.storage) + A**2 * x.shape[1] / 4 * ops.linear(x**2, weight**2)


def _rope(op: Op) -> tuple[Tensor, Tensor]:
    x = op[ROPE_INPUTS[op.point]]
    inverse = ops.frequencies(x.shape[-1], op.config.rope_theta, op.dtype)
    angle = (op.positions[:, None].double() * inverse).repeat(1, 2)[:, None]  # [T, 1, d]
    first, second = x.chunk(2, -1)
    other = torch.cat((-second, first), -1)
    cos, sin, da = angle.cos(), angle.sin(), 2 * A * angle
    y, storage = x * cos + other * sin, op.storage
    variance = rounding(y, storage) + rounding(x * cos, storage) + rounding(other * sin, storage)
    variance += x**2 * (rounding(cos, storage) + (sin * da) ** 2) + other**2 * (
        rounding(sin, storage) + (cos * da) ** 2
    )
    return y, variance


def _attention(op: Op) -> tuple[Tensor, Tensor]:
    q, k, v = op["attn_q_rope"], op.whole("attn_k_rope"), op.whole("attn_v_proj_raw")
    groups, d, storage = q.shape[1] // k.shape[1], q.shape[-1], op.storage
    q = q.transpose(0, 1)
    k, v = (x.repeat_interleave(groups, 1).transpose(0, 1) for x in (k, v))  # [H, S, d]
    allowed = ops.causal(op.positions, k.shape[1])
    raw, scale = q @ k.transpose(1, 2), d**-0.5
    p = F.softmax((raw * scale).masked_fill(~allowed, float("-inf")), -1)  # [H, T, S]
    o = p @ v
    of_scores = scale**2 * (rounding(raw, storage) + A**2 * d / 4 * ((q**2) @ (k**2).transpose(1, 2)))
    of_scores += rounding(raw * scale, storage)
    spread = p**2 * of_scores
    variance = spread @ v**2 - 2 * o * (spread @ v) + o**2 * spread.sum(-1, keepdim=True)
    of_probs = rounding(p, storage).masked_fill(~allowed, 0) + A**2 * k.shape[1] / 4 * p**2
    variance = variance.clamp_min(0) + of_probs @ v**2 + rounding(o, storage)
    return o.transpose(0, 1), variance.transpose(0, 1)


def _scores(op: Op) -> tuple[Tensor, Tensor]:
    """Masked scores are -inf."""
    q, k, d = op["attn_q_rope"].transpose(0, 1), op.whole("attn_k_rope"), op.config.head_dim
    k = k.repeat_interleave(op.config.num_attention_heads // k.shape[1], 1).permute(1, 2, 0)  # [H, d, S]
    raw, scale = q @ k, d**-0.5
    variance = scale**2 * (rounding(raw, op.storage) + A**2 * d / 4 * (q**2 @ k**2)) + rounding(raw * scale, op.storage)
    value = (raw * scale).masked_fill(~ops.causal(op.positions, k.shape[2]), float("-inf"))
    return value.transpose(0, 1), variance.transpose(0, 1)


def _probs(op: Op) -> tuple[Tensor, Tensor]:
    p = F.softmax(op["attn_scores"], -1)
    return p, rounding(p, op.storage) + (4 * A * p) ** 2


def _residual(op: Op) -> tuple[Tensor, Tensor]:
    a, b = (op[name] for name in SUMS[op.point])
    return a + b, rounding(a + b, op.storage)


def _swiglu(op: Op) -> tuple[Tensor, Tensor]:
    gate, up = op["mlp_gate_proj"], op["mlp_up_proj"]
    s = F.silu(gate)
    return s * up, rounding(s * up, op.storage) + up**2 * (rounding(s, op.storage) + (2 * A * s) ** 2)


KINDS = {
    "embedding": _embedding,
    "identity": _identity,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "rope": _rope,
    "attention": _attention,
    "scores": _scores,
    "probs": _probs,
    "residual": _residual,
    "swiglu": _swiglu,
}


@dataclass(frozen=True)
class Limits:
    """The judge's published limits of detection for an op: above one of them it is faulty (docs/replay.md)."""

    row: float
    head: float
    value: float
    scale: float  # and SCALE_ERRORS standard errors
    head_error: float  # the roundings of a head agree by chance to so much

    @classmethod
    def of(cls, point: str, storage: torch.dtype) -> Limits:
        kind, unit = op_kind(point), 2.0 ** -(MANTISSA[storage] + 1)
        is_attention, is_short = kind in ("attention", "scores", "probs"), storage != torch.float32
        if is_attention:
            four = (4, 6, 12, 0.15 * unit) if is_short else (6, 12, 30, 16 * unit)
        elif is_short:
            four = (2.5, 3, 8, 0.06 * unit)
        else:
            four = (3.5, 4.5, 24, 16 * unit) if kind == "linear" else (3, 4, 10, 16 * unit)
        return cls(*four, 0.08 * unit if kind == "attention" else 0.0)


@dataclass(frozen=True)
class Effect:
    """Of one tensor, in noise units."""

    row: float
    head: float
    value: float
    scale: float
    scale_error: float
    limits: Limits

    def over_limit(self) -> float:
        """How far above (below 1: under) the limit of detection, by the term that shows it best."""
        scale = min(abs(self.scale) / (SCALE_ERRORS * self.scale_error), abs(self.scale) / self.limits.scale)
        return max(self.noise(), scale)

    def noise(self) -> float:
        """The same without the scale term, which is not zero in correct runs: roundings of one kind agree."""
        limits = self.limits
        return max(self.row / limits.row, self.head / limits.head, self.value / limits.value)

    @property
    def grade(self) -> str:
        """ "above", "below", or "grey" where either answer is right."""
        ratio = self.over_limit()
        return "above" if ratio > GREY else "below" if ratio < 1 / GREY else "grey"


def effect(wrong: Tensor, value: Tensor, variance: Tensor, limits: Limits) -> Effect:
    """wrong, value, variance [rows, ...], float64."""
    sigma = variance.sqrt().clamp_min(1e-30)  # exact ops: any difference is enormous
    error = ((wrong - value) / sigma).masked_fill(wrong == value, 0).nan_to_num(nan=1e30, posinf=1e30, neginf=-1e30)
    value = value.nan_to_num(neginf=0)  # masked scores
    rows = error.flatten(1).pow(2).mean(1).sqrt().max()
    heads = error.pow(2).mean((0, 2)).sqrt().max() if error.dim() == 3 else rows
    weight = (value / sigma).pow(2).sum().clamp_min(1e-300)
    scale = (error * value / sigma).sum() / weight
    num_heads = len(value) * (value.shape[1] if value.dim() == 3 else 1)
    scale_error = (1 / weight + limits.head_error**2 / num_heads).sqrt()
    return Effect(*(float(x) for x in (rows, heads, error.abs().max(), scale, scale_error)), limits)
