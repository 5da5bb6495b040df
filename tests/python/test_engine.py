"""The C++ engine against PyTorch, and against itself run in other ways; through traces, as a user has it."""

import json

import pytest
from checkpoints import make_checkpoint
from programs import TINY
from runs import assert_close, compare, prompt, prompts, run_engine, run_reference

LENGTHS = [1, 2, 17, 300]

# Shapes that set traps; each is checked for every length.
SHAPES = {
    "tied, 2:1, head_dim is not hidden/heads": {},
    "untied, 1:1, one layer": {"tie_word_embeddings": False, "num_hidden_layers": 1, "num_key_value_heads": 4},
    "8:1, wide heads": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 32},
    "untied, sharded": {"tie_word_embeddings": False, "max_shard_size": "40KB"},
}


def assert_within_the_floor(model, tmp_path, result: dict) -> None:
    """In 16 bits: every token's cosine above 0.9999, or the point no further off than two roundings are apart.

    How far rounding takes the reference from its own f32 run is measured; two implementations that each round as much
    are about sqrt(2) of that apart.
    """
    run_reference(model, tmp_path / "f32.trace", "--from", tmp_path / "py.trace")
    _, floor = compare(tmp_path / "f32.trace", tmp_path / "py.trace", tmp_path / "floor.json")
    rounding = {point["name"]: point["worst"]["token_relative_l2"] for point in floor["points"]}
    for point in result["points"]:
        worst = point["worst"]
        assert worst["min_token_cosine"] > 0.9999 or worst["token_relative_l2"] < 1.5 * rounding[point["name"]], point[
            "name"
        ]
        assert worst["min_token_cosine"] > 0.998, point["name"]


def check(model, tmp_path, dtype: str, *options: object, env=None) -> dict:
    """One reference, one engine run on it, compared."""
    run_reference(model, tmp_path / "py.trace", "--dtype", dtype, *options)
    run_engine(model, tmp_path / "cpp.trace", "--dtype", dtype, "--from", tmp_path / "py.trace", env=env)
    code, result = compare(tmp_path / "py.trace", tmp_path / "cpp.trace", tmp_path / "result.json")
    assert code == 0, [(p["name"], p["reasons"]) for p in result["points"] if p["reasons"]] + result["failures"]
    return result


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_engine_equals_reference_on_random_checkpoints(tmp_path, shape, dtype):
    model = make_checkpoint(tmp_path / "model", **SHAPES[shape])
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    result = check(model, tmp_path, dtype, *prompts(LENGTHS, vocab), "--decode", 2)
    if dtype == "f32":
        assert_close(result)
    else:
        assert_within_the_floor(model, tmp_path, result)
    assert len(result["points"]) == 3 + 18 * json.loads((model / "config.json").read_text())["num_hidden_layers"]


@pytest.mark.parametrize("isa", ["default", "baseline", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_engine_equals_reference_on_the_bundled_model(tmp_path, dtype, isa):
    env = {} if isa == "default" else {"LOCKSTEP_MAX_ISA": isa}
    result = check(TINY, tmp_path, dtype, *prompts(LENGTHS, 2048), "--decode", 4, env=env)
    if dtype == "f32":
        assert_close(result)
        assert result["next_tokens"]["agree"] == result["next_tokens"]["compared"] == 20
    else:
        assert_within_the_floor(TINY, tmp_path, result)


@pytest.mark.parametrize("length", LENGTHS)
def test_one_prompt_at_a_time_with_scores_and_probabilities(tmp_path, length):
    points = ("--points", "*,attn_scores,attn_probs")
    run_reference(TINY, tmp_path / "py.trace", "--tokens", prompt(length, 2048), "--decode", 2, *points)
    run_engine(TINY, tmp_path / "cpp.trace", "--from", tmp_path / "py.trace", *points)
    code, result = compare(tmp_path / "py.trace", tmp_path / "cpp.trace", tmp_path / "result.json")
    assert code == 0
    assert_close(result)
    assert {"layer_0_attn_scores", "layer_2_attn_probs"} <= {point["name"] for point in result["points"]}


def test_transformers_is_a_reference_too(tmp_path):
    assert_close(
        check(TINY, tmp_path, "f32", "--tokens", prompt(17, 2048), "--decode", 2, "--implementation", "transformers")
    )


@pytest.fixture(scope="module")
def greedy(tmp_path_factory):
    """Two prompts and their decode steps by the engine: the trace that the other ways of running are held against."""
    out = tmp_path_factory.mktemp("greedy")
    return run_engine(TINY, out / "decode.trace", *prompts([17, 40], 2048), "--decode", 8)


def tokens_of(trace) -> list[str]:
    from lockstep.trace import load

    return [",".join(map(str, ids)) for ids in load(trace).sequences()]


@pytest.mark.parametrize("chunk", [1, 5, 16, 1000])
def test_chunks_equal_decode_steps(greedy, tmp_path, chunk):
    tokens = [option for ids in tokens_of(greedy) for option in ("--tokens", ids)]
    run_engine(TINY, tmp_path / "chunks.trace", *tokens, "--chunk", chunk)
    code, result = compare(greedy, tmp_path / "chunks.trace", tmp_path / "result.json")
    assert code == 0
    assert_close(result)
    assert all(point["rows"] == 17 + 40 + 16 for point in result["points"])


def test_a_batch_equals_its_sequences_alone(greedy, tmp_path):
    alone = []
    for i, ids in enumerate(tokens_of(greedy)):
        alone.append(run_engine(TINY, tmp_path / f"{i}.trace", "--tokens", ids))
    code, result = compare(greedy, alone[0], tmp_path / "result.json", "--more-candidate", alone[1])
    assert code == 0
    assert_close(result)
    assert all(point["rows"] == 17 + 40 + 16 for point in result["points"])


def test_the_same_run_gives_the_same_bits(greedy, tmp_path):
    again = run_engine(TINY, tmp_path / "again.trace", *prompts([17, 40], 2048), "--decode", 8)
    code, result = compare(greedy, again, tmp_path / "result.json")
    assert code == 0 and all(point["bit_identical"] for point in result["points"])


@pytest.mark.parametrize("kind", ["zeros", "tiny", "huge", "file"])
def test_embeddings_that_bypass_the_table(tmp_path, kind):
    import numpy as np

    source = kind
    if kind == "file":
        source = tmp_path / "x.npy"
        np.save(source, np.random.default_rng(0).normal(size=(9, 192)).astype(np.float32))
    given = ["--input-embeddings", source, *([] if kind == "file" else ["--tokens", prompt(9, 2048)])]
    run_reference(TINY, tmp_path / "py.trace", *given, "--decode", 2)
    run_engine(TINY, tmp_path / "cpp.trace", "--from", tmp_path / "py.trace", "--input-embeddings", source)
    code, result = compare(tmp_path / "py.trace", tmp_path / "cpp.trace", tmp_path / "result.json")
    assert code == 0, result["failures"]
    assert_close(result)


def test_a_weight_corrupted_after_loading_is_named(tmp_path, monkeypatch):
    from lockstep import model as pure

    load_model = pure.load_model

    def corrupted(*arguments):
        model = load_model(*arguments)
        weight = dict(model.named_parameters())["model.layers.1.mlp.up_proj.weight"]
        weight.data[3, 5] = -weight.data[3, 5] - 1e-3
        return model

    monkeypatch.setattr(pure, "load_model", corrupted)
    run_reference(TINY, tmp_path / "py.trace", "--tokens", "1,2,3")
    run_engine(TINY, tmp_path / "cpp.trace", "--from", tmp_path / "py.trace")
    code, result = compare(tmp_path / "py.trace", tmp_path / "cpp.trace", tmp_path / "result.json")
    assert code == 1
    assert [weight["name"] for weight in result["weights"]] == ["model.layers.1.mlp.up_proj.weight"]
