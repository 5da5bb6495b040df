"""config.json of a dense Qwen3 checkpoint, read strictly.

Whatever would silently change the numbers (another RoPE, a window, a bias) is refused by name instead of ignored, and
nothing that matters has a default: a config without rope_theta describes no model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.errors import LockstepError

# Far above any real model; a larger number is a damaged file, and would only fail later, in an allocation.
MAX_DIMENSION = 1 << 24
MAX_LAYERS = 4096


@dataclass(frozen=True)
class Config:
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    # Whether config.json named head_dim, for the error message when a weight does not fit.
    head_dim_is_derived: bool = False

    @classmethod
    def load(cls, model: str | Path) -> Config:
        """Reads `model`/config.json. Throws LockstepError for anything that this reference does not compute."""
        path = Path(model) / "config.json"
        raw = _read_json(path)
        try:
            return parse(raw)
        except LockstepError as error:
            raise LockstepError(f"{path}: {error}") from None

    def trace_config(self) -> dict[str, Any]:
        """The flat `model.config` of a trace."""
        return {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
        }


def parse(raw: dict[str, Any]) -> Config:
    """REQUIRES: `raw` is the object of config.json."""
    _refuse_other_models(raw)
    _refuse_windows(raw)

    hidden_size = _integer(raw, "hidden_size")
    heads = _integer(raw, "num_attention_heads")
    # null means "as many as query heads" to transformers.
    kv_heads = heads if _is_null(raw, "num_key_value_heads") else _integer(raw, "num_key_value_heads")
    if heads % kv_heads != 0:
        raise _error("num_key_value_heads", f"a divisor of num_attention_heads = {heads}", kv_heads)

    head_dim_is_derived = raw.get("head_dim") is None
    if head_dim_is_derived and hidden_size % heads != 0:
        raise _error(
            "head_dim",
            f"the key, or hidden_size a multiple of num_attention_heads = {heads}",
            f"no head_dim and hidden_size = {hidden_size}",
        )
    head_dim = hidden_size // heads if head_dim_is_derived else _integer(raw, "head_dim")
    if head_dim % 2 != 0:
        raise _error("head_dim", "an even number (RoPE turns pairs)", head_dim)

    return Config(
        hidden_size=hidden_size,
        num_hidden_layers=_integer(raw, "num_hidden_layers", MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=_integer(raw, "intermediate_size"),
        vocab_size=_integer(raw, "vocab_size"),
        rms_norm_eps=_positive(raw, "rms_norm_eps", upper=1.0),
        rope_theta=_rope_theta(raw),
        tie_word_embeddings=_boolean(raw, "tie_word_embeddings"),
        max_position_embeddings=_integer(raw, "max_position_embeddings", 1 << 30),
        head_dim_is_derived=head_dim_is_derived,
    )


def _refuse_other_models(raw: dict[str, Any]) -> None:
    model_type = raw.get("model_type")
    if model_type != "qwen3":
        raise _error("model_type", '"qwen3" (dense)', _shown(raw, "model_type"), "other models are not supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise _error("hidden_act", '"silu"', _shown(raw, "hidden_act"), "other activations are not supported")
    if _boolean(raw, "attention_bias"):
        raise _error("attention_bias", "false", "true", "projections with a bias are not supported")
    for key in ("quantization_config", "compression_config"):
        if raw.get(key) is not None:
            raise _error(
                key,
                "nothing",
                _shown(raw, key),
                "quantized checkpoints are not supported; take the one in bf16, f16 or f32 that it was made from",
            )


def _refuse_windows(raw: dict[str, Any]) -> None:
    # `sliding_window` alone is a number without effect in the released checkpoints; the switch is what counts.
    if _boolean(raw, "use_sliding_window"):
        raise _error("use_sliding_window", "false", "true", "sliding-window attention is not supported")
    layer_types = raw.get("layer_types")
    if layer_types is None:
        return
    if not isinstance(layer_types, list):
        raise _error("layer_types", "a list", json.dumps(layer_types))
    for layer, layer_type in enumerate(layer_types):
        if layer_type != "full_attention":
            raise _error(
                f"layer_types[{layer}]", '"full_attention"', json.dumps(layer_type), "other attention is not supported"
            )
    if len(layer_types) != raw.get("num_hidden_layers"):
        raise _error("layer_types", f"num_hidden_layers = {raw.get('num_hidden_layers')} entries", len(layer_types))


def _rope_theta(raw: dict[str, Any]) -> float:
    """Theta of plain RoPE; older configs hold it at top level, transformers >= 5 in `rope_parameters`.

    Where several places hold one, they must agree: engines and versions of transformers read different ones.
    """
    thetas = {}
    if raw.get("rope_theta") is not None:
        thetas["rope_theta"] = _positive(raw, "rope_theta", upper=1e30)
    for key in ("rope_parameters", "rope_scaling"):
        rope = raw.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise _error(key, "an object or null", _shown(raw, key))
        _require_plain_rope(rope, f"{key}.")
        if rope.get("rope_theta") is not None:
            thetas[f"{key}.rope_theta"] = _positive(rope, "rope_theta", upper=1e30, prefix=f"{key}.")
    if raw.get("partial_rotary_factor") not in (None, 1):
        raise _error(
            "partial_rotary_factor",
            "1",
            _shown(raw, "partial_rotary_factor"),
            "RoPE over a part of head_dim is not supported",
        )
    if not thetas:
        raise _error(
            "rope_theta",
            "a number, at top level or in rope_parameters",
            "nothing",
            "take it from the original checkpoint (1000000 in most Qwen3, 5000000 in the 2507 releases)",
        )
    (first, theta), *others = thetas.items()
    for name, other in others:
        if other != theta:
            raise _error(name, f"{first} = {theta}", other, "remove the wrong one")
    return theta


def _require_plain_rope(rope: dict[str, Any], prefix: str) -> None:
    """Refuses every key that could change RoPE, known or not."""
    for key, value in rope.items():
        is_plain = (
            value is None
            or (key in ("rope_type", "type") and value == "default")
            or key == "rope_theta"
            or (key == "partial_rotary_factor" and value == 1)
        )
        if not is_plain:
            expected = '"default"' if key in ("rope_type", "type") else "no such key"
            raise _error(
                prefix + key,
                expected,
                _shown(rope, key),
                "scaled RoPE (yarn, linear, dynamic, ...) is not supported; with nothing but rope_type "
                '"default" and rope_theta the model runs within its original length',
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise LockstepError(
            f"{path}: expected a model's config.json, found {error.strerror or error}; "
            "pass the directory of a Hugging Face checkpoint"
        ) from error
    except UnicodeDecodeError as error:
        raise LockstepError(
            f"{path}: expected UTF-8, found byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}; download the file again"
        ) from error
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LockstepError(f"{path}: expected JSON, found {error}; download the file again") from error
    if not isinstance(raw, dict):
        raise LockstepError(f"{path}: expected a JSON object, found {type(raw).__name__}; download the file again")
    return raw


def _integer(raw: dict[str, Any], key: str, upper: int = MAX_DIMENSION) -> int:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= upper:
        raise _error(key, f"an integer from 1 to {upper}", _shown(raw, key))
    return value


def _positive(raw: dict[str, Any], key: str, upper: float, prefix: str = "") -> float:
    value = raw.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= upper:  # also refuses NaN and infinity
        raise _error(prefix + key, f"a number above 0 and at most {upper:g}", _shown(raw, key))
    return float(value)


def _boolean(raw: dict[str, Any], key: str) -> bool:
    """Absent and null are false, as in transformers."""
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise _error(key, "true or false", _shown(raw, key))
    return bool(value)


def _is_null(raw: dict[str, Any], key: str) -> bool:
    return key in raw and raw[key] is None


def _shown(raw: dict[str, Any], key: str) -> str:
    if key not in raw:
        return "nothing"
    text = json.dumps(raw[key])
    return text if len(text) <= 80 else text[:77] + "..."


def _error(key: str, expected: str, found: object, way_out: str = "correct the file") -> LockstepError:
    return LockstepError(f"{key}: expected {expected}, found {found}; {way_out}")
