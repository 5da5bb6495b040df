"""Bugs in traces that do not hold every point: the fault shows at the next point that is there, and is found there."""

from dataclasses import replace

from zoo.context import Mutant
from zoo.mutants import anything, attention, linear, norm, residual, rope, swiglu

TABLES = (anything, attention, linear, norm, residual, rope, swiglu)
SINGLE: dict[str, Mutant] = {mutant.id: mutant for table in TABLES for mutant in table.MUTANTS}
NAMES = {
    "layer-ends": "only the layers' ends captured",
    "fused-qkv": "q, k and v captured as one tensor",
    "no-context": "no attention context captured",
    "no-norms": "no norm outputs captured",
    "axes": "other axis orders",
    "no-fingerprints": "no fingerprints of weights",
}


def seen(capture: str, id: str, at: str = "", sample: bool = False) -> Mutant:
    """Mutant `id` under a capture of clean.CAPTURES. `at`: the points where it shows, if its own is not there; the
    cause may then stay unexplained, as several ops lie between."""
    one = SINGLE[id]
    parts = one.parts
    if at:
        every = ("all-layers", "some-layers", "exact-at-position-0", "grows-with-position", "some-channels")
        parts = tuple(replace(part, causes=(*part.causes, None), patterns=every) for part in parts)
    bug = f"{one.bug}; {NAMES[capture]}"
    return replace(
        one, id=f"{id} / {capture}", bug=bug, parts=parts, sample=sample, capture=capture, seen_at=tuple(at.split())
    )


MUTANTS = (
    seen("layer-ends", "rope-interleaved", "layer_output", sample=True),
    seen("layer-ends", "norm-one-plus-weight", "layer_output"),
    seen("layer-ends", "attn-no-mask", "layer_output"),
    seen("layer-ends", "glu-swapped", "layer_output"),
    seen("layer-ends", "lin-up-other-layer", "layer_output"),
    seen("layer-ends", "res-branch-doubled"),
    seen("layer-ends", "head-no-final-norm"),
    seen("fused-qkv", "lin-q-bias", "attn_q_normed"),
    seen("fused-qkv", "lin-k-reinterpreted", "attn_k_normed"),
    seen("fused-qkv", "lin-v-is-k", "attn_context"),
    seen("fused-qkv", "norm-q-k-swapped", sample=True),
    seen("fused-qkv", "rope-theta-1e4"),
    seen("fused-qkv", "attn-tiled"),
    seen("no-context", "attn-no-mask", "attn_o_proj"),
    seen("no-context", "attn-tiled", "attn_o_proj"),
    seen("no-context", "lin-input-slices-2"),
    seen("no-norms", "norm-next-layer", "attn_q_proj_raw attn_k_proj_raw attn_v_proj_raw"),
    seen("no-norms", "norm-whole-row", "attn_q_rope attn_k_rope"),
    seen("no-norms", "rope-interleaved"),
    seen("axes", "rope-interleaved", sample=True),
    seen("axes", "attn-no-mask"),
    seen("axes", "norm-whole-row"),
    seen("no-fingerprints", "lin-up-other-layer"),
    seen("no-fingerprints", "lin-o-int8"),
)
