"""config.json: what is read, and that everything else is refused by name."""

import json

import pytest
from lockstep.config import Config
from lockstep.errors import LockstepError

# As published with Qwen3-0.6B, in the form that transformers 4 writes.
QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
ABSENT = object()


def load(tmp_path, **changes):
    raw = {key: value for key, value in (QWEN3_0_6B | changes).items() if value is not ABSENT}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return Config.load(tmp_path)


def test_reads_a_published_config(tmp_path):
    assert load(tmp_path).trace_config() == {
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "max_position_embeddings": 40960,
    }


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": ABSENT, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}},
        {"rope_theta": ABSENT, "rope_parameters": {"rope_theta": 5000000}},
        {"rope_theta": 5000000, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}},
        {"rope_theta": 5e6, "rope_parameters": {"rope_theta": None, "partial_rotary_factor": 1.0}},
        {"rope_theta": 5e6, "rope_parameters": {"rope_type": "default"}},
        {"rope_theta": 5e6, "rope_scaling": {}},
        {"rope_theta": 5e6, "rope_scaling": {"type": "default"}},
    ],
)
def test_theta_is_found_in_both_forms(tmp_path, rope):
    assert load(tmp_path, **rope).rope_theta == 5e6


@pytest.mark.parametrize("head_dim", [ABSENT, None])
def test_head_dim_is_derived_where_it_is_absent(tmp_path, head_dim):
    config = load(tmp_path, head_dim=head_dim)
    assert config.head_dim == 64
    assert config.head_dim_is_derived


def test_kv_heads_null_means_as_many_as_heads(tmp_path):
    assert load(tmp_path, num_key_value_heads=None).num_key_value_heads == 16


def test_a_window_without_effect_is_accepted(tmp_path):
    layers = ["full_attention"] * 28
    assert load(tmp_path, sliding_window=4096, use_sliding_window=False, layer_types=layers).num_hidden_layers == 28


def test_tying_defaults_to_false(tmp_path):
    assert load(tmp_path, tie_word_embeddings=ABSENT).tie_word_embeddings is False


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llama"}, r'model_type: expected "qwen3" \(dense\), found "llama"'),
        ({"model_type": "qwen3_moe"}, r'model_type.*found "qwen3_moe"'),
        ({"model_type": ABSENT}, "model_type.*found nothing"),
        ({"rope_theta": ABSENT}, "rope_theta: expected a number.*found nothing"),
        ({"rope_theta": None}, "rope_theta.*found nothing"),
        ({"rope_theta": ABSENT, "rope_parameters": {"rope_type": "default"}}, "rope_theta.*found nothing"),
        ({"rope_theta": 0}, "rope_theta.*found 0"),
        ({"rope_theta": -1e6}, "rope_theta.*found -1"),
        ({"rope_theta": float("nan")}, "rope_theta.*found NaN"),
        ({"rope_theta": float("inf")}, "rope_theta.*found Infinity"),
        ({"rope_theta": 10**400}, "rope_theta.*found 1000"),
        ({"rope_theta": "1e6"}, 'rope_theta.*found "1e6"'),
        ({"rope_theta": True}, "rope_theta.*found true"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, r'rope_scaling.type: expected "default", found "yarn"'),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 'rope_scaling.rope_type.*found "linear"'),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, 'rope_parameters.rope_type.*found "yarn"'),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters.full_attention"),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "rope_parameters.partial_.*found 0.5"),
        ({"rope_scaling": "yarn"}, 'rope_scaling: expected an object or null, found "yarn"'),
        (
            {"rope_scaling": {"rope_type": "default", "factor": 4.0}},
            "rope_scaling.factor: expected no such key, found 4.0",
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}},
            "rope_parameters.rope_theta: expected rope_theta = 10000.0, found 1000000.0",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, found 0.5"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config: expected nothing, found .*awq"),
        ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window: expected false, found true"),
        ({"layer_types": ["full_attention"] * 27 + ["sliding_attention"]}, r"layer_types\[27\].*sliding_attention"),
        ({"layer_types": ["full_attention"]}, "layer_types: expected num_hidden_layers = 28 entries, found 1"),
        ({"layer_types": "full_attention"}, "layer_types: expected a list"),
        ({"attention_bias": True}, "attention_bias: expected false, found true"),
        ({"attention_bias": "no"}, 'attention_bias: expected true or false, found "no"'),
        ({"hidden_act": "gelu"}, 'hidden_act: expected "silu", found "gelu"'),
        ({"hidden_size": 0}, "hidden_size: expected an integer from 1 to .*, found 0"),
        ({"hidden_size": -1024}, "hidden_size.*found -1024"),
        ({"hidden_size": 1024.5}, "hidden_size.*found 1024.5"),
        ({"hidden_size": ABSENT}, "hidden_size.*found nothing"),
        ({"vocab_size": 1 << 40}, "vocab_size.*found 1099511627776"),
        ({"vocab_size": True}, "vocab_size.*found true"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers.*found 1000000000"),
        ({"num_attention_heads": "16"}, 'num_attention_heads.*found "16"'),
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of num_attention_heads = 16, found 3"),
        ({"num_key_value_heads": 32}, "num_key_value_heads.*found 32"),
        ({"num_key_value_heads": ABSENT}, "num_key_value_heads.*found nothing"),
        ({"head_dim": 127}, "head_dim: expected an even number.*found 127"),
        ({"head_dim": 0}, "head_dim.*found 0"),
        ({"head_dim": ABSENT, "hidden_size": 1000}, "head_dim.*hidden_size = 1000"),
        ({"rms_norm_eps": 0}, "rms_norm_eps.*found 0"),
        ({"rms_norm_eps": ABSENT}, "rms_norm_eps.*found nothing"),
        ({"max_position_embeddings": 0}, "max_position_embeddings.*found 0"),
    ],
)
def test_refuses_by_name(tmp_path, changes, named):
    with pytest.raises(LockstepError, match=f"/config.json: {named}"):
        load(tmp_path, **changes)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{", "expected JSON"),
        (b"", "expected JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b"[" * 100000, "expected JSON"),
        (b'{"model_type": "qwen3\xff"}', "expected UTF-8, found byte 0xff at offset 21"),
    ],
)
def test_refuses_a_damaged_file(tmp_path, content, named):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(LockstepError, match=named):
        Config.load(tmp_path)


def test_names_a_missing_file(tmp_path):
    with pytest.raises(LockstepError, match="config.json: expected a model's config.json, found No such file"):
        Config.load(tmp_path / "nowhere")
