"""All mutants. A table for each op; `anything` are those that no op is named after; `pairs` two or more at once."""

from zoo.context import Mutant
from zoo.mutants import anything, attention, captures, embedding, linear, norm, pairs, residual, rope, swiglu

ALL: tuple[Mutant, ...] = tuple(
    mutant
    for table in (embedding, norm, linear, rope, attention, residual, swiglu, anything, pairs, captures)
    for mutant in table.MUTANTS
)
