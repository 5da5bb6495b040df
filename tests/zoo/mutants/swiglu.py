"""silu(gate) * up."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo import ops
from zoo.context import Op, Wrong, last_row, mutant

POINT = "mlp_intermediate"
F16_MOST = 65504.0


def gated(activation: Callable[[Tensor], Tensor]) -> Wrong:
    return lambda op: activation(op["mlp_gate_proj"]) * op["mlp_up_proj"]


def swapped(op: Op) -> Tensor:
    return F.silu(op["mlp_up_proj"]) * op["mlp_gate_proj"]


def as_f16(saturate: bool) -> Wrong:
    """E7: the product goes through f16."""

    def wrong(op: Op) -> Tensor:
        y = ops.swiglu(op["mlp_gate_proj"], op["mlp_up_proj"])
        if saturate:
            y = y.clamp(-F16_MOST, F16_MOST)
        return op.rounded(y, torch.float16)

    return wrong


def up_clamped(op: Op) -> Tensor:
    return F.silu(op["mlp_gate_proj"].clamp(max=1.5)) * op["mlp_up_proj"].clamp(-1.5, 1.5)


def half_activated(op: Op) -> Tensor:
    """Only the first half of the channels goes through silu."""
    gate, up = op["mlp_gate_proj"], op["mlp_up_proj"]
    half = gate.shape[1] // 2
    return torch.cat((F.silu(gate[:, :half]), gate[:, half:]), 1) * up


MUTANTS = (
    mutant(
        "glu-gate-of-layer-before",
        "gate's buffer still holds the layer before",
        POINT,
        lambda op: F.silu(op.at("mlp_gate_proj", op.layer - 1)) * op["mlp_up_proj"],
        "swiglu-wrong-input",
        layers=1,
    ),
    mutant("glu-gelu", "gelu instead of silu", POINT, gated(F.gelu), "swiglu-gelu"),
    mutant(
        "glu-gelu-tanh",
        "gelu's tanh form instead of silu",
        POINT,
        gated(lambda x: F.gelu(x, approximate="tanh")),
        "swiglu-gelu-tanh",
        sample=True,
    ),
    mutant("glu-relu", "relu instead of silu, at one layer", POINT, gated(F.relu), "swiglu-relu", layers=1),
    mutant("glu-sigmoid", "sigmoid instead of silu", POINT, gated(torch.sigmoid), "swiglu-sigmoid"),
    mutant(
        "glu-swapped",
        "silu of the wrong operand (mlx-lm#767; the seed's golden reference)",
        POINT,
        swapped,
        "swiglu-swapped",
        sample=True,
    ),
    mutant(
        "glu-swapped-decode",
        "silu of the wrong operand in decode",
        POINT,
        swapped,
        "swiglu-swapped",
        run="decode",
        phase="decode",
    ),
    mutant(
        "glu-no-product",
        "the product with up is missing",
        POINT,
        lambda op: F.silu(op["mlp_gate_proj"]),
        "swiglu-no-product",
    ),
    mutant(
        "glu-no-activation",
        "gate * up without silu",
        POINT,
        lambda op: op["mlp_gate_proj"] * op["mlp_up_proj"],
        "swiglu-no-activation",
    ),
    mutant(
        "glu-sum", "silu(gate) + up", POINT, lambda op: F.silu(op["mlp_gate_proj"]) + op["mlp_up_proj"], "swiglu-sum"
    ),
    mutant(
        "glu-up-only",
        "up goes on alone",
        POINT,
        lambda op: op["mlp_up_proj"],
        ("op-skipped", None),
        patterns="all-layers",
    ),
    mutant(
        "glu-quick-gelu",
        "x·sigmoid(1.702 x) instead of silu",
        POINT,
        gated(lambda x: x * torch.sigmoid(1.702 * x)),
        "swiglu-quick-gelu",
    ),
    mutant("glu-hard-swish", "hard-swish instead of silu", POINT, gated(F.hardswish), (None,), patterns="all-layers"),
    mutant(
        "glu-clamped", "gate and up are clamped", POINT, up_clamped, (None, "values-clamped"), patterns="all-layers"
    ),
    mutant(
        "glu-half",
        "the second half of the channels is not activated",
        POINT,
        half_activated,
        ("swiglu-no-activation", None),
        patterns="channel-block",
    ),
    mutant(
        "glu-f16-infinite",
        "E7: the product overflows f16 to infinity",
        POINT,
        as_f16(False),
        "values-overflow",
        models=("loud",),
        layers=1,
        sample=True,
        tags="overflow",
    ),
    mutant(
        "glu-f16-saturated",
        "E7: the product saturates at 65504",
        POINT,
        as_f16(True),
        ("values-overflow", "values-clamped"),
        models=("loud",),
        layers=1,
        tags="overflow",
    ),
    mutant("glu-last-token", "the last token's product uses gelu", POINT, gated(F.gelu), "swiglu-gelu", rows=last_row),
)
