"""Residual additions."""

import torch
from torch import Tensor

from zoo import ops
from zoo.context import Op, Wrong, last_row, mutant
from zoo.noise import SUMS

ATTENTION, MLP = "attn_residual_output", "layer_output"
BOTH = f"{ATTENTION} {MLP}"
NORMED = {ATTENTION: "attn_norm_output", MLP: "mlp_norm_output"}


def mixed(stream: float, branch: float) -> Wrong:
    """stream and branch added with these factors."""

    def wrong(op: Op) -> Tensor:
        a, b = (ops.widened(op[name]) for name in SUMS[op.point])
        return (stream * a + branch * b).to(op.dtype)

    return wrong


def after_norm(op: Op) -> Tensor:
    return op[NORMED[op.point]] + op[SUMS[op.point][1]]


def from_layer_input(op: Op) -> Tensor:
    """The MLP's branch is added to the layer's input: the attention is lost."""
    return op["input_hidden_states"] + op["mlp_down_proj"]


def from_token_before(op: Op) -> Tensor:
    stream, branch = (op[name] for name in SUMS[op.point])
    return stream.roll(1, 0) + branch


def other_branch(op: Op) -> Tensor:
    """The attention's branch is added a second time, in place of the MLP's."""
    return op[ATTENTION] + op["attn_o_proj"]


MUTANTS = (
    mutant(
        "res-missing", "the attention's residual is missing", ATTENTION, mixed(0, 1), ("residual-missing", "op-skipped")
    ),
    mutant(
        "res-missing-mlp-last",
        "the MLP's residual is missing at the last layer",
        MLP,
        mixed(0, 1),
        ("residual-missing", "op-skipped"),
        layers="last",
    ),
    mutant(
        "res-doubled", "the stream is added twice", ATTENTION, mixed(2, 1), "residual-doubled", layers=1, sample=True
    ),
    mutant(
        "res-branch-doubled",
        "E4: down_proj is issued twice onto the residual",
        MLP,
        mixed(1, 2),
        "residual-branch-doubled",
        sample=True,
    ),
    mutant(
        "res-branch-doubled-attention",
        "o_proj is issued twice onto the residual, in decode",
        ATTENTION,
        mixed(1, 2),
        "residual-branch-doubled",
        run="decode",
        phase="decode",
    ),
    mutant(
        "res-branch-missing",
        "the attention's branch is not added",
        ATTENTION,
        mixed(1, 0),
        ("residual-branch-missing", "op-skipped"),
        layers=2,
    ),
    mutant(
        "res-branch-missing-batch",
        "the MLP's branch is not added for one sequence of the batch",
        MLP,
        mixed(1, 0),
        ("residual-branch-missing", "op-skipped"),
        run="batch",
        sequence=2,
    ),
    mutant("res-after-norm", "the normed tensor is used as the stream", BOTH, after_norm, "residual-after-norm"),
    mutant(
        "res-from-layer-input",
        "the MLP's branch is added to the layer's input",
        MLP,
        from_layer_input,
        "residual-other",
    ),
    mutant(
        "res-token-before",
        "the stream of the token before is added, at one layer",
        MLP,
        from_token_before,
        (None, "residual-other", "rows-stale"),
        patterns="some-layers",
        layers=1,
    ),
    mutant(
        "res-other-branch",
        "the attention's branch is added again instead of the MLP's",
        MLP,
        other_branch,
        ("residual-other", None),
        patterns="all-layers",
    ),
    mutant(
        "res-scaled-branch",
        "the branch is scaled by 0.22",
        BOTH,
        mixed(1, 0.22),
        ("residual-other", None),
        patterns="all-layers",
    ),
    mutant(
        "res-branch-negated",
        "the branch is subtracted",
        ATTENTION,
        mixed(1, -1),
        ("residual-other", None),
        patterns="some-layers",
        layers=0,
    ),
    mutant(
        "res-bf16",
        "the sum is rounded to bf16",
        BOTH,
        lambda op: op.rounded(mixed(1, 1)(op), torch.bfloat16),
        "values-rounded",
        dtypes=("f32",),
    ),
    mutant(
        "res-last-token",
        "the residual is missing for the last token",
        MLP,
        mixed(0, 1),
        ("residual-missing", "op-skipped"),
        rows=last_row,
    ),
    mutant(
        "res-doubled-later-chunk",
        "the branch is added twice in the second chunk",
        MLP,
        mixed(1, 2),
        "residual-branch-doubled",
        run="chunks",
        later_chunk=True,
    ),
)
