"""Attention: mask, scale, heads, cache. Most at attn_context; some where scores and probabilities are recorded."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo import ops
from zoo.context import Op, Wrong, from_position, last_row, mutant

CONTEXT = "attn_context"
Change = Callable[[Op, Tensor], Tensor]


def allowed(op: Op) -> Tensor:
    return ops.causal(op.positions, op.whole("attn_k_rope").shape[0])


def attend(
    mask: Callable[[Op], Tensor] = allowed,
    q: Callable[[Op], Tensor] = lambda op: op["attn_q_rope"],
    k: Callable[[Op], Tensor] = lambda op: op.whole("attn_k_rope"),
    v: Callable[[Op], Tensor] = lambda op: op.whole("attn_v_proj_raw"),
    **knobs: Any,
) -> Wrong:
    """Knobs may be values, or functions of the op."""

    def wrong(op: Op) -> Tensor:
        values = {name: knob(op) if callable(knob) else knob for name, knob in knobs.items()}
        return ops.attention(q(op), k(op), v(op), mask(op), **values)

    return wrong


def everything(op: Op) -> Tensor:
    return torch.ones_like(allowed(op))


def one_later(op: Op) -> Tensor:
    """Each query sees the next key too."""
    return ops.causal(op.positions + 1, allowed(op).shape[1])


def one_earlier(op: Op) -> Tensor:
    """No query sees itself; the first one, which would see nothing, does."""
    return ops.causal((op.positions - 1).clamp_min(0), allowed(op).shape[1])


def window(size: int) -> Callable[[Op], Tensor]:
    def mask(op: Op) -> Tensor:
        keys = torch.arange(allowed(op).shape[1])[None]
        return allowed(op) & (op.positions[:, None] - keys < size)

    return mask


def own_call(op: Op) -> Tensor:
    """Only keys of this call."""
    return allowed(op) & (torch.arange(allowed(op).shape[1])[None] >= op.start)


def without_key(position: int) -> Callable[[Op], Tensor]:
    def mask(op: Op) -> Tensor:
        seen = allowed(op).clone()
        seen[:, position] &= op.positions == position  # the row itself keeps it, so that none sees nothing
        return seen

    return mask


def local_mask(op: Op) -> Tensor:
    """The mask of a later chunk starts at 0: its query i sees keys up to i, not up to start + i (mlx-vlm#1755)."""
    return ops.causal(op.positions - op.start, allowed(op).shape[1])


def up_to(limit: int) -> Callable[[Op], Tensor]:
    """Keys from `limit` on are never seen (InfiniCore#746)."""
    return lambda op: allowed(op) & (torch.arange(allowed(op).shape[1])[None] < limit)


def unmasked_from(limit: int) -> Callable[[Op], Tensor]:
    """Queries from `limit` on are not masked."""
    return lambda op: allowed(op) | (op.positions[:, None] >= limit)


def tiled(op: Op) -> list[int]:
    """jax-js#180, onnx#7274: kv heads are tiled instead of repeated."""
    return [h % op.config.num_key_value_heads for h in range(op.config.num_attention_heads)]


def off_by_one_head(op: Op) -> list[int]:
    groups = op.config.num_attention_heads // op.config.num_key_value_heads
    return [(h // groups + 1) % op.config.num_key_value_heads for h in range(op.config.num_attention_heads)]


def first_head(op: Op) -> list[int]:
    return [0] * op.config.num_attention_heads


def scaled_by(power: Callable[[Op], float]) -> Wrong:
    return attend(scale=power)


def stale(change: Change, points: tuple[str, ...] = ("k", "v")) -> Wrong:
    """The cache holds other rows than were written: `change` of the right ones."""

    def wrong(op: Op) -> Tensor:
        k, v = op.whole("attn_k_rope"), op.whole("attn_v_proj_raw")
        k, v = (change(op, x) if name in points else x for name, x in (("k", k), ("v", v)))
        return ops.attention(op["attn_q_rope"], k, v, allowed(op))

    return wrong


def shifted(op: Op, rows: Tensor) -> Tensor:
    """Every slot holds the row before."""
    return torch.cat((rows[:1], rows[:-1]))


def last_not_written(op: Op, rows: Tensor) -> Tensor:
    """The newest slot still holds zeros."""
    return torch.cat((rows[:-1], torch.zeros_like(rows[-1:])))


def slot_overwritten(slot: int, by: int) -> Change:
    def change(op: Op, rows: Tensor) -> Tensor:
        rows = rows.clone()
        rows[slot] = rows[by]
        return rows

    return change


def slots_zero(first: int, end: int) -> Change:
    def change(op: Op, rows: Tensor) -> Tensor:
        rows = rows.clone()
        rows[first:end] = 0
        return rows

    return change


def ring(size: int) -> Change:
    """A ring buffer of `size` slots: older rows are overwritten by newer ones."""

    def change(op: Op, rows: Tensor) -> Tensor:
        last = len(rows) - 1
        newest = torch.arange(len(rows))
        newest += (last - newest) // size * size
        return rows[newest]

    return change


def one_kv_head_stale(op: Op, rows: Tensor) -> Tensor:
    rows = rows.clone()
    rows[1:, 1] = rows[:-1, 1].clone()
    return rows


def other_sequence(point: str) -> Callable[[Op], Tensor]:
    """Rows of sequence 0 in place of the own ones, as far as they go."""

    def rows(op: Op) -> Tensor:
        own, theirs = op.whole(point), op.of_sequence(point, 0)
        count = min(len(own), len(theirs))
        return torch.cat((theirs[:count], own[count:]))

    return rows


def sequences_joined(op: Op) -> Tensor:
    """The batch is one long sequence to the mask: keys of the sequence before are seen too."""
    k = torch.cat((op.of_sequence("attn_k_rope", 0), op.whole("attn_k_rope")))
    v = torch.cat((op.of_sequence("attn_v_proj_raw", 0), op.whole("attn_v_proj_raw")))
    return ops.attention(
        op["attn_q_rope"], k, v, ops.causal(op.positions + len(k) - len(op.whole("attn_k_rope")), len(k))
    )


def right(op: Op) -> Tensor:
    return attend()(op)


def heads_reversed(op: Op) -> Tensor:
    return right(op).flip(1)


def heads_transposed(op: Op) -> Tensor:
    """[d, H] written as [H, d]."""
    return right(op).transpose(1, 2).reshape(op.right.shape)


def token_head_mixed(op: Op) -> Tensor:
    """[H, T, d] read as [T, H, d]."""
    return right(op).transpose(0, 1).reshape(op.right.shape)


def alibi(op: Op) -> Tensor:
    heads = op.config.num_attention_heads
    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)
    distance = op.positions[:, None] - torch.arange(allowed(op).shape[1])[None]
    return -slopes[:, None, None] * distance


def unscaled_blocks(op: Op) -> Tensor:
    """Blocks of 16 keys are merged with equal weights instead of their sums of exponentials."""
    q, k, v = op["attn_q_rope"], op.whole("attn_k_rope"), op.whole("attn_v_proj_raw")
    total, count, seen = 0, 0, allowed(op)
    for start in range(0, len(k), 16):
        part = slice(start, start + 16)
        has_any = seen[:, part].any(1)[:, None, None]
        total = total + ops.attention(q, k[part], v[part], seen[:, part]) * has_any
        count = count + has_any
    return total / count


def not_normalised(op: Op) -> Tensor:
    """Probabilities are divided by the number of keys, not by their sum, and exponentials are of score - maximum."""
    q, k = op["attn_q_rope"], op.whole("attn_k_rope")
    groups = op.config.num_attention_heads // op.config.num_key_value_heads
    scores = (q.transpose(0, 1) @ k.repeat_interleave(groups, 1).permute(1, 2, 0)) * op.config.head_dim**-0.5
    scores = ops.widened(scores).masked_fill(~allowed(op), float("-inf"))
    sums = (scores - scores.amax(-1, keepdim=True)).exp().sum(-1)  # [H, T]
    factor = sums / (op.positions + 1)
    return (ops.widened(right(op)) * factor.T[..., None].to(ops.wide_dtype(op.dtype))).to(op.dtype)


def dropped(op: Op) -> Tensor:
    """Dropout was left on: random keys are hidden (never the own one)."""
    hidden = op.random(*allowed(op).shape) > 1.3
    hidden &= torch.arange(hidden.shape[1])[None] != op.positions[:, None]
    return allowed(op) & ~hidden


def scores_of(op: Op, scale: float, mask: Tensor) -> Tensor:
    q, k = op["attn_q_rope"], op.whole("attn_k_rope")
    groups = op.config.num_attention_heads // op.config.num_key_value_heads
    scores = (q.transpose(0, 1) @ k.repeat_interleave(groups, 1).permute(1, 2, 0)) * scale  # [H, T, S]
    lowest = float("-inf") if op.dtype == torch.float64 else torch.finfo(op.dtype).min
    return scores.masked_fill(~mask, lowest).transpose(0, 1)


MUTANTS = (
    mutant(
        "attn-key-is-value",
        "values are used as keys",
        CONTEXT,
        attend(k=lambda op: op.whole("attn_v_proj_raw")),
        "attention-wrong-input",
    ),
    mutant(
        "attn-no-mask",
        "no causal mask (TinyLLM#18, candle#3567)",
        CONTEXT,
        attend(everything),
        "attention-no-mask",
        sample=True,
    ),
    mutant(
        "attn-no-mask-one-layer",
        "no causal mask at layer 1",
        CONTEXT,
        attend(everything),
        "attention-no-mask",
        layers=1,
    ),
    mutant(
        "attn-mask-one-later", "each query sees one key too many", CONTEXT, attend(one_later), "attention-mask-shifted"
    ),
    mutant("attn-mask-one-earlier", "no query sees itself", CONTEXT, attend(one_earlier), "attention-mask-shifted"),
    mutant(
        "attn-mask-decode",
        "in decode the own key is not seen",
        CONTEXT,
        attend(one_earlier),
        "attention-mask-shifted",
        run="decode",
        phase="decode",
    ),
    mutant(
        "attn-mask-local",
        "the mask of a later chunk starts at 0 (mlx-vlm#1755)",
        CONTEXT,
        attend(local_mask),
        ("attention-mask-shifted", None),
        run="chunks",
        patterns="later-chunk-only",
    ),
    mutant(
        "attn-mask-1088",
        "queries from 1088 on are not masked (InfiniCore#746)",
        CONTEXT,
        attend(unmasked_from(1088)),
        "attention-no-mask",
        run="long",
    ),
    mutant(
        "attn-keys-end-1024",
        "keys from 1024 on are never seen",
        CONTEXT,
        attend(up_to(1024)),
        (None, "attention-mask-shifted", "attention-window", "attention-stale-cache"),
        run="long",
        patterns="from-position-on",
        layers=0,
    ),
    mutant("attn-no-scale", "scores are not scaled", CONTEXT, attend(scale=1.0), "attention-scale"),
    mutant(
        "attn-scale-hidden",
        "scores are scaled by 1/sqrt(hidden)",
        CONTEXT,
        attend(scale=lambda op: op.config.hidden_size**-0.5),
        "attention-scale",
    ),
    mutant(
        "attn-scale-hidden-per-head",
        "scores are scaled by 1/sqrt(hidden/heads)",
        CONTEXT,
        attend(scale=lambda op: (op.config.hidden_size / op.config.num_attention_heads) ** -0.5),
        "attention-scale",
        models=("tiny",),
        sample=True,
    ),
    mutant(
        "attn-scale-twice",
        "scores are scaled twice",
        CONTEXT,
        attend(scale=lambda op: 1 / op.config.head_dim),
        "attention-scale",
    ),
    mutant(
        "attn-scale-odd", "scores are scaled by 0.1234", CONTEXT, attend(scale=0.1234), "attention-scale", layers="last"
    ),
    mutant(
        "attn-tiled",
        "kv heads are tiled instead of repeated (jax-js#180, onnx#7274)",
        CONTEXT,
        attend(kv_of=tiled),
        "attention-heads-tiled",
        sample=True,
    ),
    mutant(
        "attn-next-kv-head",
        "each group reads the next kv head",
        CONTEXT,
        attend(kv_of=off_by_one_head),
        ("attention-heads-tiled", None),
        patterns="all-layers",
    ),
    mutant(
        "attn-first-kv-head",
        "all query heads read kv head 0",
        CONTEXT,
        attend(kv_of=first_head),
        ("attention-heads-tiled", None),
        patterns="some-heads",
    ),
    mutant(
        "attn-unrotated-k",
        "keys are cached before their rotation",
        CONTEXT,
        attend(k=lambda op: op.whole("attn_k_normed")),
        "attention-unrotated-k",
    ),
    mutant(
        "attn-unrotated-q",
        "queries are read before their rotation",
        CONTEXT,
        attend(q=lambda op: op["attn_q_normed"]),
        "attention-unrotated-q",
    ),
    mutant(
        "attn-raw-k",
        "keys are read before norm and rotation",
        CONTEXT,
        attend(k=lambda op: op.whole("attn_k_proj_raw")),
        (None, "attention-unrotated-k"),
        patterns="all-layers",
    ),
    mutant("attn-cache-shifted", "cache rows are shifted by one", CONTEXT, stale(shifted), "attention-stale-cache"),
    mutant(
        "attn-cache-shifted-k",
        "rows of keys alone are shifted by one, in decode",
        CONTEXT,
        stale(shifted, ("k",)),
        "attention-stale-cache",
        run="decode",
        phase="decode",
    ),
    mutant(
        "attn-cache-not-written",
        "the newest row of the cache is not written in decode",
        CONTEXT,
        stale(last_not_written),
        ("attention-stale-cache", "attention-mask-shifted"),
        run="decode",
        phase="decode",
        sample=True,
    ),
    mutant(
        "attn-cache-slot",
        "slot 5 of the cache was overwritten by row 30",
        CONTEXT,
        stale(slot_overwritten(5, 30)),
        ("attention-stale-cache", None),
        patterns="decode-only",
        run="decode",
        phase="decode",
    ),
    mutant(
        "attn-cache-zero",
        "slots 8 to 15 of the cache are zero in the second chunk",
        CONTEXT,
        stale(slots_zero(8, 16)),
        ("attention-stale-cache", None),
        patterns="later-chunk-only",
        run="chunks",
        later_chunk=True,
    ),
    mutant(
        "attn-cache-v",
        "values of the first 24 rows are zero in the second chunk",
        CONTEXT,
        stale(slots_zero(0, 24), ("v",)),
        ("attention-stale-cache", "attention-past-ignored", None),
        patterns="later-chunk-only",
        run="chunks",
        later_chunk=True,
    ),
    mutant(
        "attn-cache-ring",
        "a ring of 1056 slots overwrites old rows",
        CONTEXT,
        stale(ring(1056)),
        ("attention-stale-cache", None),
        patterns="decode-only all-layers",
        run="long-decode",
        phase="decode",
    ),
    mutant(
        "attn-cache-one-head",
        "rows of kv head 1 are shifted by one",
        CONTEXT,
        stale(one_kv_head_stale),
        ("attention-stale-cache", None),
        patterns="some-heads",
        layers=2,
    ),
    mutant(
        "attn-window-16",
        "a window of 16 is applied (transformers#38002)",
        CONTEXT,
        attend(window(16)),
        "attention-window",
        sample=True,
    ),
    mutant(
        "attn-window-1024", "a window of 1024 is applied", CONTEXT, attend(window(1024)), "attention-window", run="long"
    ),
    mutant(
        "attn-window-odd",
        "a window of 23 at every layer but the first (transformers#35924)",
        CONTEXT,
        attend(window(23)),
        "attention-window",
        layers="later",
    ),
    mutant(
        "attn-softmax-f16",
        "softmax without its maximum overflows in f16 (llama.cpp#7805, transformers#33317)",
        CONTEXT,
        attend(softmax_in=torch.float16),
        ("attention-softmax-overflow", "values-nan", "values-overflow"),
        models=("tiny",),  # whose scores reach 15; exp(12) is too large for f16
        tags="overflow",
    ),
    mutant(
        "attn-other-sequence",
        "sequences read the keys and values of sequence 0",
        CONTEXT,
        attend(k=other_sequence("attn_k_rope"), v=other_sequence("attn_v_proj_raw")),
        "attention-other-sequence",
        run="batch",
        sequence=1,
        phase="prefill",
        sample=True,
    ),
    mutant(
        "attn-other-sequence-decode",
        "in decode sequence 2 reads the cache of sequence 0",
        CONTEXT,
        attend(k=other_sequence("attn_k_rope"), v=other_sequence("attn_v_proj_raw")),
        "attention-other-sequence",
        run="batch",
        sequence=2,
        phase="decode",
    ),
    mutant(
        "attn-sequences-joined",
        "the mask of a batch lets sequence 1 see sequence 0",
        CONTEXT,
        sequences_joined,
        ("attention-other-sequence", None),
        run="batch",
        sequence=1,
        phase="prefill",
        patterns="one-sequence",
    ),
    mutant(
        "attn-heads-reversed",
        "output heads are in reversed order",
        CONTEXT,
        heads_reversed,
        ("attention-head-order", "values-permuted"),
    ),
    mutant(
        "attn-heads-transposed",
        "[d, H] is written as [H, d]",
        CONTEXT,
        heads_transposed,
        ("attention-head-order", "values-permuted"),
    ),
    mutant(
        "attn-token-head-mixed",
        "[H, T, d] is read as [T, H, d]",
        CONTEXT,
        token_head_mixed,
        ("attention-head-order", "values-permuted"),
        layers=0,
    ),
    mutant(
        "attn-past-ignored-chunk",
        "the second chunk sees its own keys only (mlx-vlm#1755)",
        CONTEXT,
        attend(own_call),
        "attention-past-ignored",
        run="chunks",
        sample=True,
    ),
    mutant(
        "attn-past-ignored-decode",
        "decode sees its own key only",
        CONTEXT,
        attend(own_call),
        "attention-past-ignored",
        run="decode",
    ),
    mutant(
        "attn-past-ignored-long",
        "decode sees its own key only, after 1060 tokens",
        CONTEXT,
        attend(own_call),
        "attention-past-ignored",
        run="long-decode",
        phase="decode",
    ),
    mutant(
        "attn-value-is-key",
        "keys are used as values",
        CONTEXT,
        attend(v=lambda op: op.whole("attn_k_rope")),
        "attention-value",
    ),
    mutant(
        "attn-value-is-raw-key",
        "un-rotated keys are used as values, at one layer",
        CONTEXT,
        attend(v=lambda op: op.whole("attn_k_proj_raw")),
        ("attention-value", None),
        patterns="some-layers",
        layers=1,
    ),
    mutant(
        "attn-first-key-dropped",
        "key 0 is never seen",
        CONTEXT,
        attend(without_key(0)),
        (None, "attention-stale-cache", "attention-mask-shifted"),
        patterns="exact-at-position-0 all-layers",
    ),
    mutant(
        "attn-alibi",
        "ALiBi's slopes are added to the scores",
        CONTEXT,
        attend(bias=alibi),
        (None,),
        patterns="exact-at-position-0 from-position-on",  # in bf16 the first few rows show nothing
    ),
    mutant(
        "attn-soft-cap",
        "scores are capped at 2 by tanh",
        CONTEXT,
        attend(cap=2.0),
        "attention-softcapped",
    ),
    mutant(
        "attn-blocks-unscaled",
        "blocks of 16 keys are merged with equal weights",
        CONTEXT,
        unscaled_blocks,
        (None,),
        patterns="from-position-on",
    ),
    mutant(
        "attn-not-normalised",
        "probabilities are divided by the number of keys",
        CONTEXT,
        not_normalised,
        (None,),
        patterns="exact-at-position-0",
    ),
    mutant(
        "attn-dropout",
        "dropout was left on",
        CONTEXT,
        attend(dropped),
        (None, "noise"),
        patterns="exact-at-position-0 from-position-on scattered",  # by which keys chance hides from the first rows
    ),
    mutant(
        "attn-last-row-unmasked",
        "the last query reads unrotated keys",
        CONTEXT,
        attend(k=lambda op: op.whole("attn_k_normed")),
        "attention-unrotated-k",
        rows=last_row,
    ),
    mutant(
        "attn-k-zero-from-1024",
        "heads 0 and 1 read zeros from position 1024 on",
        CONTEXT,
        stale(slots_zero(1024, 1100)),
        ("attention-stale-cache", None),
        patterns="some-heads from-position-on",
        run="long",
        heads=(0, 1),
    ),
    mutant(
        "attn-window-from-1088",
        "a window of 64 is applied from position 1088 on",
        CONTEXT,
        attend(window(64)),
        "attention-window",
        run="long",
        rows=from_position(1088),
    ),
    mutant(
        "scores-no-scale",
        "scores, recorded, are not scaled",
        "attn_scores",
        lambda op: scores_of(op, 1.0, allowed(op)),
        ("attention-scale", "values-scaled"),
        run="scores",
        tags="scores",
    ),
    mutant(
        "scores-no-mask",
        "scores, recorded, are not masked",
        "attn_scores",
        lambda op: scores_of(op, op.config.head_dim**-0.5, everything(op)),
        "attention-no-mask",
        run="scores",
        tags="scores",
        sample=True,
    ),
    mutant(
        "probs-halved",
        "probabilities, recorded, sum to one half",
        "attn_probs",
        lambda op: op.right * 0.5,
        ("values-scaled", None),
        patterns="constant-ratio",
        run="scores",
        tags="scores",
    ),
)
