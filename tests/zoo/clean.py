"""Correct runs, which the judge must acquit: implementations, lengths, ways of running, and all that is no bug."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lockstep.points import parse_name
from runs import prompt, run_engine, run_reference
from torch import Tensor

from zoo import ops
from zoo.context import EVERY_MODEL, Mutant, Op, Part
from zoo.models import Models, config_of
from zoo.noise import LINEAR_WEIGHTS, NORM_WEIGHTS, ROPE_INPUTS, SUMS, norm_input
from zoo.play import Rewrite, Step, play, write_trace
from zoo.runs import RUNS, Run, one

DTYPES = ("f32", "bf16", "f16")
LENGTHS = (1, 2, 17, 300, 2000)


@dataclass(frozen=True)
class Clean:
    id: str
    what: str
    model: str
    make: Callable[[Models, Path], Path]  # writes the trace and returns it
    sample: bool = False
    says: str | None = None  # where the judge must say something: "layouts" or "notes"


def everything() -> tuple[Clean, ...]:
    return (*of_the_pure_reference(), *of_other_implementations(), *of_variants(), *of_captures())


# --- Implementations -------------------------------------------------------------------------------------------------


def of_the_pure_reference() -> Iterator[Clean]:
    for model in EVERY_MODEL:
        for dtype in DTYPES:
            lengths = LENGTHS if model == "tiny" else LENGTHS[:-1]
            for length in lengths:
                run = Run(f"{length} tokens", one(length))
                yield pure(model, dtype, run, sample=(model, dtype, length) == ("tiny", "bf16", 300))
            for id in ("decode", "chunks", "batch", "scores", "small", "long-rows", "long-decode"):
                yield pure(model, dtype, RUNS[id], sample=(model, dtype, id) == ("wide", "f32", "batch"))


def pure(model: str, dtype: str, run: Run, sample: bool = False) -> Clean:
    def make(models: Models, out: Path) -> Path:
        return write_trace(out, play(models.load(model, dtype), run))

    return Clean(f"pure {model} {dtype} {run.id}", "the pure reference", model, make, sample)


def of_other_implementations() -> Iterator[Clean]:
    for model in EVERY_MODEL:
        for dtype in DTYPES:
            for kind in ("transformers", "engine"):
                for way, lengths, options in (
                    ("decode", LENGTHS[:-1], ("--decode", 3)),
                    ("chunks", (17, 300), ("--chunk", 64)),
                    ("2000 tokens", (2000,), ()),
                ):
                    if way == "2000 tokens" and model == "wide":
                        continue
                    yield Clean(
                        f"{kind} {model} {dtype} {way}",
                        {"transformers": "transformers, through hooks", "engine": "the C++ engine"}[kind],
                        model,
                        partial(other, kind, model, dtype, lengths, options),
                        sample=(kind, model, dtype, way) in SAMPLED_OTHERS,
                    )


SAMPLED_OTHERS = (("engine", "tiny", "f16", "decode"), ("transformers", "tiny", "bf16", "decode"))


def other(
    kind: str, model: str, dtype: str, lengths: tuple[int, ...], options: tuple[Any, ...], models: Models, out: Path
) -> Path:
    directory = models.checkpoint(model)
    vocabulary = config_of(directory)["vocab_size"]
    given = [option for length in lengths for option in ("--tokens", prompt(length, vocabulary))]
    if kind == "engine":
        return run_engine(directory, out, "--dtype", dtype, *given, *options)
    return run_reference(directory, out, "--implementation", kind, "--dtype", dtype, *given, *options)


# --- Variants of the arithmetic: rounded once, another order of sums, other storage ----------------------------------


def wide(x: Tensor) -> Tensor:
    return x.float()


def norm_rounded_once(op: Op) -> Tensor:
    weight = wide(op.weight(NORM_WEIGHTS[op.point][0]))
    return (weight * ops.rms_norm(wide(norm_input(op)), None, op.config.rms_norm_eps)).to(op.dtype)


def rope_rounded_once(op: Op) -> Tensor:
    return ops.rope(wide(op[ROPE_INPUTS[op.point]]), op.positions, op.config.rope_theta).to(op.dtype)


def swiglu_rounded_once(op: Op) -> Tensor:
    return ops.swiglu(wide(op["mlp_gate_proj"]), wide(op["mlp_up_proj"])).to(op.dtype)


def attention_of(op: Op, k: Tensor, v: Tensor) -> Tensor:
    return ops.attention(wide(op["attn_q_rope"]), wide(k), wide(v), ops.causal(op.positions, len(k))).to(op.dtype)


def attention_rounded_once(op: Op) -> Tensor:
    return attention_of(op, op.whole("attn_k_rope"), op.whole("attn_v_proj_raw"))


def attention_flash(op: Op) -> Tensor:
    """Online softmax over blocks of 16 keys; exponentials are rounded to the storage, and their sum divides last."""
    q, k, v = (wide(x) for x in (op["attn_q_rope"], op.whole("attn_k_rope"), op.whole("attn_v_proj_raw")))
    groups, allowed = q.shape[1] // k.shape[1], ops.causal(op.positions, len(k))
    k, v = (x.repeat_interleave(groups, 1).transpose(0, 1) for x in (k, v))
    scores = (q.transpose(0, 1) @ k.transpose(1, 2)) * op.config.head_dim**-0.5  # [H, T, S]
    scores = scores.masked_fill(~allowed, float("-inf"))
    most = torch.full((*scores.shape[:2], 1), -1e30)
    total, summed = torch.zeros_like(most), torch.zeros(*scores.shape[:2], q.shape[2])
    for start in range(0, k.shape[1], 16):
        block = scores[..., start : start + 16]
        new = torch.maximum(most, block.amax(-1, keepdim=True))
        p = (block - new).exp()
        total = total * (most - new).exp() + p.sum(-1, keepdim=True)
        summed = summed * (most - new).exp() + wide(p.to(op.dtype)) @ v[:, start : start + 16]
        most = new
    return (summed / total).transpose(0, 1).to(op.dtype)


def linear_in_blocks(op: Op) -> Tensor:
    """Another order of summation: blocks of 32 inputs, from the last to the first, in f32."""
    name, source = LINEAR_WEIGHTS[op.point]
    x, weight = wide(op[source].flatten(1)), wide(op.weight(name))
    total = torch.zeros(x.shape[0], weight.shape[0])
    for a, b in reversed(list(zip(x.split(32, 1), weight.split(32, 1), strict=True))):
        total += a @ b.T
    return total.to(op.dtype)


def residual_fused(op: Op) -> Tensor:
    """Product and sum in one kernel: the branch is never rounded, nor materialised."""
    stream, branch = SUMS[op.point]
    name, source = LINEAR_WEIGHTS[branch]
    return (wide(op[stream]) + ops.linear(wide(op[source]), wide(op.weight(name)))).to(op.dtype)


def cache_in_f16(op: Op) -> Tensor:
    k, v = (x.to(torch.float16) for x in (op.whole("attn_k_rope"), op.whole("attn_v_proj_raw")))
    return attention_of(op, k, v)


def part(points: Any, wrong: Callable[[Op], Tensor]) -> Part:
    return Part(tuple(points), wrong, (None,))


NORM_ONCE = part(NORM_WEIGHTS, norm_rounded_once)
ROPE_ONCE = part(ROPE_INPUTS, rope_rounded_once)
SWIGLU_ONCE = part(["mlp_intermediate"], swiglu_rounded_once)
CONTEXT = ["attn_context"]
VARIANTS: dict[str, tuple[str, tuple[Part, ...]]] = {
    "norm-once": ("norms rounded once (TransformerEngine#1132, transformers#33133)", (NORM_ONCE,)),
    "rope-once": ("rotation rounded once", (ROPE_ONCE,)),
    "swiglu-once": ("silu·up rounded once", (SWIGLU_ONCE,)),
    "attention-once": ("attention in f32, rounded once", (part(CONTEXT, attention_rounded_once),)),
    "flash": ("online softmax over blocks of keys", (part(CONTEXT, attention_flash),)),
    "sums": ("products summed in another order", (part(LINEAR_WEIGHTS, linear_in_blocks),)),
    "all-once": ("all ops rounded once", (NORM_ONCE, ROPE_ONCE, SWIGLU_ONCE, part(CONTEXT, attention_flash))),
}
FUSED = "fused residual additions: no branch is materialised"
SPLIT_STREAM = ("input_hidden_states", "attn_residual_output", "layer_output")


def of_variants() -> Iterator[Clean]:
    for model in EVERY_MODEL:
        for dtype in DTYPES:
            for id, (what, parts) in VARIANTS.items():
                sample = (model, dtype, id) == ("wide", "bf16", "all-once")
                yield variant(f"{id} {model} {dtype}", what, model, dtype, parts, sample=sample)
            yield variant(
                f"residual-fused {model} {dtype}",
                FUSED,
                model,
                dtype,
                (part(SUMS, residual_fused),),
                rewrite=without("attn_o_proj", "mlp_down_proj"),
                not_observable=["*attn_o_proj", "*mlp_down_proj"],
            )
            for id in ("chunks", "decode"):
                if dtype == "f16":
                    continue
                yield variant(
                    f"f16-cache {model} {dtype} {id}",
                    "an f16 cache, declared",
                    model,
                    dtype,
                    (part(CONTEXT, cache_in_f16),),
                    run=id,
                    cache="F16",
                )
            yield permuted(model, dtype)
    for id in ("prefill", "batch"):
        yield Clean(
            f"f32-stream tiny bf16 {id}",
            "an f32 residual stream with bf16 operands, declared",
            "tiny",
            partial(f32_stream, id),
            sample=id == "batch",
        )


def variant(
    id: str,
    what: str,
    model: str,
    dtype: str,
    parts: tuple[Part, ...],
    run: str = "batch",
    sample: bool = False,
    says: str | None = None,
    **options: Any,
) -> Clean:
    def make(models: Models, out: Path) -> Path:
        played = play(models.load(model, dtype), RUNS[run], Mutant(id, what, parts), measure=False)
        return write_trace(out, played, **options)

    return Clean(id, what, model, make, sample, says)


def f32_stream(run: str, models: Models, out: Path) -> Path:
    """The model runs in f32 with weights that bf16 holds exactly; everything but the stream is rounded to bf16."""

    def is_stream(name: str) -> bool:
        return parse_name(name)[0] in SPLIT_STREAM

    def as_bf16(op: Op) -> Tensor:
        return op.rounded(op.right, torch.bfloat16)

    def stored(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        return name, tensor if is_stream(name) else tensor.to(torch.bfloat16)

    rounded = [*LINEAR_WEIGHTS, *NORM_WEIGHTS, *ROPE_INPUTS, *CONTEXT, "mlp_intermediate", "input_embeddings"]
    mutant = Mutant("f32-stream", "", (part(rounded, as_bf16),))
    return write_trace(
        out,
        play(models.load("tiny", "f32"), RUNS[run], mutant, measure=False),
        rewrite=stored,
        storage="BF16",
        overrides={f"*{name}": {"storage": "F32"} for name in SPLIT_STREAM},
        weights=models.load("tiny", "bf16").fingerprints,
    )


def permuted(model: str, dtype: str) -> Clean:
    """q and k in interleaved order, weights permuted at load, rotated in interleaved pairs: the scores are equal."""

    def interleaved(x: Tensor) -> Tensor:  # channels of the last axis, half-split -> interleaved
        return torch.stack(x.chunk(2, -1), -1).flatten(-2)

    def projected(op: Op) -> Tensor:
        name, source = LINEAR_WEIGHTS[op.point]
        rows = interleaved(op.weight(name).unflatten(0, (-1, op.config.head_dim)).transpose(1, 2)).transpose(1, 2)
        return ops.linear(op[source], rows.flatten(0, 1))

    def normed(op: Op) -> Tensor:
        name, source = NORM_WEIGHTS[op.point]
        return ops.rms_norm(op[source], interleaved(op.weight(name)), op.config.rms_norm_eps)

    def rotated(op: Op) -> Tensor:
        return ops.rope(op[ROPE_INPUTS[op.point]], op.positions, op.config.rope_theta, interleaved=True)

    parts = (
        part(["attn_q_proj_raw", "attn_k_proj_raw"], projected),
        part(["attn_q_normed", "attn_k_normed"], normed),
        part(ROPE_INPUTS, rotated),
    )
    sample = (model, dtype) == ("tiny", "f32")
    what = "q and k in a permuted basis (InfiniCore's jiuge)"
    return variant(f"permuted-basis {model} {dtype}", what, model, dtype, parts, sample=sample, says="layouts")


# --- Incomplete and unusual captures ---------------------------------------------------------------------------------


def without(*points: str) -> Rewrite:
    return lambda name, tensor: None if parse_name(name)[0] in points else (name, tensor)


def just(*points: str) -> Rewrite:
    return lambda name, tensor: (name, tensor) if parse_name(name)[0] in points else None


def fused_qkv(step: Step) -> dict[str, Tensor]:
    layers = sorted({parse_name(name)[1] for name in step.tensors} - {None})
    raw = ("attn_q_proj_raw", "attn_k_proj_raw", "attn_v_proj_raw")
    return {
        f"layer_{n}_my_fused_qkv": torch.cat([step.tensors[f"layer_{n}_{name}"].flatten(1) for name in raw], 1)
        for n in layers
    }


def heads_first(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    return (name, tensor.transpose(0, 1)) if "_rope" in name or "attn_context" in name else (name, tensor)


AXES = {
    "*attn_q_rope": {"axes": ["q_head", "token", "head_dim"]},
    "*attn_k_rope": {"axes": ["kv_head", "token", "head_dim"]},
    "*attn_context": {"axes": ["q_head", "token", "head_dim"]},
}
ENDS = ("input_embeddings", "input_hidden_states", "layer_output", "final_norm_output", "logits")
CAPTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "layer-ends": ("only the layers' inputs and outputs", {"rewrite": just(*ENDS)}),
    "fused-qkv": (
        "q, k and v as one tensor of its own name",
        {
            "rewrite": without("attn_q_proj_raw", "attn_k_proj_raw", "attn_v_proj_raw"),
            "not_observable": ["*attn_q_proj_raw", "*attn_k_proj_raw", "*attn_v_proj_raw"],
            "extra": fused_qkv,
        },
    ),
    "no-context": ("no attention context", {"rewrite": without("attn_context"), "not_observable": ["*attn_context"]}),
    "no-norms": ("no norm outputs", {"rewrite": without(*NORM_WEIGHTS), "not_observable": ["*normed", "*norm_output"]}),
    "axes": ("other axis orders", {"rewrite": heads_first, "tensors": AXES}),
    "last-logits": ("logits of the last token only", {"last_logits": True}),
    "no-fingerprints": ("no fingerprints of weights", {"fingerprints": False}),
}


SAMPLED_CAPTURES = (("f32", "layer-ends", "decode"), ("bf16", "fused-qkv", "prefill"))


def of_captures() -> Iterator[Clean]:
    for dtype in DTYPES:
        for id, (what, options) in CAPTURES.items():
            for run in ("prefill", "decode"):
                sample = (dtype, id, run) in SAMPLED_CAPTURES
                yield variant(f"{id} tiny {dtype} {run}", what, "tiny", dtype, (), run=run, sample=sample, **options)
        yield Clean(
            f"undeclared tiny {dtype}", "no arithmetic declared", "tiny", partial(undeclared, dtype), says="notes"
        )


def undeclared(dtype: str, models: Models, out: Path) -> Path:
    write_trace(out, play(models.load("tiny", dtype), RUNS["decode"]))
    path = out / "trace.json"
    meta = json.loads(path.read_text())
    del meta["arithmetic"]
    path.write_text(json.dumps(meta))
    return out


def acquits(clean: Clean, result: dict[str, Any]) -> list[str]:
    """What is wrong with the judge's answer; empty if nothing is."""
    complaints = []
    if result["verdict"] != "clean" or result["exit_code"] != 0:
        complaints.append(f"verdict {result['verdict']}, first faulty {result['first_faulty']}")
    if result["findings"]:
        complaints.append("findings: " + "; ".join(str(f.get("text") or f["points"][:1]) for f in result["findings"]))
    if clean.says and not result[clean.says]:
        complaints.append(f"nothing under {clean.says}")
    return complaints
