"""The capture points of a real transformers `Qwen3ForCausalLM`, without a change to its code.

    model = Qwen3ForCausalLM.from_pretrained(directory, attn_implementation="eager")
    with hooks.capture(model, tap):
        model(input_ids)

`tap` is that of model.py: called as tap(name, layer, tensor) with the token-major tensor ([T, heads, head_dim], a batch
flattened into T), and free to answer with a replacement. On leaving, everything is as it was, also after an exception.

Most points are the output of a module. The others have to be looked for:

- q and k after RoPE come from a function, which is replaced in its module;
- the scores and probabilities live inside the eager attention function. They are what goes into its softmax and what
  comes out of its dropout, seen by a TorchFunctionMode that is on during that function only;
- the input of a module is the point where its producer is a bare `+` or `*` (attn_residual_output, mlp_intermediate),
  or where there are several producers (attn_context).

Written for transformers 4.51 to 5: a decoder layer returns a tuple or a tensor, and gets its input by position or name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lockstep.config import Config
from lockstep.errors import LockstepError
from lockstep.model import Checkpoint, Tap

View = Callable[[Tensor], Tensor]


@contextmanager
def capture(model: nn.Module, tap: Tap) -> Iterator[None]:
    """REQUIRES: `model` is a Qwen3ForCausalLM that was loaded with attn_implementation="eager"."""
    _require_eager_qwen3(model)
    with observe(model.model, model.lm_head, tap):
        yield


@contextmanager
def observe(decoder: nn.Module, lm_head: nn.Module | None, tap: Tap) -> Iterator[None]:
    """REQUIRES: `decoder` is a Qwen3Model. With other than eager attention there are no scores and probabilities."""
    with ExitStack() as stack:
        _capture_ends(decoder, lm_head, tap, stack)
        for layer, module in enumerate(decoder.layers):
            _capture_layer(module, layer, tap, stack)
        _capture_functions(decoder, tap, stack)
        yield


def _require_eager_qwen3(model: nn.Module) -> None:
    if type(model).__name__ != "Qwen3ForCausalLM":
        raise LockstepError(
            f"model: expected a Qwen3ForCausalLM, found {type(model).__name__}; "
            "capture other models through lockstep.trace"
        )
    attention = model.config._attn_implementation
    if attention != "eager":
        raise LockstepError(
            f'attention implementation: expected "eager", found "{attention}"; load the model with '
            'attn_implementation="eager" (the fused ones have no scores to look at)'
        )


# --- Points at modules ---------------------------------------------------------------------------------------------


def _capture_ends(decoder: nn.Module, lm_head: nn.Module | None, tap: Tap, stack: ExitStack) -> None:
    """What lies outside the layers."""
    _on_output(stack, decoder.embed_tokens, tap, "input_embeddings", None)
    # With inputs_embeds the embedding is not called; then these are the point.
    _on_input(stack, decoder, tap, "input_embeddings", None, argument="inputs_embeds")
    _on_output(stack, decoder.norm, tap, "final_norm_output", None)
    if lm_head is not None:
        _on_output(stack, lm_head, tap, "logits", None)


def _capture_layer(module: nn.Module, layer: int, tap: Tap, stack: ExitStack) -> None:
    attention, mlp = module.self_attn, module.mlp

    def by_head(x: Tensor) -> Tensor:  # [B, T, heads * d] -> [B, T, heads, d]
        return x.unflatten(-1, (-1, attention.head_dim))

    _on_input(stack, module, tap, "input_hidden_states", layer)
    _on_output(stack, module.input_layernorm, tap, "attn_norm_output", layer)
    _on_output(stack, attention.q_proj, tap, "attn_q_proj_raw", layer, by_head)
    _on_output(stack, attention.k_proj, tap, "attn_k_proj_raw", layer, by_head)
    _on_output(stack, attention.v_proj, tap, "attn_v_proj_raw", layer, by_head)
    _on_output(stack, attention.q_norm, tap, "attn_q_normed", layer)
    _on_output(stack, attention.k_norm, tap, "attn_k_normed", layer)
    # Whatever computes the attention, its result goes into this projection.
    _on_input(stack, attention.o_proj, tap, "attn_context", layer, view=by_head)
    _on_output(stack, attention.o_proj, tap, "attn_o_proj", layer)
    # The residual path holds the same tensor, so a replacement is written into it.
    _on_input(stack, module.post_attention_layernorm, tap, "attn_residual_output", layer, in_place=True)
    _on_output(stack, module.post_attention_layernorm, tap, "mlp_norm_output", layer)
    _on_output(stack, mlp.gate_proj, tap, "mlp_gate_proj", layer)
    _on_output(stack, mlp.up_proj, tap, "mlp_up_proj", layer)
    _on_input(stack, mlp.down_proj, tap, "mlp_intermediate", layer)
    _on_output(stack, mlp.down_proj, tap, "mlp_down_proj", layer)
    _on_output(stack, module, tap, "layer_output", layer)


def _on_output(
    stack: ExitStack, module: nn.Module, tap: Tap, name: str, layer: int | None, view: View | None = None
) -> None:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # decoder layers up to transformers 4.53
            return (_tapped(tap, name, layer, output[0], view), *output[1:])
        return _tapped(tap, name, layer, output, view)

    stack.callback(module.register_forward_hook(hook).remove)


def _on_input(
    stack: ExitStack,
    module: nn.Module,
    tap: Tap,
    name: str,
    layer: int | None,
    argument: str = "hidden_states",
    in_place: bool = False,
    view: View | None = None,
) -> None:
    """The point is the module's first positional argument, or the one called `argument`; nothing if that is absent."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if isinstance(kwargs.get(argument), Tensor):
            kwargs = kwargs | {argument: replaced(kwargs[argument])}
        elif args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            args = (replaced(args[0]), *args[1:])
        return args, kwargs

    def replaced(x: Tensor) -> Tensor:
        result = _tapped(tap, name, layer, x, view)
        return x.copy_(result) if in_place and result is not x else result

    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def _tapped(tap: Tap, name: str, layer: int | None, x: Tensor, view: View | None = None) -> Tensor:
    """x is [B, T, ...], which `view` may refine; the tap sees [B * T, ...]. Returns x, or the replacement as x."""
    shown = x if view is None else view(x)
    replacement = tap(name, layer, shown.flatten(0, 1))
    return x if replacement is None else replacement.to(x.dtype).reshape(x.shape)


def _tapped_by_head(tap: Tap, name: str, layer: int, x: Tensor) -> Tensor:
    """x is [B, heads, T, n]; the tap sees [B * T, heads, n]."""
    token_major = x.transpose(1, 2)
    tapped = _tapped(tap, name, layer, token_major)
    return x if tapped is token_major else tapped.transpose(1, 2)


# --- Points inside functions ---------------------------------------------------------------------------------------


def _capture_functions(decoder: nn.Module, tap: Tap, stack: ExitStack) -> None:
    namespace = vars(sys.modules[decoder.layers[0].self_attn.__class__.__module__])  # of modeling_qwen3
    rotary, attention = namespace["apply_rotary_pos_emb"], namespace["eager_attention_forward"]
    running_layer = _track_layer(decoder, stack)

    def tapped_rotary(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        q, k = rotary(q, k, *args, **kwargs)  # [B, H, T, d], [B, K, T, d]: new tokens only
        layer = running_layer()
        if layer is None:
            return q, k
        return _tapped_by_head(tap, "attn_q_rope", layer, q), _tapped_by_head(tap, "attn_k_rope", layer, k)

    def tapped_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        layer = running_layer()
        with nullcontext() if layer is None else _InsideAttention(tap, layer):
            return attention(*args, **kwargs)  # [B, T, H, d], [B, H, T, S]

    stack.callback(namespace.update, apply_rotary_pos_emb=rotary, eager_attention_forward=attention)
    namespace.update(apply_rotary_pos_emb=tapped_rotary, eager_attention_forward=tapped_attention)


def _track_layer(decoder: nn.Module, stack: ExitStack) -> Callable[[], int | None]:
    """Functions are not told their layer: it is the attention module that runs. None: that of another model."""
    running: list[int | None] = [None]
    for layer, module in enumerate(decoder.layers):

        def enter(module: nn.Module, args: tuple[Any, ...], layer: int = layer) -> None:
            running[0] = layer

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            running[0] = None

        stack.callback(module.self_attn.register_forward_pre_hook(enter).remove)
        stack.callback(module.self_attn.register_forward_hook(leave, always_call=True).remove)
    return lambda: running[0]


class _InsideAttention(TorchFunctionMode):
    """Sees the eager attention's softmax and dropout (which does nothing in evaluation, but is still called)."""

    def __init__(self, tap: Tap, layer: int):
        super().__init__()
        self.tap, self.layer = tap, layer

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.softmax:
            scores = _tapped_by_head(self.tap, "attn_scores", self.layer, args[0])  # [B, H, T, S], masked
            return func(scores, *args[1:], **kwargs)
        if func is F.dropout:
            probs = func(*args, **kwargs)  # [B, H, T, S], in the storage dtype
            return _tapped_by_head(self.tap, "attn_probs", self.layer, probs)
        return func(*args, **kwargs)


# --- transformers as the reference ---------------------------------------------------------------------------------


class TransformersModel:
    """transformers' Qwen3 behind the interface of model.Qwen3: one sequence, [1, T], at a time."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype):
        self.model = _load_with_transformers(checkpoint, dtype)
        # transformers leaves a weight where the file was mapped, aligned by chance, and PyTorch's f32 product of a
        # matrix with one row rounds differently by alignment. In memory of its own it does not depend on the file.
        for parameter in self.model.parameters():
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.model.embed_tokens.weight.dtype

    def new_cache(self) -> TransformersCache:
        return TransformersCache()

    @torch.inference_mode()
    def __call__(self, inputs: Tensor, cache: TransformersCache, tap: Tap) -> Tensor:
        """Token ids [1, T] or embeddings [1, T, D] -> logits [1, T, V]."""
        name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
        with capture(self.model, tap):
            return self.model(**{name: inputs}, past_key_values=cache.states, use_cache=True).logits

    def named_parameters(self, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return self.model.named_parameters(**options)


class TransformersCache:
    def __init__(self) -> None:
        from transformers import DynamicCache

        self.states = DynamicCache()

    @property
    def length(self) -> int:
        return self.states.get_seq_length()

    def truncate(self, length: int) -> None:
        if length < self.length:
            self.states.crop(length - self.length)  # negative: how many to drop, which all versions understand


def _load_with_transformers(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    try:
        from transformers import Qwen3Config, Qwen3ForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise LockstepError(
            f"transformers: expected version 4.51 or later, found {error}; pip install transformers, "
            "or use --implementation pure"
        ) from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    dtype_name = "dtype" if _version_of_transformers() >= (4, 56) else "torch_dtype"
    try:
        config = Qwen3Config.from_pretrained(checkpoint.directory, local_files_only=True)
        _adapt_config(config, checkpoint.config)
        model = Qwen3ForCausalLM.from_pretrained(
            checkpoint.directory,
            config=config,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            **{dtype_name: dtype},
        ).eval()
        _check_theta(model, checkpoint.config)
        return model
    except LockstepError:
        raise
    except Exception as error:  # it throws many types, some with texts of several lines
        raise LockstepError(
            f"{checkpoint.directory}: expected a model that transformers {transformers_version()} "
            f"loads, found {' '.join(str(error).split())}; use --implementation pure"
        ) from error


def _adapt_config(theirs: Any, ours: Config) -> None:
    """Limits the layers as ours are. Throws where transformers' defaults differ from ours: its head_dim is 128."""
    for key in ("head_dim", "num_key_value_heads"):
        if getattr(theirs, key) != getattr(ours, key):
            raise _read_otherwise(key, getattr(ours, key), getattr(theirs, key))
    theirs.num_hidden_layers = ours.num_hidden_layers
    if getattr(theirs, "layer_types", None) is not None:
        theirs.layer_types = theirs.layer_types[: ours.num_hidden_layers]


def _check_theta(model: nn.Module, ours: Config) -> None:
    """transformers 4 overlooks the rope_parameters that transformers 5 writes, and goes on with theta 10000."""
    d = ours.head_dim
    expected = 1.0 / ours.rope_theta ** (torch.arange(0, d, 2, dtype=torch.float64) / d)  # [d / 2]
    found = model.model.rotary_emb.inv_freq.double()  # [d / 2]
    if not torch.allclose(found, expected, rtol=1e-5, atol=0):
        theta = float(found[-1]) ** (-d / (d - 2))
        raise _read_otherwise("rope_theta", ours.rope_theta, f"about {theta:.6g}")


def _read_otherwise(key: str, ours: Any, theirs: Any) -> LockstepError:
    return LockstepError(
        f"config.json: {key}: expected {ours}, found {theirs} in the reading of transformers "
        f"{transformers_version()}; write {key} into config.json at top level"
    )


def transformers_version() -> str:
    import transformers

    return transformers.__version__


def _version_of_transformers() -> tuple[int, ...]:
    return tuple(int(part) for part in transformers_version().split(".")[:2])
