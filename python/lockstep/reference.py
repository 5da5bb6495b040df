"""Runs the reference over a prompt and writes a trace.

    python -m lockstep.reference MODEL --out py.trace --input "Hello" --decode 8

A run is a list of forward calls. Each call is one step of the trace and holds one sequence: a batch is run one sequence
after the other, because padding would change what is compared. All input is checked before the trace is created.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

try:
    import torch
    from torch import Tensor

    from lockstep import model as pure
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name not in ("torch", "safetensors"):
        raise
    print(f"lockstep reference: {error.name} is missing: pip install torch safetensors tokenizers", file=sys.stderr)
    sys.exit(2)

import lockstep
from lockstep.calls import Call, SpecialEmbeddings, calls_of_trace, check_calls, prefill_calls, prompts_of
from lockstep.config import Config
from lockstep.errors import LockstepError
from lockstep.fingerprint import fingerprint
from lockstep.points import names_for, point_name
from lockstep.trace import Selection, Trace, TraceWriter
from lockstep.trace import load as load_trace

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
STORAGE = {"f32": "F32", "bf16": "BF16", "f16": "F16"}


# --- What runs it --------------------------------------------------------------------------------------------------


class Cache(Protocol):
    @property
    def length(self) -> int: ...
    def truncate(self, length: int) -> None: ...


class Model(Protocol):
    """What both implementations offer."""

    @property
    def dtype(self) -> torch.dtype: ...
    def new_cache(self) -> Cache: ...
    def __call__(self, inputs: Tensor, cache: Cache, tap: pure.Tap) -> Tensor: ...
    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator: ...


class Run:
    """The forward calls of one trace, with the caches of its sequences."""

    def __init__(self, model: Model, writer: TraceWriter, progress: Progress):
        self.model, self.writer, self.progress = model, writer, progress
        self.caches: dict[int, Cache] = {}
        self.steps = self.tokens = 0

    @torch.inference_mode()
    def play(self, call: Call) -> int:
        """Returns the greedy next token."""
        if call.sequence not in self.caches:
            self.caches[call.sequence] = self.model.new_cache()
        cache = self.caches[call.sequence]
        cache.truncate(call.start)
        count = len(call.ids)
        ids = call.ids
        if call.embeddings is None:
            inputs = torch.tensor([ids])  # [1, T]
        else:
            inputs = call.embeddings.to(self.model.dtype, copy=True)[None]  # [1, T, D]
            ids = [-1] * count  # whatever the text was, no token was read
        positions = range(call.start, call.start + count)
        with self.writer.begin_step(ids, list(positions), [call.sequence] * count, call.phase) as step:

            def tap(name: str, layer: int | None, tensor: Tensor) -> None:
                full_name = point_name(name, layer)
                if step.wants(full_name):
                    step.record(full_name, tensor)

            logits = self.model(inputs, cache, tap)  # [1, T, V]
            next_token = int(logits[0, -1].argmax())
            if step.wants("next_token"):
                step.record("next_token", np.array([next_token], np.int32), rows=[count - 1])
        self.steps += 1
        self.tokens += count
        self.progress.show(self.steps)
        return next_token

    def generate(self, calls: list[Call], decode: int) -> None:
        """One sequence: its prefill, then `decode` tokens, each the greedy choice of the step before."""
        next_token = -1
        for call in calls:
            next_token = self.play(call)
        sequence, length = calls[-1].sequence, calls[-1].start + len(calls[-1].ids)
        for i in range(decode):
            next_token = self.play(Call(sequence, "decode", length + i, [next_token]))
        del self.caches[sequence]


class Progress:
    """A counter on a terminal, silence elsewhere; a context manager that leaves the line empty."""

    def __init__(self, total: int):
        self.total, self.on = total, sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.on:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def show(self, steps: int) -> None:
        if self.on:
            print(f"\rreference: step {steps} of {self.total}", end="", file=sys.stderr, flush=True)


def fingerprints(model: Model) -> dict[str, Any]:
    """Of all logical weights, from the parameters that the products read."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    prints = {name: fingerprint(weight.data) for name, weight in parameters.items() if name != "lm_head.weight"}
    head, embedding = parameters["lm_head.weight"], parameters["model.embed_tokens.weight"]
    is_tied = head.data_ptr() == embedding.data_ptr()
    prints["lm_head.weight"] = prints["model.embed_tokens.weight"] if is_tied else fingerprint(head.data)
    return prints


def load(arguments: argparse.Namespace, checkpoint: pure.Checkpoint) -> tuple[Model, str, str]:
    """The model, and the producer's name and version."""
    dtype = DTYPES[arguments.dtype]
    if arguments.implementation == "pure":
        return pure.load_model(checkpoint, dtype), "lockstep-reference", lockstep.__version__
    from lockstep import hooks  # transformers is optional and slow to import

    return hooks.TransformersModel(checkpoint, dtype), "transformers", hooks.transformers_version()


# --- The command ---------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> str:
    """Returns the closing line. Throws LockstepError."""
    started = time.monotonic()
    _check_options(arguments)
    make_deterministic(arguments.threads)
    selection = selection_of(arguments)
    checkpoint = pure.open_checkpoint(arguments.model, arguments.num_layers)
    if unused := checkpoint.unused_weights:
        names = ", ".join(unused[:4]) + (", ..." if len(unused) > 4 else "")
        warn(f"{len(unused)} weights of the checkpoint are not used: {names}")
    sequences = plan(arguments, checkpoint.config)

    # From here on the input is known to be good; the model is loaded, and only then is the trace created.
    model, producer, version = load(arguments, checkpoint)
    decode = arguments.decode
    progress = Progress(sum(len(calls) + decode for calls in sequences))
    with (
        progress,
        TraceWriter(
            arguments.out,
            producer=producer,
            version=version,
            config=checkpoint.config.trace_config(),
            storage=STORAGE[arguments.dtype],
            points=promised_points(selection, checkpoint.config.num_hidden_layers),
            selection=selection,
            weights=fingerprints(model),
        ) as writer,
    ):
        trace_run = Run(model, writer, progress)
        for calls in sequences:
            if arguments.from_trace:
                for call in calls:
                    trace_run.play(call)
            else:
                trace_run.generate(calls, decode)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    return (
        f"{arguments.out}: {trace_run.steps} steps, {trace_run.tokens} tokens, "
        f"{time.monotonic() - started:.1f} s, peak {peak:.0f} MiB"
    )


def plan(arguments: argparse.Namespace, config: Config) -> list[list[Call]]:
    """The calls that are known beforehand, checked: of each sequence its prefill, or of a trace all, as one list."""
    source = arguments.input_embeddings
    special = None if source is None else SpecialEmbeddings(source, config.hidden_size)
    if arguments.from_trace:
        sequences = [calls_of_trace(read_trace(arguments.from_trace), special)]
    else:
        prompts = prompts_of(arguments, special)
        sequences = [prefill_calls(i, ids, arguments.chunk, special) for i, ids in enumerate(prompts)]
    for calls in sequences:
        check_calls(calls, arguments.decode, config)
    return sequences


def read_trace(path: str) -> Trace:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace = load_trace(path)
    for warning in caught:
        warn(str(warning.message))
    return trace


def warn(text: str) -> None:
    print(f"lockstep reference: warning: {text}", file=sys.stderr)


def _check_options(arguments: argparse.Namespace) -> None:
    if arguments.from_trace and (arguments.prompts or arguments.decode or arguments.chunk):
        raise LockstepError(
            "--from: expected no --input, --input-file, --tokens, --decode or --chunk beside it, found "
            "one; the trace says what to run"
        )
    if arguments.from_trace and Path(arguments.from_trace).resolve() == Path(arguments.out).resolve():
        raise LockstepError(
            f"--out: expected another trace than that of --from, found {arguments.out} for both; it would be replaced"
        )
    for option, value, least in (
        ("--decode", arguments.decode, 0),
        ("--chunk", arguments.chunk, 1),
        ("--threads", arguments.threads, 1),
    ):
        if value is not None and value < least:
            raise LockstepError(f"{option}: expected at least {least}, found {value}")


def make_deterministic(threads: int | None) -> None:
    """The bits of a sum depend on how it is split, so the number of threads is fixed for the run."""
    torch.set_num_threads(threads or torch.get_num_threads())
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a pass over every result, and changes none
    torch.set_float32_matmul_precision("highest")


def selection_of(arguments: argparse.Namespace) -> Selection:
    """The options; where one is not given, the environment's LOCKSTEP_POINTS, ..., as for every writer of traces."""
    outside = Selection.from_environment()
    given = (arguments.points, arguments.layers, arguments.steps, arguments.rows)
    default = (outside.points, outside.layers, outside.steps, outside.row_text)
    return Selection(*(theirs if ours is None else ours for ours, theirs in zip(given, default, strict=True)))


def promised_points(selection: Selection, num_layers: int) -> list[str]:
    """What each selected step will hold."""
    any_step = Selection(selection.points, selection.layers)
    names = [*names_for(num_layers, on_request=True), "next_token"]
    return [name for name in names if any_step.wants(name, 0)]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lockstep.reference",
        allow_abbrev=False,
        description="Runs Qwen3 in PyTorch over a prompt and writes a trace.",
    )
    parser.add_argument("model", metavar="MODEL", help="directory of a Hugging Face checkpoint")
    parser.add_argument("--out", required=True, metavar="TRACE", help="the trace to write")
    what = parser.add_argument_group("input (several prompts are a batch; default: one verse)")
    for option, metavar, text in (
        ("--input", "TEXT", "a prompt"),
        ("--input-file", "FILE", "one prompt a line"),
        ("--tokens", "IDS", "a prompt as token ids: 1,2,3"),
    ):
        # All three append to one list, which keeps the order of the command line.
        what.add_argument(
            option,
            dest="prompts",
            action="append",
            metavar=metavar,
            help=text,
            type=lambda value, option=option: (option, value),
        )
    what.add_argument(
        "--input-embeddings",
        metavar="SOURCE",
        help="zeros, tiny, huge, or a .npy file of [tokens, hidden] or [sequences, tokens, hidden]; "
        "replaces the prompt's embeddings",
    )
    what.add_argument(
        "--from",
        dest="from_trace",
        metavar="TRACE",
        help="feed the tokens of this trace, in the same chunks and phases",
    )
    what.add_argument("--decode", type=int, default=0, metavar="N", help="then decode N tokens, greedily")
    what.add_argument("--chunk", type=int, metavar="N", help="prefill in chunks of N tokens")
    how = parser.add_argument_group("arithmetic")
    how.add_argument("--dtype", choices=DTYPES, default="f32", help="of weights, activations and cache (default: f32)")
    how.add_argument(
        "--implementation",
        choices=("pure", "transformers"),
        default="pure",
        help="this package's own PyTorch model (default), or that of transformers",
    )
    how.add_argument("--num-layers", type=int, metavar="N", help="only the first N layers")
    how.add_argument("--threads", type=int, metavar="N", help="default: as many as PyTorch takes")
    select = parser.add_argument_group("selection (default: everything but attn_scores and attn_probs)")
    for option, example in (
        ("--points", "attn_*,logits"),
        ("--layers", "0,2-4"),
        ("--steps", "0,5-7"),
        ("--rows", "last:16"),
    ):
        select.add_argument(option, metavar="LIST", help=f"such as {example}")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        print(run(arguments), file=sys.stderr)
    except LockstepError as error:
        print(f"lockstep reference: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
