"""The reference: Qwen3 in plain PyTorch, written from the equations in docs/points.md.

It depends on torch alone, so that it is a second opinion next to transformers (which hooks.py observes), and yet it
rounds where transformers rounds: both are equal to the bit on a CPU, and a test says so. For that it keeps the shapes
and layouts of transformers ([1, T, D] into a linear, [1, H, T, d] into an attention product), because the kernels that
PyTorch chooses, and with them the last bits, depend on those.

Beside each op stands its capture: `q = point("attn_q_rope", ...)`. The tap sees the canonical token-major tensor
([T, heads, head_dim], no batch axis) and may answer with a replacement, from which the model then goes on; that is how
mutants and patched runs are made.

T tokens of this call, S tokens of the sequence so far (the past and this call), D hidden, H query heads, K key/value
heads, d head_dim, I intermediate, V vocabulary. The batch axis is always 1: sequences are run one after the other.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lockstep.config import Config
from lockstep.errors import LockstepError

# Called as tap(name, layer, tensor) with the point's name without `layer_N_`, and None as layer outside the layers.
# Returns None, or a tensor of the same shape to go on with.
Tap = Callable[[str, int | None, Tensor], Tensor | None]


def no_tap(name: str, layer: int | None, tensor: Tensor) -> None:
    return None


def apply_tap(tap: Tap, name: str, layer: int | None, x: Tensor) -> Tensor:
    """x is [1, T, ...]; the tap sees [T, ...]. Returns x itself, or the replacement in the shape and dtype of x."""
    replacement = tap(name, layer, x[0])
    return x if replacement is None else replacement.to(x.dtype).reshape(x.shape)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # [..., width] -> the same
        wide = x.float()
        mean_square = wide.pow(2).mean(-1, keepdim=True)
        normed = wide * torch.rsqrt(mean_square + self.eps)
        return self.weight * normed.to(x.dtype)  # two roundings, as in transformers


def rope_tables(positions: Tensor, config: Config, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin, each [1, T, d], for positions [1, T]: computed in float32 whatever the storage."""
    d = config.head_dim
    exponents = torch.arange(0, d, 2, dtype=torch.float32) / d
    frequencies = 1.0 / (config.rope_theta**exponents)  # [d / 2]
    angles = positions[..., None].float() * frequencies  # [1, T, d / 2]
    angles = torch.cat((angles, angles), dim=-1)  # half-split pairing: element i turns with i + d / 2
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate_half(x: Tensor) -> Tensor:  # [..., d] -> the same
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [1, heads, T, d]; cos and sin [1, 1, T, d], in the storage dtype, as are all products and the sum."""
    return (x * cos) + (rotate_half(x) * sin)


def causal_mask(past: int, tokens: int, dtype: torch.dtype) -> Tensor:
    """[1, 1, T, S]: 0 where the key is not after the query, the lowest finite value elsewhere."""
    queries = torch.arange(past, past + tokens)[:, None]
    keys = torch.arange(past + tokens)[None, :]
    mask = torch.zeros(tokens, past + tokens, dtype=dtype)
    return mask.masked_fill(keys > queries, torch.finfo(dtype).min)[None, None]


class KVCache:
    """The rotated keys and the values of one sequence, per layer [1, K, S, d]."""

    def __init__(self, config: Config, dtype: torch.dtype):
        empty = torch.empty(1, config.num_key_value_heads, 0, config.head_dim, dtype=dtype)
        self.keys = [empty] * config.num_hidden_layers
        self.values = [empty] * config.num_hidden_layers

    @property
    def length(self) -> int:
        return self.keys[0].shape[2]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v [1, K, T, d] of the new tokens. Returns those of the whole sequence."""
        self.keys[layer] = torch.cat((self.keys[layer], k), dim=2)
        self.values[layer] = torch.cat((self.values[layer], v), dim=2)
        return self.keys[layer], self.values[layer]

    def truncate(self, length: int) -> None:
        """Forgets everything from position `length` on, to compute it again."""
        if length == self.length:
            return
        self.keys = [k[:, :, :length] for k in self.keys]
        self.values = [v[:, :, :length] for v in self.values]


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        D, H, K, d = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.layer, self.head_dim, self.queries_per_kv = layer, d, H // K
        self.q_proj = nn.Linear(D, H * d, bias=False)
        self.k_proj = nn.Linear(D, K * d, bias=False)
        self.v_proj = nn.Linear(D, K * d, bias=False)
        self.o_proj = nn.Linear(H * d, D, bias=False)
        self.q_norm = RMSNorm(d, config.rms_norm_eps)  # over each head alone
        self.k_norm = RMSNorm(d, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KVCache, tap: Tap) -> Tensor:
        def point(name: str, value: Tensor) -> Tensor:
            return apply_tap(tap, name, self.layer, value)

        def point_by_head(name: str, value: Tensor) -> Tensor:  # [1, heads, T, n], seen as [T, heads, n]
            return point(name, value.transpose(1, 2)).transpose(1, 2)

        heads = (1, x.shape[1], -1, self.head_dim)
        q = point("attn_q_proj_raw", self.q_proj(x).view(heads))  # [1, T, H, d]
        k = point("attn_k_proj_raw", self.k_proj(x).view(heads))  # [1, T, K, d]
        v = point("attn_v_proj_raw", self.v_proj(x).view(heads))  # [1, T, K, d]
        q = point("attn_q_normed", self.q_norm(q)).transpose(1, 2)  # [1, H, T, d]
        k = point("attn_k_normed", self.k_norm(k)).transpose(1, 2)  # [1, K, T, d]
        q = point_by_head("attn_q_rope", rope(q, cos, sin))  # [1, H, T, d]
        k = point_by_head("attn_k_rope", rope(k, cos, sin))  # [1, K, T, d]
        k, v = cache.append(self.layer, k, v.transpose(1, 2))  # [1, K, S, d]

        k = k.repeat_interleave(self.queries_per_kv, dim=1)  # [1, H, S, d]: query head h reads kv head h // (H / K)
        v = v.repeat_interleave(self.queries_per_kv, dim=1)  # [1, H, S, d]
        scores = torch.matmul(q, k.transpose(2, 3)) * self.head_dim**-0.5  # [1, H, T, S]
        scores = point_by_head("attn_scores", scores + mask)
        probs = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)  # [1, H, T, S]
        probs = point_by_head("attn_probs", probs)
        context = torch.matmul(probs, v).transpose(1, 2).contiguous()  # [1, T, H, d]
        context = point("attn_context", context)
        return point("attn_o_proj", self.o_proj(context.flatten(2)))  # [1, T, D]


class MLP(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        D, I = config.hidden_size, config.intermediate_size  # noqa: E741
        self.layer = layer
        self.gate_proj = nn.Linear(D, I, bias=False)
        self.up_proj = nn.Linear(D, I, bias=False)
        self.down_proj = nn.Linear(I, D, bias=False)

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        def point(name: str, value: Tensor) -> Tensor:
            return apply_tap(tap, name, self.layer, value)

        gate = point("mlp_gate_proj", self.gate_proj(x))  # [1, T, I]
        up = point("mlp_up_proj", self.up_proj(x))  # [1, T, I]
        intermediate = point("mlp_intermediate", F.silu(gate) * up)  # [1, T, I]
        return point("mlp_down_proj", self.down_proj(intermediate))  # [1, T, D]


class DecoderLayer(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, layer)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KVCache, tap: Tap) -> Tensor:
        def point(name: str, value: Tensor) -> Tensor:
            return apply_tap(tap, name, self.layer, value)

        x = point("input_hidden_states", x)  # [1, T, D], as are all below
        normed = point("attn_norm_output", self.input_layernorm(x))
        x = point("attn_residual_output", x + self.self_attn(normed, cos, sin, mask, cache, tap))
        normed = point("mlp_norm_output", self.post_attention_layernorm(x))
        return point("layer_output", x + self.mlp(normed, tap))


class Decoder(nn.Module):
    """What the checkpoint calls `model`: everything but the head."""

    def __init__(self, config: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Qwen3(nn.Module):
    """Parameters are named as in the checkpoint. Built without memory for them; load_model() puts them in."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        with torch.device("meta"):
            self.model = Decoder(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype

    def new_cache(self) -> KVCache:
        return KVCache(self.config, self.dtype)

    @torch.inference_mode()
    def forward(self, inputs: Tensor, cache: KVCache, tap: Tap = no_tap) -> Tensor:
        """One call over the next T tokens of a sequence: ids [1, T], or embeddings [1, T, D] in the storage dtype.

        Returns the logits [1, T, V] and leaves the keys and values of the T tokens in `cache`.
        """
        past, tokens = cache.length, inputs.shape[1]
        positions = torch.arange(past, past + tokens)[None]  # [1, T]
        cos, sin = rope_tables(positions, self.config, self.dtype)  # [1, T, d]
        cos, sin = cos[:, None], sin[:, None]  # [1, 1, T, d]: the same for all heads
        mask = causal_mask(past, tokens, self.dtype)  # [1, 1, T, S]

        x = inputs if inputs.is_floating_point() else self.model.embed_tokens(inputs)
        x = apply_tap(tap, "input_embeddings", None, x)  # [1, T, D]
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask, cache, tap)  # [1, T, D]
        x = apply_tap(tap, "final_norm_output", None, self.model.norm(x))  # [1, T, D]
        return apply_tap(tap, "logits", None, self.lm_head(x))  # [1, T, V]


# --- Loading -------------------------------------------------------------------------------------------------------
# Every name, shape and dtype is checked from the files' headers before any weight is read. Then the files are opened
# anew for each layer: closing them gives their mapped pages back, so that the peak is the weights in the asked dtype
# and one layer more.

STORED_DTYPES = ("F32", "BF16", "F16")
LAYER_OF_NAME = re.compile(r"model\.layers\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class StoredWeight:
    file: Path
    dtype: str  # as safetensors calls it
    shape: list[int]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers hold what its config.json describes."""

    directory: Path
    config: Config  # with the layers that are used
    weights: dict[str, StoredWeight]  # those that are used
    unused_weights: list[str]


def open_checkpoint(directory: str | Path, num_layers: int | None = None) -> Checkpoint:
    """Checks a Hugging Face checkpoint, of which only the first `num_layers` layers are used if given.

    Throws LockstepError, naming the weight, where it is not the model that its config.json describes.
    """
    directory = Path(directory)
    full_config = Config.load(directory)
    config = limit_layers(full_config, num_layers)
    stored = read_headers(directory)
    expected = {name: list(parameter.shape) for name, parameter in Qwen3(config).named_parameters()}
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    check_weights(expected, stored, config)
    if config.tie_word_embeddings:
        check_tied_head(stored)
    return Checkpoint(
        directory=directory,
        config=config,
        weights={name: stored[name] for name in expected},
        unused_weights=find_unused_weights(expected, stored, full_config),
    )


def load_model(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Qwen3:
    model = Qwen3(checkpoint.config)
    for group in group_by_layer(checkpoint.weights):
        model.load_state_dict(read_weights(group, checkpoint.weights, dtype), strict=False, assign=True)
    if checkpoint.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(False)


def limit_layers(config: Config, num_layers: int | None) -> Config:
    if num_layers is None:
        return config
    if not 1 <= num_layers <= config.num_hidden_layers:
        raise LockstepError(
            f"number of layers: expected 1 to {config.num_hidden_layers}, as the model has, found {num_layers}"
        )
    return dataclasses.replace(config, num_hidden_layers=num_layers)


def read_headers(directory: Path) -> dict[str, StoredWeight]:
    """All weights that lie in model.safetensors, or in the shards that model.safetensors.index.json lists."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists():
        return dict(_headers_of_file(single))
    if not index.exists():
        raise LockstepError(
            f"{directory}: expected model.safetensors or model.safetensors.index.json, found neither; "
            "other formats are to be converted with transformers' save_pretrained"
        )
    weight_map = _read_weight_map(index)
    stored: dict[str, StoredWeight] = {}
    for file_name in sorted(set(weight_map.values())):
        stored.update(_headers_of_file(directory / file_name))
    missing = [name for name in weight_map if name not in stored]
    if missing:
        raise LockstepError(
            f"{missing[0]}: expected in {weight_map[missing[0]]}, as {index.name} says, found nothing; "
            "download the shards again"
        )
    return stored


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        plain = all(isinstance(file, str) and Path(file).name == file for file in weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LockstepError(f"{index}: expected JSON with a weight_map, found {error!r}; download it again") from error
    if not plain or not weight_map:
        raise LockstepError(
            f"{index}: expected names of files beside it in weight_map, found others; download it again"
        )
    return weight_map


def _headers_of_file(file: Path) -> Iterable[tuple[str, StoredWeight]]:
    try:
        with safetensors.safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                entry = tensors.get_slice(name)
                yield name, StoredWeight(file, entry.get_dtype(), list(entry.get_shape()))
    except (OSError, safetensors.SafetensorError) as error:
        raise LockstepError(f"{file}: expected a safetensors file, found {error}; download it again") from error


def check_weights(expected: dict[str, list[int]], stored: dict[str, StoredWeight], config: Config) -> None:
    faults = [fault for name, shape in expected.items() if (fault := _weight_fault(name, shape, stored, config))]
    if faults:
        more = f" (and {len(faults) - 1} more weights)" if len(faults) > 1 else ""
        raise LockstepError(faults[0] + more)


def _weight_fault(name: str, shape: list[int], stored: dict[str, StoredWeight], config: Config) -> str | None:
    """What is wrong with a weight, or None."""
    if name not in stored:
        return f"{name}: expected {shape}, found nothing of this name; incomplete or renamed export?"
    found = stored[name]
    if found.shape != shape:
        guess = "another model's config.json?"
        if len(shape) == 2 and found.shape == shape[::-1]:
            guess = "transposed export?"
        elif config.head_dim_is_derived and ".self_attn." in name:
            guess = f"config.json has no head_dim, so hidden_size / num_attention_heads = {config.head_dim} was taken"
        return f"{name}: expected {shape}, found {found.shape}; {guess}"
    if found.dtype not in STORED_DTYPES:
        return f"{name}: expected {', '.join(STORED_DTYPES)}, found {found.dtype}; quantized weights are not supported"
    return None


def group_by_layer(names: Iterable[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = LAYER_OF_NAME.match(name)
        groups.setdefault(layer.group() if layer else name, []).append(name)
    return list(groups.values())


def read_weights(names: list[str], stored: dict[str, StoredWeight], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in `dtype`, in memory of their own.

    A mapped weight would be aligned by chance, and PyTorch's f32 product of a matrix with one row rounds differently
    by alignment: the trace would depend on the order of the weights in the file.
    """
    weights = {}
    for file in {stored[name].file for name in names}:
        with safetensors.safe_open(file, framework="pt") as tensors:
            for name in names:
                if stored[name].file == file:
                    weights[name] = tensors.get_tensor(name).to(dtype, copy=True)
    return weights


def check_tied_head(stored: dict[str, StoredWeight]) -> None:
    """Small Qwen3 checkpoints are tied and carry a copy of the head; one that differs leaves open which is meant."""
    if "lm_head.weight" in stored and not _weights_are_equal("lm_head.weight", "model.embed_tokens.weight", stored):
        raise LockstepError(
            "lm_head.weight: expected a copy of model.embed_tokens.weight, as config.json says "
            "tie_word_embeddings, found other values; set tie_word_embeddings to false to use the "
            "head, or remove lm_head.weight to use the embedding"
        )


def _weights_are_equal(a: str, b: str, stored: dict[str, StoredWeight], rows_at_once: int = 4096) -> bool:
    """Equal to the bit, compared in blocks of rows to stay small."""
    if stored[a].shape != stored[b].shape:
        return False
    with (
        safetensors.safe_open(stored[a].file, framework="pt") as file_a,
        safetensors.safe_open(stored[b].file, framework="pt") as file_b,
    ):
        slices = file_a.get_slice(a), file_b.get_slice(b)
        for row in range(0, stored[a].shape[0], rows_at_once):
            block_a, block_b = (one[row : row + rows_at_once].float().view(torch.int32) for one in slices)
            if not torch.equal(block_a, block_b):
                return False
    return True


def find_unused_weights(
    expected: dict[str, list[int]], stored: dict[str, StoredWeight], full_config: Config
) -> list[str]:
    """Names left over, without those left out on purpose: layers above the limit, the copy of a tied head."""
    unused = []
    for name in sorted(stored.keys() - expected.keys()):
        layer = LAYER_OF_NAME.match(name)
        is_above_limit = (
            layer
            and int(layer.group(1)) < full_config.num_hidden_layers
            and name.replace(layer.group(), "model.layers.0.") in expected
        )
        is_tied_head = name == "lm_head.weight" and full_config.tie_word_embeddings
        if not is_above_limit and not is_tied_head:
            unused.append(name)
    return unused
