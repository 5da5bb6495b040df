"""Linear projections and the head. The fingerprints of the trace are those of the right weights."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo import ops
from zoo.context import Op, Wrong, last_row, mutant
from zoo.noise import LINEAR_WEIGHTS

Q, K, V, O = "attn_q_proj_raw", "attn_k_proj_raw", "attn_v_proj_raw", "attn_o_proj"  # noqa: E741
GATE, UP, DOWN = "mlp_gate_proj", "mlp_up_proj", "mlp_down_proj"


def own_weight(op: Op) -> Tensor:  # [N, K]
    return op.weight(LINEAR_WEIGHTS[op.point][0])


def own_input(op: Op) -> Tensor:  # [T, K]
    return op[LINEAR_WEIGHTS[op.point][1]].flatten(1)


def product(weight: Callable[[Op], Tensor] = own_weight, x: Callable[[Op], Tensor] = own_input) -> Wrong:
    return lambda op: ops.linear(x(op), weight(op))


def changed(change: Callable[[Tensor], Tensor]) -> Wrong:
    """The product with its own weight, changed."""
    return product(lambda op: change(own_weight(op)))


def other(name: str) -> Wrong:
    return product(lambda op: op.weight(name))


def layer_after(op: Op) -> Tensor:
    return op.weight(LINEAR_WEIGHTS[op.point][0], (op.layer + 1) % op.config.num_hidden_layers)


def layer_before(op: Op) -> Tensor:
    return op.weight(LINEAR_WEIGHTS[op.point][0], max(op.layer - 1, 0))


def by_heads(op: Op, weight: Tensor) -> Tensor:
    return weight.unflatten(0, (-1, op.config.head_dim))  # [heads, d, K]


def interleaved_rows(op: Op) -> Tensor:
    """Half-split rows brought into interleaved order, as a conversion for GPT-J's pairing does (nanotron#427)."""
    rows = by_heads(op, own_weight(op))
    first, second = rows.chunk(2, 1)
    return torch.stack((first, second), 2).flatten(0, 2)


def half_split_rows(op: Op) -> Tensor:
    rows = by_heads(op, own_weight(op))
    return torch.cat((rows[:, 0::2], rows[:, 1::2]), 1).flatten(0, 1)


def heads_reversed(op: Op) -> Tensor:
    return by_heads(op, own_weight(op)).flip(0).flatten(0, 1)


def heads_tiled(op: Op) -> Tensor:
    """Query heads in the order of a tiled layout: head h of group g at h * K + g."""
    groups = op.config.num_key_value_heads
    return by_heads(op, own_weight(op)).unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 2)


def fused_one_head_early(op: Op) -> Tensor:
    """The slice of a fused qkv weight starts one head early: k reads the last head of q first, v the last of k."""
    d, before = op.config.head_dim, {K: "self_attn.q_proj", V: "self_attn.k_proj"}[op.point]
    return torch.cat((op.weight(before)[-d:], own_weight(op)[:-d]))


def input_slices(ranks: int) -> Wrong:
    """E5: a row-parallel weight is cut into blocks of rows, which are then read as blocks of columns."""

    def wrong(op: Op) -> Tensor:
        weight, x = own_weight(op), own_input(op)
        blocks = [block.reshape(weight.shape[0], -1) for block in weight.chunk(ranks)]
        return sum_parts([ops.linear(part, block) for part, block in zip(x.chunk(ranks, 1), blocks, strict=True)])

    return wrong


def sum_parts(parts: list[Tensor]) -> Tensor:
    return torch.stack([ops.widened(part) for part in parts]).sum(0).to(parts[0].dtype)


def partial_sums(op: Op, ranks: int) -> list[Tensor]:
    pairs = zip(own_input(op).chunk(ranks, 1), own_weight(op).chunk(ranks, 1), strict=True)
    return [ops.linear(x, weight) for x, weight in pairs]


def shard_missing(op: Op) -> Tensor:
    return partial_sums(op, 2)[0]


def shard_doubled(op: Op) -> Tensor:
    first, second = partial_sums(op, 2)
    return sum_parts([first, second, second])


def shard_order(weight: Tensor) -> Tensor:
    first, second = weight.chunk(2)
    return torch.cat((second, first))


def output_shard_missing(op: Op) -> Tensor:
    y = product()(op).clone()
    y[:, y.shape[1] // 2 :] = 0
    return y


def output_shard_doubled(op: Op) -> Tensor:
    """Both ranks loaded the first half of the rows."""
    first, _ = own_weight(op).chunk(2)
    return ops.linear(own_input(op), torch.cat((first, first)))


def biased(size: float) -> Wrong:
    """A bias vector, the same for all rows, that the checkpoint does not have."""

    def wrong(op: Op) -> Tensor:
        generator = torch.Generator().manual_seed(len(op.point))
        y = ops.widened(product()(op))
        return (y + size * torch.randn(y.shape[1], generator=generator).to(y.dtype)).to(op.dtype)

    return wrong


def doubled(op: Op) -> Tensor:
    return 2 * product()(op)


def low_accumulation(op: Op) -> Tensor:
    """Partial sums over blocks of 32 are rounded to bf16."""
    x, weight = own_input(op), own_weight(op)
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.bfloat16)
    for a, b in zip(x.split(32, 1), weight.split(32, 1), strict=True):
        total = (total.to(ops.wide_dtype(op.dtype)) + ops.widened(a) @ ops.widened(b).T).to(torch.bfloat16)
    return total.to(op.dtype)


def last_inputs_ignored(op: Op) -> Tensor:
    """The remainder of a blocked sum is never added."""
    return ops.linear(own_input(op)[:, :-16], own_weight(op)[:, :-16])


def low_rank(op: Op) -> Tensor:
    """An adapter that was merged and should not have been."""
    weight = own_weight(op)
    generator = torch.Generator().manual_seed(7)
    u, v = (torch.randn(n, 2, generator=generator).to(op.dtype) for n in weight.shape)
    return ops.linear(own_input(op), weight + 0.02 * weight.abs().mean() * (u @ v.T))


def one_row_negated(op: Op) -> Tensor:
    weight = own_weight(op).clone()
    weight[5] = -weight[5]
    return ops.linear(own_input(op), weight)


def another_dtype(op: Op) -> Tensor:
    """E8: the final norm's buffer is in the other dtype than the head's product thinks."""
    x = op["final_norm_output"].to(op.storage)
    if op.storage == torch.float32:  # the first half of the buffer's bytes, read as bf16
        seen = x.view(torch.bfloat16)[:, : x.shape[1]]
    else:  # pairs of elements read as one f32, over the end of each row into the next
        seen = torch.cat((x, x.roll(-1, 0)), 1).view(torch.float32)[:, : x.shape[1]]
    return ops.linear(seen.to(op.dtype).clamp(-1e30, 1e30).nan_to_num(0.0), own_weight(op))


def soft_cap(op: Op) -> Tensor:
    y = ops.widened(product()(op))
    return (30 * torch.tanh(y / 30)).to(op.dtype)


def final_norm_missing(op: Op) -> Tensor:
    return op.at("layer_output", op.config.num_hidden_layers - 1)


def swapped_gate_up(op: Op) -> Tensor:
    return op.weight("mlp.up_proj" if op.point == GATE else "mlp.gate_proj")


def interleaved_gate_up(op: Op) -> Tensor:
    """A fused gate_up weight in interleaved order is read as two halves."""
    fused = torch.stack((op.weight("mlp.gate_proj"), op.weight("mlp.up_proj")), 1).flatten(0, 1)
    return fused.chunk(2)[0 if op.point == GATE else 1]


MUTANTS = (
    mutant(
        "lin-q-transposed",
        "q_proj is transposed",
        Q,
        changed(lambda w: w.T),
        ("linear-transposed", "linear-reinterpreted"),
        models=("wide",),
    ),
    mutant(
        "lin-o-transposed",
        "o_proj is transposed, at one layer",
        O,
        changed(lambda w: w.T),
        ("linear-transposed", "linear-reinterpreted"),
        models=("wide",),
        layers=1,
        sample=True,
    ),
    mutant(
        "lin-k-reinterpreted",
        "k_proj [N, K] is read as [K, N] (1bit-MONSTER#864)",
        K,
        changed(lambda w: w.reshape(w.shape[1], w.shape[0]).T),
        "linear-reinterpreted",
    ),
    mutant(
        "lin-down-reinterpreted",
        "down_proj [N, K] is read as [K, N]",
        DOWN,
        changed(lambda w: w.reshape(w.shape[1], w.shape[0]).T),
        "linear-reinterpreted",
        layers="last",
    ),
    mutant(
        "lin-qk-interleaved-rows",
        "q and k rows are permuted for GPT-J's pairing (nanotron#427)",
        f"{Q} {K}",
        product(interleaved_rows),
        "linear-rows-permuted",
        sample=True,
    ),
    mutant(
        "lin-k-half-split-rows",
        "k rows are permuted the other way, at one layer",
        K,
        product(half_split_rows),
        "linear-rows-permuted",
        layers=2,
    ),
    mutant(
        "lin-v-heads-reversed",
        "the heads of v_proj are reversed",
        V,
        product(heads_reversed),
        ("linear-rows-permuted", "values-permuted", "linear-shard-order"),
    ),
    mutant(
        "lin-q-heads-tiled",
        "the heads of q_proj are in tiled order",
        Q,
        product(heads_tiled),
        ("linear-rows-permuted", "values-permuted"),
    ),
    mutant(
        "lin-up-other-layer",
        "layer 1 multiplies by layer 0's up_proj",
        UP,
        product(layer_before),
        "linear-other-layer",
        layers=1,
    ),
    mutant(
        "lin-all-other-layer",
        "all layers take the next layer's o_proj and down_proj",
        f"{O} {DOWN}",
        product(layer_after),
        "linear-other-layer",
        sample=True,
    ),
    mutant(
        "lin-gate-up-swapped",
        "gate and up slices of a fused weight are swapped",
        f"{GATE} {UP}",
        product(swapped_gate_up),
        "linear-other-weight",
    ),
    mutant(
        "lin-gate-up-interleaved",
        "an interleaved gate_up weight is read as two halves",
        f"{GATE} {UP}",
        product(interleaved_gate_up),
        (None, "linear-rows-permuted", "linear-other-weight"),
        patterns="all-layers",
    ),
    mutant(
        "lin-k-v-swapped",
        "k and v slices of a fused weight are swapped",
        f"{K} {V}",
        product(lambda op: op.weight("self_attn.v_proj" if op.point == K else "self_attn.k_proj")),
        "linear-other-weight",
    ),
    mutant(
        "lin-v-is-k",
        "v is computed with k_proj",
        V,
        other("self_attn.k_proj"),
        ("linear-other-weight", "attention-value"),
    ),
    mutant(
        "lin-fused-one-head-early",
        "k and v slices of a fused qkv weight start one head early",
        f"{K} {V}",
        product(fused_one_head_early),
        ("linear-other-weight", "linear-rows-permuted", None),
        patterns="all-layers",
    ),
    mutant("lin-q-bias", "a bias is added to q (candle-vllm#167)", Q, biased(0.2), "linear-bias", sample=True),
    mutant(
        "lin-qkv-bias",
        "small biases are added to q, k and v (ANEForge#253)",
        f"{Q} {K} {V}",
        biased(0.05),
        "linear-bias",
    ),
    mutant(
        "lin-down-bias-decode",
        "a bias is added to down_proj in decode",
        DOWN,
        biased(0.1),
        "linear-bias",
        run="decode",
        phase="decode",
    ),
    mutant("lin-gate-fp8", "gate_proj is rounded to fp8", GATE, changed(ops.fp8_grid), "linear-weight-rounded"),
    mutant(
        "lin-o-int8",
        "o_proj is rounded to int8 rows",
        O,
        changed(lambda w: ops.int_grid(w, 8)),
        "linear-weight-rounded",
    ),
    mutant(
        "lin-down-int4",
        "down_proj is rounded to int4 in groups of 32",
        DOWN,
        changed(lambda w: ops.int_grid(w, 4, 32)),
        "linear-weight-rounded",
        layers=1,
    ),
    mutant(
        "lin-up-int4-rows",
        "up_proj is rounded to int4 rows",
        UP,
        changed(lambda w: ops.int_grid(w, 4)),
        "linear-weight-rounded",
    ),
    mutant(
        "lin-all-bf16",
        "an f32 weight is rounded to bf16",
        f"{Q} {UP}",
        changed(lambda w: w.to(torch.bfloat16).to(w.dtype)),
        ("linear-weight-rounded",),
        models=("wide",),
        dtypes=("f32",),
    ),
    mutant(
        "lin-all-f16",
        "an f32 weight is rounded to f16",
        f"{V} {DOWN}",
        changed(lambda w: w.to(torch.float16).to(w.dtype)),
        ("linear-weight-rounded",),
        models=("wide",),
        dtypes=("f32",),
    ),
    mutant(
        "lin-weight-clamped",
        "weights are clamped to a small range, as a cast to f16 does at 65504 (E7)",
        GATE,
        changed(lambda w: w.clamp(-w.abs().mean(), w.abs().mean())),
        (None, "linear-weight-rounded"),
        patterns="all-layers",
    ),
    mutant(
        "lin-o-shard-missing", "the second rank's part of o_proj is missing", O, shard_missing, "linear-shard-missing"
    ),
    mutant(
        "lin-down-shard-doubled",
        "the second rank's part of down_proj is added twice",
        DOWN,
        shard_doubled,
        "linear-shard-doubled",
        sample=True,
    ),
    mutant(
        "lin-up-shard-order",
        "output shards of up_proj are in the wrong order",
        UP,
        changed(shard_order),
        ("linear-shard-order", "linear-rows-permuted", "values-permuted"),
    ),
    mutant(
        "lin-q-shard-order",
        "output shards of q_proj are in the wrong order, at one layer",
        Q,
        changed(shard_order),
        ("linear-shard-order", "linear-rows-permuted", "values-permuted"),
        layers=0,
    ),
    mutant(
        "lin-gate-shard-zero",
        "the second output shard of gate_proj is never written",
        GATE,
        output_shard_missing,
        ("linear-shard-missing", "values-zero"),
    ),
    mutant(
        "lin-up-shard-twice",
        "both ranks load the first output shard of up_proj",
        UP,
        output_shard_doubled,
        (None, "linear-shard-doubled", "linear-rows-permuted"),
        patterns="channel-block",
    ),
    mutant(
        "lin-input-slices-2",
        "E5: o_proj and down_proj cut into row blocks, 2 ranks",
        f"{O} {DOWN}",
        input_slices(2),
        "linear-input-slices",
        sample=True,
    ),
    mutant(
        "lin-input-slices-4", "E5: down_proj cut into row blocks, 4 ranks", DOWN, input_slices(4), "linear-input-slices"
    ),
    mutant("lin-down-doubled", "down_proj is accumulated twice", DOWN, doubled, ("linear-doubled", "values-scaled")),
    mutant(
        "lin-q-doubled-decode",
        "q_proj is accumulated twice in decode",
        Q,
        doubled,
        ("linear-doubled", "values-scaled"),
        run="decode",
        phase="decode",
    ),
    mutant(
        "lin-q-unnormed",
        "q_proj reads the stream before its norm",
        Q,
        product(x=lambda op: op["input_hidden_states"]),
        "linear-wrong-input",
    ),
    mutant(
        "lin-up-unnormed",
        "up_proj reads the stream before its norm",
        UP,
        product(x=lambda op: op["attn_residual_output"]),
        "linear-wrong-input",
    ),
    mutant(
        "lin-gate-attention-norm",
        "gate_proj reads the attention's norm output",
        GATE,
        product(x=lambda op: op["attn_norm_output"]),
        "linear-wrong-input",
        layers=1,
    ),
    mutant(
        "lin-down-reads-gate",
        "down_proj reads gate instead of silu(gate)·up",
        DOWN,
        product(x=lambda op: op[GATE]),
        "linear-wrong-input",
    ),
    mutant(
        "lin-low-accumulation",
        "sums are accumulated in bf16",
        GATE,
        low_accumulation,
        (None, "noise", "values-rounded"),
        patterns="all-layers coarse-grid",
    ),
    mutant(
        "lin-remainder-ignored",
        "the last 16 inputs of down_proj are ignored",
        DOWN,
        last_inputs_ignored,
        (None, "linear-shard-missing"),
        patterns="all-layers",
    ),
    mutant("lin-low-rank", "an adapter of rank 2 is merged into o_proj", O, low_rank, (None,), patterns="all-layers"),
    mutant(
        "lin-one-output-negated",
        "one row of v_proj has the wrong sign",
        V,
        one_row_negated,
        (None, "values-scaled"),
        patterns="some-channels some-heads",
        layers=1,
    ),
    mutant(
        "lin-down-columns-reversed",
        "the inputs of down_proj are in reversed order",
        DOWN,
        changed(lambda w: w.flip(1)),
        (None, "linear-rows-permuted"),
        patterns="all-layers",
    ),
    mutant(
        "head-no-final-norm",
        "the head reads the stream before the final norm",
        "logits",
        product(x=final_norm_missing),
        "linear-wrong-input",
        sample=True,
    ),
    mutant(
        "head-wrong-tie",
        "an untied head is tied to the embedding (FastDeploy#2737, sglang#18024, sglang#20127, pegainfer#544, "
        "candle#2930)",
        "logits",
        other("embed_tokens"),
        ("linear-tie", "linear-other-weight"),
        models=("wide",),
        sample=True,
    ),
    mutant(
        "head-rows-shifted",
        "the head's rows are shifted by one",
        "logits",
        changed(lambda w: w.roll(1, 0)),
        ("linear-rows-permuted", "values-permuted"),
    ),
    mutant(
        "head-row-before",
        "logits are those of the token before",
        "logits",
        lambda op: product()(op).roll(1, 0),
        ("values-permuted", "rows-stale"),
    ),
    mutant(
        "head-other-dtype",
        "E8: the head reads the final norm's buffer in another dtype",
        "logits",
        another_dtype,
        (None,),
        patterns="non-finite everywhere",  # bits that were never numbers
    ),
    mutant(
        "head-soft-cap",
        "logits are capped at 30 by tanh, as Gemma 2 does",
        "logits",
        soft_cap,
        "values-clamped",
    ),
    mutant(
        "head-temperature",
        "logits are divided by a temperature of 0.7",
        "logits",
        lambda op: op.right / 0.7,
        "values-scaled",
    ),
    mutant(
        "head-int8",
        "the head is rounded to int8 rows",
        "logits",
        changed(lambda w: ops.int_grid(w, 8)),
        "linear-weight-rounded",
    ),
    mutant(
        "head-last-token",
        "only the last token's logits are wrong: it reads the un-normed stream",
        "logits",
        product(x=final_norm_missing),
        "linear-wrong-input",
        rows=last_row,
    ),
    mutant(
        "head-padding-rows",
        "the last 48 rows of the vocabulary are never written",
        "logits",
        lambda op: torch.cat((op.right[:, :-48], torch.zeros_like(op.right[:, -48:])), 1),
        ("values-zero", None),
        patterns="channel-block some-channels zeros",
    ),
    mutant(
        "lin-relu-in",
        "down_proj clamps its inputs to at least zero",
        DOWN,
        product(x=lambda op: F.relu(op["mlp_intermediate"])),
        (None,),
        patterns="all-layers",
    ),
)
