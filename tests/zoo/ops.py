"""The ops of Qwen3, with a knob for every way to get them wrong. Untouched they are right, and round as the reference.

Plain torch on token-major tensors, in the dtype of the operands: the storage dtype, or float64 for the exact effect.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def widened(x: Tensor) -> Tensor:
    return x.to(wide_dtype(x.dtype))


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    count: float = 0,
    center: bool = False,
    eps_outside: bool = False,
    mean: bool = True,
    statistics: torch.dtype | None = None,
) -> Tensor:
    """x [..., n]. `count` is added to n in the mean; `statistics`: the dtype of squares and their sum."""
    wide = widened(x)
    if center:
        wide = wide - wide.mean(-1, keepdim=True)
    squares = wide.pow(2) if statistics is None else wide.to(statistics).pow(2)
    total = squares.mean(-1, keepdim=True) * (x.shape[-1] / (x.shape[-1] + count) if mean else x.shape[-1])
    total = total.to(wide.dtype)
    normed = wide / (total.sqrt() + eps) if eps_outside else wide * torch.rsqrt(total + eps)
    normed = normed.to(x.dtype)
    return normed if weight is None else weight * normed


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, K] or [T, heads, d], weight [N, K] -> [T, N]."""
    return F.linear(x.flatten(1)[None], weight)[0]


def frequencies(d: int, theta: float, dtype: torch.dtype) -> Tensor:
    return theta ** -(torch.arange(0, d, 2, dtype=wide_dtype(dtype)) / d)  # [d / 2]


def rope(
    x: Tensor,
    positions: Tensor,
    theta: float,
    *,
    interleaved: bool = False,
    direction: int = 1,
    inverse: Tensor | None = None,
    magnitude: float = 1.0,
    tables: torch.dtype | None = None,
    angles_in: torch.dtype | None = None,
    width: int | None = None,
) -> Tensor:
    """x [T, heads, d]. `inverse` [d / 2]: other frequencies; `tables`, `angles_in`: dtypes that cos and sin, or the
    angles, are squeezed through; `width`: only the first channels turn."""
    width = width or x.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    inverse = frequencies(width, theta, x.dtype) if inverse is None else inverse.to(wide_dtype(x.dtype))
    if angles_in is not None:
        angles = (positions[:, None].to(angles_in) * inverse.to(angles_in)).to(inverse.dtype)
    else:
        angles = positions[:, None].to(inverse.dtype) * inverse  # [T, width / 2]
    cos, sin = angles.cos() * magnitude, angles.sin() * magnitude * direction
    if tables is not None:
        cos, sin = cos.to(tables), sin.to(tables)
    cos, sin = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]  # [T, 1, width / 2]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned.chunk(2, dim=-1)
    first, second = a * cos + (-b) * sin, b * cos + a * sin
    both = torch.stack((first, second), -1).flatten(-2) if interleaved else torch.cat((first, second), -1)
    return torch.cat((both, rest), -1)


def causal(positions: Tensor, keys: int) -> Tensor:
    """[T, S]: whether the query at positions[t] may see key j."""
    return torch.arange(keys)[None] <= positions[:, None]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    *,
    scale: float | None = None,
    kv_of: list[int] | None = None,
    bias: Tensor | None = None,
    cap: float | None = None,
    softmax_in: torch.dtype | None = None,
) -> Tensor:
    """q [T, H, d], k and v [S, K, d], allowed [T, S] -> [T, H, d]. `kv_of` [H]: which kv head a query head reads;
    `softmax_in`: exp without subtracting the maximum, in that dtype."""
    heads, groups = q.shape[1], q.shape[1] // k.shape[1]
    kv_of = [h // groups for h in range(heads)] if kv_of is None else kv_of
    k, v = k[:, kv_of].transpose(0, 1), v[:, kv_of].transpose(0, 1)  # [H, S, d]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = (q.transpose(0, 1) @ k.transpose(1, 2)) * scale  # [H, T, S]
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    if softmax_in is None:
        probs = F.softmax(scores, dim=-1, dtype=wide_dtype(q.dtype))
    else:
        powers = scores.to(softmax_in).exp().masked_fill(~allowed, 0)
        probs = powers / powers.sum(-1, keepdim=True)
    return (probs.to(q.dtype) @ v).transpose(0, 1)  # [T, H, d]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


# --- Rotary scaling, as the published recipes have it ----------------------------------------------------------------


def linear_scaling(d: int, theta: float, factor: float) -> Tensor:
    return frequencies(d, theta, torch.float64) / factor


def ntk_scaling(d: int, theta: float, factor: float) -> Tensor:
    return frequencies(d, theta * factor ** (d / (d - 2)), torch.float64)


def yarn_scaling(d: int, theta: float, factor: float, original: int) -> tuple[Tensor, float]:
    """Frequencies and the magnitude: slow pairs are interpolated, fast ones kept, with a ramp between."""
    plain = frequencies(d, theta, torch.float64)

    def pair_of(rotations: float) -> float:
        return d * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(pair_of(32)), 0), min(math.ceil(pair_of(1)), d - 1)
    ramp = ((torch.arange(d // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp), 0.1 * math.log(factor) + 1


def llama3_scaling(d: int, theta: float, factor: float, original: int) -> Tensor:
    plain = frequencies(d, theta, torch.float64)
    wavelength = 2 * math.pi / plain
    low, high = 1.0, 4.0
    smooth = (original / wavelength - low) / (high - low)
    mixed = (1 - smooth) * plain / factor + smooth * plain
    result = torch.where(wavelength > original / low, plain / factor, mixed)
    return torch.where(wavelength < original / high, plain, result)


# --- Coarser grids ---------------------------------------------------------------------------------------------------


def int_grid(x: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Symmetric integers with a scale for each row, or for each `group` of a row's elements."""
    wide = widened(x)
    blocks = wide if group is None else wide.unflatten(-1, (-1, group))
    most = 2 ** (bits - 1) - 1
    scale = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-12) / most
    result = (blocks / scale).round().clamp(-most - 1, most) * scale
    return result.reshape(x.shape).to(x.dtype)


def fp8_grid(x: Tensor, per_row: bool = False) -> Tensor:
    """e4m3 with one scale that brings the largest magnitude to 448."""
    wide = widened(x)
    largest = wide.abs().amax(-1, keepdim=True) if per_row else wide.abs().amax()
    scale = largest.clamp_min(1e-12) / 448
    return ((wide / scale).to(torch.float8_e4m3fn).to(wide.dtype) * scale).to(x.dtype)
