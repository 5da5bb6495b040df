"""`lockstep.capture`: a trace of whatever a transformers Qwen3 is asked while the context lasts.

Each call of the decoder is a step. Its tokens become rows keyed by (sequence, position): a cache that is passed on
continues its sequences, an empty one starts new ones; padding is left out; positions are those that RoPE is given.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from lockstep.config import parse
from lockstep.errors import LockstepError
from lockstep.fingerprint import fingerprint
from lockstep.hooks import observe, transformers_version
from lockstep.points import names_for, point_name
from lockstep.selection import Selection
from lockstep.trace import StepWriter, TraceWriter

_STORAGE = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ONLY_EAGER = ("attn_scores", "attn_probs")
_ARGUMENTS = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds")  # of Qwen3Model

_capturing = threading.Lock()  # functions of transformers' module are replaced, so one capture at a time


@contextmanager
def capture(
    model: nn.Module, path: str | os.PathLike[str], *, points: str | None = None, layers: str | None = None
) -> Iterator[TraceWriter]:
    """Writes every forward call of a Hugging Face Qwen3 into the trace `path`, as long as the context lasts.

    `model`: a Qwen3ForCausalLM, a Qwen3Model or a module that contains one; its code is not changed, and its hooks are
    gone afterwards. Works with generate(), caches, padded batches and inputs_embeds; attn_scores and attn_probs need
    attn_implementation="eager". `points` and `layers` select; by default the environment's LOCKSTEP_POINTS and so on.
    After an exception the trace says that it is unfinished.
    Raises LockstepError for another model, a second capture at the same time, a path that cannot be written.

    >>> model = Qwen3ForCausalLM.from_pretrained("models/tiny-qwen3")
    >>> with lockstep.capture(model, "generated.trace"):
    ...     _ = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
    >>> [step.phase for step in lockstep.load("generated.trace").steps]
    ['prefill', 'decode', 'decode', 'decode']
    """
    decoder, owner = _find(model)
    lm_head = None if owner is None else owner.lm_head
    selection = _selection(points, layers)
    options = _describe(decoder, lm_head, selection)
    if not _capturing.acquire(blocking=False):
        raise LockstepError("lockstep.capture: a capture is running already; leave its context first")
    try:
        with TraceWriter(path, selection=selection, **options) as writer, ExitStack() as stack:
            recorder = _Recorder(writer)
            # Before the taps: the step must be there when the first point arrives.
            stack.callback(decoder.register_forward_pre_hook(recorder.begin, with_kwargs=True).remove)
            stack.callback(decoder.register_forward_hook(recorder.decoded).remove)
            if owner is not None:
                stack.callback(owner.register_forward_pre_hook(recorder.expect_logits, with_kwargs=True).remove)
            stack.enter_context(observe(decoder, lm_head, recorder.tap))
            yield writer
            recorder.end()
    finally:
        _capturing.release()


# --- The model -----------------------------------------------------------------------------------------------------


def _find(model: nn.Module) -> tuple[Any, Any]:
    """The Qwen3Model in `model`, and the Qwen3ForCausalLM around it, or None."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    decoders = [module for module in modules if _is_a(module, "Qwen3Model")]
    if len(decoders) != 1:
        found = f"{len(decoders)} of them in {type(model).__name__}" if decoders else type(model).__name__
        raise LockstepError(
            f"lockstep.capture: expected one Qwen3Model of transformers, or a module that contains it, found {found}; "
            "record the points of other models with lockstep.TraceWriter"
        )
    (decoder,) = decoders
    owners = [module for module in modules if _is_a(module, "Qwen3ForCausalLM") and module.model is decoder]
    return decoder, owners[0] if owners else None


def _is_a(module: nn.Module, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(module).__mro__)


def _selection(points: str | None, layers: str | None) -> Selection:
    outside = Selection.from_environment()
    return Selection(
        outside.points if points is None else points,
        outside.layers if layers is None else layers,
        outside.steps,
        outside.row_text,
    )


def _describe(decoder: Any, lm_head: Any, selection: Selection) -> dict[str, Any]:
    """What trace.json says of the model. Throws LockstepError where the trace could not hold what is selected."""
    dtype = decoder.embed_tokens.weight.dtype
    if dtype not in _STORAGE:
        raise LockstepError(f"model: expected weights in float32, bfloat16 or float16, found {dtype}")
    try:
        config = parse(decoder.config.to_dict())
    except LockstepError as error:
        raise LockstepError(f"model.config: {error}") from None
    any_step = Selection(selection.points, selection.layers)
    wanted = [name for name in names_for(config.num_hidden_layers, on_request=True) if any_step.wants(name, 0)]
    attention = decoder.config._attn_implementation
    if attention != "eager" and any(name.endswith(_ONLY_EAGER) for name in wanted):
        raise LockstepError(
            f'points={selection.points!r}: scores and probabilities need attn_implementation="eager", found '
            f'"{attention}", which never has them; load the model with it'
        )
    absent = [f"*_{name}" for name in _ONLY_EAGER if attention != "eager"] + ([] if lm_head is not None else ["logits"])
    return {
        "producer": "transformers",
        "version": transformers_version(),
        "config": config.trace_config(),
        "storage": _STORAGE[dtype],
        # generate() asks for the logits of the last token only, so they are not promised.
        "points": [name for name in wanted if name != "logits"],
        "not_observable": absent,
        "weights": _fingerprints(decoder, lm_head),
    }


def _fingerprints(decoder: Any, lm_head: Any) -> dict[str, Any]:
    """Of all weights, under the names of the checkpoint."""
    prints = {f"model.{name}": fingerprint(weight.data) for name, weight in decoder.named_parameters()}
    if lm_head is not None:
        is_tied = lm_head.weight is decoder.embed_tokens.weight
        prints["lm_head.weight"] = prints["model.embed_tokens.weight"] if is_tied else fingerprint(lm_head.weight.data)
    return prints


# --- The calls -----------------------------------------------------------------------------------------------------


@dataclass
class _Batch:
    """The sequences of one cache: numbers first, first + 1, … and the position in each column, -1 for padding."""

    first: int
    columns: np.ndarray  # i64 [B, tokens so far]


class _Recorder:
    """Turns calls of the decoder into steps. B rows of T columns each; `kept` are those that are no padding."""

    def __init__(self, writer: TraceWriter) -> None:
        self._writer = writer
        self._batches: WeakKeyDictionary[Any, _Batch] = WeakKeyDictionary()
        self._num_sequences = 0
        self._step: StepWriter | None = None
        self._is_complete = False
        self._batch = _Batch(0, np.zeros((0, 0), np.int64))
        self._kept = np.zeros((0, 0), bool)  # [B, T]
        self._logit_columns: Any = 0

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the decoder runs."""
        self.end()
        call = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        ids, embeddings, cache = (call.get(name) for name in ("input_ids", "inputs_embeds", "past_key_values"))
        shaped = embeddings if ids is None else ids
        if shaped is None:
            return  # the model says so itself
        rows, columns = shaped.shape[:2]
        past = 0 if cache is None else int(cache.get_seq_length())
        used = _used(call.get("attention_mask"), rows, past + columns)
        positions = _positions(call, rows, columns, past)
        self._kept = used[:, past:]
        _check_positions(positions, self._kept, past)
        self._batch = self._continue(cache, rows, past, used)
        self._batch.columns = np.concatenate([self._batch.columns, np.where(self._kept, positions, -1)], axis=1)
        sequences = np.broadcast_to(self._batch.first + np.arange(rows)[:, None], (rows, columns))
        tokens = np.full((rows, columns), -1) if ids is None else ids.detach().cpu().numpy()
        phase = "decode" if past and columns == 1 else "prefill"
        kept = self._kept
        self._step = self._writer.begin_step(tokens[kept], positions[kept], sequences[kept], phase)
        self._is_complete = False

    def decoded(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the decoder has run: from now on its cache stands for these sequences."""
        self._is_complete = True
        cache = getattr(output, "past_key_values", None)
        if cache is None and isinstance(output, tuple) and len(output) > 1:
            cache = output[1]
        if hasattr(cache, "get_seq_length"):
            self._batches[cache] = self._batch

    def expect_logits(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the language model runs: of which columns it will have logits."""
        self._logit_columns = kwargs.get("logits_to_keep", 0)

    def end(self) -> None:
        """The step ends where the next begins: what follows the decoder belongs to it, too."""
        if self._step is None:
            return
        if not self._is_complete:
            self._writer.add_error(f"step {self._step.index}: the forward call did not come to its end")
        self._step.end()
        self._step = None

    def tap(self, name: str, layer: int | None, x: Tensor) -> None:
        """x is [B * T, ...]; of the logits [B * n, V]."""
        full_name = point_name(name, layer)
        if self._step is None or not self._step.wants(full_name):
            return
        if name == "logits":
            self._record_logits(x)
            return
        keys = self._keys(x.shape[-1]) if name in _ONLY_EAGER else None
        self._step.record(full_name, self._without_padding(x.detach()), keys=keys)

    def _record_logits(self, x: Tensor) -> None:
        assert self._step is not None
        rows, columns = self._kept.shape
        count = x.shape[0] // rows
        chosen = np.arange(columns - count, columns)
        if isinstance(self._logit_columns, Tensor):
            chosen = np.arange(columns)[self._logit_columns.detach().cpu().numpy()]
        kept = self._kept[:, chosen]  # [B, n]
        index = (np.cumsum(self._kept.reshape(-1)) - 1).reshape(rows, columns)  # among the step's tokens
        x = x.detach()
        if not kept.all():
            x = x[torch.from_numpy(kept.reshape(-1)).to(x.device)]
        self._step.record("logits", x, rows=None if count == columns else index[:, chosen][kept])

    def _without_padding(self, x: Tensor) -> Tensor:
        return x if self._kept.all() else x[torch.from_numpy(self._kept.reshape(-1)).to(x.device)]

    def _keys(self, width: int) -> np.ndarray | None:
        """Positions of an attention tensor's `width` keys, i32 [R, width], where they are not 0, 1, 2, …"""
        columns = self._batch.columns[:, :width]
        columns = np.pad(columns, ((0, 0), (0, width - columns.shape[1])), constant_values=-1)
        if (columns == np.arange(width)).all():
            return None
        return np.repeat(columns, self._kept.sum(1), axis=0).astype(np.int32)

    def _continue(self, cache: Any, rows: int, past: int, used: np.ndarray) -> _Batch:
        """The sequences whose first `past` columns the cache holds; new ones where it is empty or unknown."""
        known = self._batches.get(cache) if cache is not None and past else None
        if known is not None and known.columns.shape[0] == rows:
            return _Batch(known.first, known.columns[:, :past])  # a cache may have been cropped
        first = self._num_sequences
        self._num_sequences += rows
        return _Batch(first, np.where(used, np.cumsum(used, 1) - 1, -1)[:, :past])


def _used(mask: Any, rows: int, columns: int) -> np.ndarray:
    """Which columns are no padding, bool [rows, columns], from an attention mask."""
    if mask is None:
        return np.ones((rows, columns), bool)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != rows or mask.shape[1] < columns:
        found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise LockstepError(
            f"attention_mask: expected 0 and 1 of shape {[rows, columns]} (with what the cache holds), found {found}; "
            "which tokens are padding cannot be told from it: give the two-dimensional mask (and no static cache)"
        )
    return (mask[:, :columns] != 0).detach().cpu().numpy()


def _positions(call: dict[str, Any], rows: int, columns: int, past: int) -> np.ndarray:
    """What RoPE is given, i64 [rows, columns]."""
    given = call.get("position_ids")
    if given is None:
        given = call.get("cache_position")  # of transformers 4
    if given is None:
        return np.broadcast_to(past + np.arange(columns), (rows, columns))
    return np.broadcast_to(given.detach().cpu().numpy(), (rows, columns))


def _check_positions(positions: np.ndarray, kept: np.ndarray, past: int) -> None:
    """Each row is one sequence; positions that begin behind its padding are likely a mistake of the caller."""
    for row, here in zip(positions, kept, strict=True):
        real = row[here]
        if (np.diff(real) <= 0).any():
            raise LockstepError(
                f"position_ids: expected ascending positions in each row, found {real.tolist()[:16]}; several "
                "sequences packed into one row cannot be told apart: give each a row of its own"
            )
        if not past and real.size and not here[0] and real[0] > 0:
            warnings.warn(
                f"padding on the left is counted: the first token has position {real[0]}; generate() begins at 0, and "
                "so does position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)",
                stacklevel=2,
            )
            return
