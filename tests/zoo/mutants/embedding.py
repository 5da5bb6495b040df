"""Embeddings, and the identity between one layer's output and the next one's input."""

import torch
from torch import Tensor

from zoo import ops
from zoo.context import Op, mutant, only

TABLE = "input_embeddings"
STREAM = "input_hidden_states"


def rows_of(op: Op, ids: Tensor) -> Tensor:
    return op.weight("embed_tokens")[ids.clamp(0, op.config.vocab_size - 1)]


def previous_layer_input(op: Op) -> Tensor:
    return op.at(STREAM, op.layer - 1)


MUTANTS = (
    mutant(
        "emb-id-plus-one",
        "ids are counted from 1: every token reads the next row",
        TABLE,
        lambda op: rows_of(op, op.ids + 1),
        "embedding-id-shifted",
        sample=True,
    ),
    mutant(
        "emb-id-minus-one",
        "ids are shifted down by one, in decode only",
        TABLE,
        lambda op: rows_of(op, op.ids - 1),
        "embedding-id-shifted",
        run="decode",
        phase="decode",
        patterns="decode-only",
    ),
    mutant(
        "emb-sqrt-hidden",
        "embeddings are multiplied by sqrt(hidden), as Gemma does",
        TABLE,
        lambda op: op.right * op.config.hidden_size**0.5,
        "embedding-scaled",
    ),
    mutant(
        "emb-reversed-table",
        "the table's rows are in reversed order",
        TABLE,
        lambda op: rows_of(op, op.config.vocab_size - 1 - op.ids),
        "embedding-wrong-row",
    ),
    mutant(
        "emb-one-token-other",
        "one token of the prompt reads a row of another token (another pre-tokenizer, imp#660)",
        TABLE,
        lambda op: rows_of(op, (op.ids + 777) % op.config.vocab_size),
        "embedding-wrong-row",
        rows=only(11),
    ),
    mutant(
        "emb-int8",
        "the table is quantised to int8 rows",
        TABLE,
        lambda op: ops.int_grid(op.right, 8),
        ("values-rounded", None),
        patterns="coarse-grid",
    ),
    mutant(
        "emb-previous-token",
        "every row holds the token before (rows shifted down by one)",
        TABLE,
        lambda op: op.right.roll(1, 0),
        ("rows-stale", "values-permuted", "embedding-wrong-row"),
    ),
    mutant(
        "stream-aliased",
        "a layer reads the stream that entered the layer before (double buffering gone wrong)",
        STREAM,
        previous_layer_input,
        ("rows-stale", "residual-other"),
        layers=2,
        patterns="equal-to-another-layer",
    ),
    mutant(
        "stream-bf16",
        "between layers the stream is stored in bf16",
        STREAM,
        lambda op: op.rounded(op.right, torch.bfloat16),
        "values-rounded",
        dtypes=("f32",),
        layers="later",
    ),
)
