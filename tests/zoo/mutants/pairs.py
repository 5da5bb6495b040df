"""Several bugs at once: in two ops, in one op at two layers, in two phases. Each must be found and named."""

from zoo.context import Mutant, pair
from zoo.mutants import anything, attention, embedding, linear, norm, residual, rope, swiglu

TABLES = (anything, attention, embedding, linear, norm, residual, rope, swiglu)
SINGLE: dict[str, Mutant] = {mutant.id: mutant for table in TABLES for mutant in table.MUTANTS}


def both(*ids: str, **options: object) -> Mutant:
    return pair(" + ".join(ids), *(SINGLE[id] for id in ids), **options)


MUTANTS = (
    both("rope-theta-1e4", "glu-gelu", sample=True),
    both("norm-one-plus-weight", "res-branch-doubled"),
    both("attn-tiled", "lin-gate-fp8"),
    both("emb-sqrt-hidden", "attn-no-mask"),
    both("norm-whole-row", "rope-interleaved"),
    both("lin-q-bias", "norm-qk-skipped"),
    both("lin-k-v-swapped", "head-no-final-norm"),
    both("rope-interleaved", "rope-theta-1e4", layers=(0, 2)),
    both("glu-gelu", "glu-sigmoid", layers=(0, 2)),
    both("norm-no-weight", "norm-layernorm", layers=(0, 1)),
    both("lin-o-int8", "lin-o-shard-missing", layers=(1, 2), sample=True),
    both("attn-window-16", "attn-no-scale", layers=(0, 1)),
    both("res-missing", "res-doubled", layers=(1, 2)),
    both("norm-qk-skipped-decode", "rope-theta-decode"),
    both("rope-restarted", "res-doubled-later-chunk"),
    both("attn-other-sequence", "res-branch-missing-batch"),
    both("any-scale-k", "any-one-element", "glu-swapped"),
)
