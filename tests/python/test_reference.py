"""The reference: equal to transformers to the bit, and clear about whatever it cannot run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import SHAPE, edit_config, make_checkpoint
from lockstep import hooks, reference, tokenize
from lockstep.calls import DEFAULT_INPUT
from lockstep.errors import LockstepError
from lockstep.fingerprint import fingerprint
from lockstep.model import load_model, open_checkpoint
from lockstep.points import names_for, point_name
from lockstep.trace import load
from safetensors.torch import load_file, save_file

REPOSITORY = Path(__file__).parents[2]
TINY_QWEN3 = REPOSITORY / "models" / "tiny-qwen3"
EVERYTHING = "*,attn_scores,attn_probs"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}

SHAPES = {
    "tied 2:1": {},
    "untied 1:1": {
        "tie_word_embeddings": False,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "hidden_size": 100,
        "intermediate_size": 130,
        "head_dim": 64,
        "rope_theta": 5e6,
    },
    "one layer 8:1": {"num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 32},
    "head_dim = hidden / heads": {"hidden_size": 64, "head_dim": 16, "rope_theta": 1e4},
    "sharded": {"max_shard_size": 30000, "tie_word_embeddings": False},
    "stored as bf16": {"dtype": torch.bfloat16, "num_hidden_layers": 1},
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """One for all tests that do not change it."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), tokenizer=True)


@pytest.fixture
def own_checkpoint(tmp_path):
    """One that a test may damage."""
    return make_checkpoint(tmp_path / "model", tokenizer=True, num_hidden_layers=2)


def run(model, out, *options):
    """Runs the command in this process, and returns the trace."""
    assert reference.main([str(model), "--out", str(out), *map(str, options)]) == 0
    return load(out)


def refusal(capsys, model, out, *options):
    """Runs the command, which has to refuse in one line and leave no trace. Returns the line."""
    capsys.readouterr()
    assert reference.main([str(model), "--out", str(out), *map(str, options)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert not Path(out).exists()
    return lines[0]


def bits(tensor):
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def assert_same_point(name, ours, theirs):
    """Equal to the bit; masked scores are only equally masked."""
    assert ours.dtype == theirs.dtype, name
    assert ours.shape == theirs.shape, name
    if name.endswith("attn_scores"):
        lowest = torch.finfo(ours.dtype).min
        masked = ours <= lowest / 2
        assert torch.equal(masked, theirs <= lowest / 2), name
        ours, theirs = ours.masked_fill(masked, 0), theirs.masked_fill(masked, 0)
    different = int((bits(ours) != bits(theirs)).sum())
    assert different == 0, f"{name}: {different} of {ours.numel()} elements differ"


def assert_same_traces(a, b):
    assert len(a.steps) == len(b.steps)
    for ours, theirs in zip(a.steps, b.steps, strict=True):
        assert ours.phase == theirs.phase
        for array in ("positions", "sequences", "input_ids"):
            assert np.array_equal(getattr(ours, array), getattr(theirs, array))
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, tensor in ours.tensors.items():
            assert tensor.dtype == theirs.tensors[name].dtype
            assert np.array_equal(tensor.rows, theirs.tensors[name].rows)
            assert tensor.numpy().tobytes() == theirs.tensors[name].numpy().tobytes(), name


def captured(model, inputs, cache):
    """All points of one call, {full name: tensor}."""
    points = {}

    def tap(name, layer, tensor):
        points[point_name(name, layer)] = tensor.clone()

    model(inputs, cache, tap)
    return points


# --- Equal to transformers -----------------------------------------------------------------------------------------


def check_bit_equality(directory, dtype, prompt_lengths, decode_steps=4):
    checked = open_checkpoint(directory)
    ours, theirs = load_model(checked, dtype), hooks.TransformersModel(checked, dtype)
    everything = set(names_for(checked.config.num_hidden_layers, on_request=True))
    for length in prompt_lengths:
        torch.manual_seed(length)
        tokens = torch.randint(0, checked.config.vocab_size, (1, length))
        our_cache, their_cache = ours.new_cache(), theirs.new_cache()
        for _ in range(1 + decode_steps):
            a, b = captured(ours, tokens, our_cache), captured(theirs, tokens, their_cache)
            assert a.keys() == b.keys() == everything
            for name in a:
                assert_same_point(name, a[name], b[name])
            tokens = a["logits"][-1:].argmax(-1)[None]
        assert our_cache.length == their_cache.length == length + decode_steps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_transformers_to_the_bit(tmp_path, shape, dtype):
    check_bit_equality(make_checkpoint(tmp_path, **SHAPES[shape]), DTYPES[dtype], (1, 2, 17, 300))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.skipif(not (TINY_QWEN3 / "model.safetensors").exists(), reason="models/tiny-qwen3 is not there")
def test_equals_transformers_on_the_bundled_model(dtype):
    check_bit_equality(TINY_QWEN3, DTYPES[dtype], (1, 2, 17, 300))


def test_random_attention_is_not_uniform(checkpoint):
    """Else the tests above could not see a wrong RoPE or mask."""
    model = load_model(open_checkpoint(checkpoint))
    points = captured(model, torch.arange(64)[None], model.new_cache())
    last_row = points["layer_0_attn_probs"][-1]  # [H, 64]
    assert last_row.amax(-1).min() > 3 / 64


@pytest.mark.parametrize(
    "options",
    [
        ["--decode", 4],
        ["--chunk", 5, "--decode", 2],
        ["--num-layers", 1],
        ["--input-embeddings", "tiny", "--decode", 2],
        ["--dtype", "bf16"],
    ],
)
def test_both_implementations_write_the_same_trace(checkpoint, tmp_path, options):
    options = ["--points", EVERYTHING, "--input", "Hello, world", "--tokens", "7,8", *options]
    ours = run(checkpoint, tmp_path / "a", *options)
    theirs = run(checkpoint, tmp_path / "b", "--implementation", "transformers", *options)
    assert_same_traces(ours, theirs)
    assert ours.meta["weights"] == theirs.meta["weights"]
    assert ours.meta["model"] == theirs.meta["model"]
    assert [trace.meta["producer"]["name"] for trace in (ours, theirs)] == ["lockstep-reference", "transformers"]


# --- Capturing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["pure", "transformers"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_capturing_changes_nothing(checkpoint, implementation, dtype):
    model = make_model(implementation, checkpoint, DTYPES[dtype])
    tokens = torch.arange(20)[None]
    if implementation == "pure":
        plain = model(tokens, model.new_cache())
    else:
        with torch.inference_mode():
            plain = model.model(tokens).logits
    assert torch.equal(plain[0], captured(model, tokens, model.new_cache())["logits"])


def test_identities(checkpoint):
    model = load_model(open_checkpoint(checkpoint), torch.bfloat16)
    tokens = torch.randint(0, 257, (1, 9))
    points = captured(model, tokens, model.new_cache())
    assert torch.equal(points["input_embeddings"], model.model.embed_tokens.weight[tokens[0]])
    assert torch.equal(points["layer_0_input_hidden_states"], points["input_embeddings"])
    for layer in range(3):
        for x in "qk":
            normed, rope = points[f"layer_{layer}_attn_{x}_normed"], points[f"layer_{layer}_attn_{x}_rope"]
            assert torch.equal(normed[0], rope[0])  # position 0 is not turned
            assert not torch.equal(normed[1], rope[1])
        if layer > 0:
            assert torch.equal(points[f"layer_{layer}_input_hidden_states"], points[f"layer_{layer - 1}_layer_output"])


def make_model(implementation, directory, dtype=torch.float32):
    checked = open_checkpoint(directory)
    return load_model(checked, dtype) if implementation == "pure" else hooks.TransformersModel(checked, dtype)


@pytest.mark.parametrize("point", names_for(1, on_request=True))
def test_replacements_count_and_are_the_same_in_both(tmp_path_factory, checkpoint, point):
    """A replaced point changes all that comes after it, equally in both implementations."""
    results = []
    for implementation in ("pure", "transformers"):
        model = make_model(implementation, checkpoint)
        points = {}

        def tap(name, layer, tensor, points=points):
            full_name = point_name(name, layer)
            points[full_name] = tensor.clone()
            return tensor * 0.5 + 0.25 if full_name == point else None

        cache = model.new_cache()
        logits = model(torch.arange(8)[None], cache, tap)
        plain = captured(model, torch.arange(8)[None], model.new_cache())
        assert torch.equal(points[point], plain[point])
        assert not torch.equal(logits[0], plain["logits"])
        # A second call sees what the first left in the cache.
        results.append((points, logits, model(torch.tensor([[9]]), cache, lambda *_: None)))
    (ours, *our_logits), (theirs, *their_logits) = results
    for name in ours:
        assert_same_point(name, ours[name], theirs[name])
    assert all(torch.equal(a, b) for a, b in zip(our_logits, their_logits, strict=True))


def test_hooks_restore_everything(checkpoint):
    from transformers.models.qwen3 import modeling_qwen3

    model = make_model("transformers", checkpoint).model
    before = dict(vars(modeling_qwen3))

    def fail(name, layer, tensor):
        if name == "attn_probs":
            raise KeyError(name)

    with pytest.raises(KeyError), hooks.capture(model, fail):
        model(torch.tensor([[1, 2]]))
    assert dict(vars(modeling_qwen3)) == before
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_hooks_accept_layers_that_return_tuples(checkpoint, monkeypatch):
    """As in transformers up to 4.53."""
    model = make_model("transformers", checkpoint)
    expected = captured(model, torch.tensor([[1, 2, 3]]), model.new_cache())
    layer = model.model.model.layers[-1]
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *args, **kwargs: (forward(*args, **kwargs), None))
    norm = model.model.model.norm
    norm_forward = norm.forward
    monkeypatch.setattr(norm, "forward", lambda x: norm_forward(x[0] if isinstance(x, tuple) else x))
    points = captured(model, torch.tensor([[1, 2, 3]]), model.new_cache())
    for name in expected:
        assert_same_point(name, points[name], expected[name])


def test_hooks_flatten_a_batch(checkpoint):
    model = make_model("transformers", checkpoint)
    tokens = torch.randint(0, 257, (2, 5))
    points = {}
    with torch.inference_mode(), hooks.capture(model.model, lambda n, x, t: points.update({(n, x): t.clone()})):
        model.model(tokens)
    one = captured(model, tokens[1:], model.new_cache())
    for (name, layer), tensor in points.items():
        assert tensor.shape[0] == 10
        alone = one[point_name(name, layer)]
        visible = alone > torch.finfo(torch.float32).min / 2
        assert torch.allclose(tensor[5:][visible], alone[visible], rtol=1e-4, atol=1e-4), name


def test_hooks_refuse_fused_attention(checkpoint):
    from transformers import Qwen3ForCausalLM

    model = Qwen3ForCausalLM.from_pretrained(checkpoint, attn_implementation="sdpa")
    with pytest.raises(LockstepError, match='expected "eager", found "sdpa"'), hooks.capture(model, lambda *_: None):
        pass


# --- The command ---------------------------------------------------------------------------------------------------


def test_default_run(checkpoint, tmp_path, capsys):
    trace = run(checkpoint, tmp_path / "out")
    (step,) = trace.steps
    assert bytes_of(checkpoint, step.input_ids) == DEFAULT_INPUT
    assert step.phase == "prefill"
    assert set(step.tensors) == {*names_for(3), "next_token"} == set(trace.meta["points"])
    assert step.tensors["logits"].shape == (len(step.positions), 257)
    assert step.positions.tolist() == list(range(len(DEFAULT_INPUT)))
    assert step.sequences.tolist() == [0] * len(step.positions)
    assert trace.meta["model"]["config"] == SHAPE
    assert trace.meta["arithmetic"] == {
        "storage": "F32",
        "operands": "F32",
        "accumulate": "F32",
        "cache": "F32",
        "overrides": {},
    }
    assert trace.meta["closed"] is True
    captured_output = capsys.readouterr()
    assert captured_output.out == ""
    assert f"{tmp_path / 'out'}: 1 steps, 54 tokens" in captured_output.err.splitlines()[-1]


def bytes_of(model, ids):
    return tokenize.Tokenizer(model).decode([int(i) for i in ids])


def test_decode_is_greedy_and_stepwise(checkpoint, tmp_path):
    trace = run(checkpoint, tmp_path / "out", "--tokens", "5,6,7", "--decode", 4)
    assert [step.phase for step in trace.steps] == ["prefill"] + ["decode"] * 4
    assert [step.positions.tolist() for step in trace.steps] == [[0, 1, 2], [3], [4], [5], [6]]
    for step, following in zip(trace.steps, [*trace.steps[1:], None], strict=True):
        choice = step.tensors["next_token"]
        assert (choice.dtype, choice.shape) == ("I32", (1,))
        assert choice.rows.tolist() == [len(step.positions) - 1]
        assert choice.numpy()[0] == step.tensors["logits"].numpy()[-1].argmax()
        if following:
            assert following.input_ids.tolist() == choice.numpy().tolist()


def test_a_batch_keeps_the_order_of_the_command_line(checkpoint, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes("één\r\nzwei\u2028drei\n".encode())  # only \n and \r\n end a line
    trace = run(
        checkpoint,
        tmp_path / "out",
        "--tokens",
        "1,2",
        "--input",
        "x",
        "--input-file",
        prompts,
        "--tokens",
        "3",
        "--decode",
        1,
    )
    assert [set(step.sequences.tolist()) for step in trace.steps] == [{i} for i in range(5) for _ in range(2)]
    prefills = [step.input_ids.tolist() for step in trace.steps if step.phase == "prefill"]
    assert prefills[0] == [1, 2]
    assert [bytes_of(checkpoint, ids) for ids in prefills[1:4]] == ["x", "één", "zwei\u2028drei"]
    assert prefills[4] == [3]


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_chunks_equal_one_shot(checkpoint, tmp_path, chunk):
    options = ["--tokens", ",".join(map(str, range(10, 29))), "--decode", 3]
    whole = run(checkpoint, tmp_path / "a", *options)
    chunked = run(checkpoint, tmp_path / "b", *options, "--chunk", chunk)
    prefill = [step for step in chunked.steps if step.phase == "prefill"]
    assert [len(step.positions) for step in prefill] == [min(chunk, 19 - i) for i in range(0, 19, chunk)]
    assert whole.sequences() == chunked.sequences()
    for name in names_for(3):
        a, b = whole.rows(name), chunked.rows(name)
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_allclose(b[key], a[key], rtol=1e-3, atol=2e-4, err_msg=f"{name} {key}")


@pytest.mark.parametrize("implementation", ["pure", "transformers"])
def test_from_reproduces_a_trace(checkpoint, tmp_path, implementation):
    first = run(
        checkpoint,
        tmp_path / "a",
        "--tokens",
        "9,8,7,6,5",
        "--tokens",
        "1,2",
        "--chunk",
        2,
        "--decode",
        3,
        "--points",
        EVERYTHING,
    )
    again = run(
        checkpoint, tmp_path / "b", "--from", tmp_path / "a", "--implementation", implementation, "--points", EVERYTHING
    )
    assert_same_traces(first, again)


def write_steps(path, *steps):
    """A trace with nothing but tokens: steps of (phase, input_ids, positions, sequences)."""
    from lockstep.trace import TraceWriter

    with TraceWriter(path, producer="test", config={}) as writer:
        for phase, ids, positions, sequences in steps:
            writer.begin_step(ids, positions, sequences, phase).end()


@pytest.mark.parametrize("implementation", ["pure", "transformers"])
def test_from_forces_the_tokens_of_a_mixed_batch(checkpoint, tmp_path, implementation):
    """Two sequences in one step, padding, rows out of order, then decode, then a recomputation from position 1."""
    write_steps(
        tmp_path / "a",
        ("prefill", [12, 20, 11, 0, 21, 10], [2, 0, 1, 0, 1, 0], [0, 3, 0, -1, 3, 0]),
        ("decode", [13, 22], [3, 2], [0, 3]),
        ("decode", [15, 16], [1, 2], [0, 0]),
    )
    forced = run(checkpoint, tmp_path / "b", "--from", tmp_path / "a", "--implementation", implementation)
    assert [(s.phase, s.input_ids.tolist(), s.positions.tolist(), s.sequences.tolist()) for s in forced.steps] == [
        ("prefill", [10, 11, 12], [0, 1, 2], [0, 0, 0]),
        ("prefill", [20, 21], [0, 1], [3, 3]),
        ("decode", [13], [3], [0]),
        ("decode", [22], [2], [3]),
        ("decode", [15, 16], [1, 2], [0, 0]),
    ]
    fresh = run(checkpoint, tmp_path / "c", "--tokens", "10,15,16")
    np.testing.assert_allclose(
        forced.steps[-1].tensors["logits"].numpy()[-1],
        fresh.steps[0].tensors["logits"].numpy()[-1],
        rtol=1e-3,
        atol=2e-4,
    )


def test_from_uses_recorded_embeddings_where_there_are_no_tokens(checkpoint, tmp_path):
    np.save(tmp_path / "e.npy", np.random.default_rng(0).standard_normal((2, 5, 48)))
    first = run(checkpoint, tmp_path / "a", "--input-embeddings", tmp_path / "e.npy", "--decode", 2)
    assert first.steps[0].input_ids.tolist() == [-1] * 5
    again = run(checkpoint, tmp_path / "b", "--from", tmp_path / "a")
    assert_same_traces(first, again)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("kind", "scale"), [("tiny", 2.0**-20), ("huge", 2.0**13), ("zeros", 0.0)])
def test_generated_embeddings(checkpoint, tmp_path, kind, scale, dtype):
    trace = run(
        checkpoint,
        tmp_path / "out",
        "--tokens",
        "1,2,3,4,5",
        "--chunk",
        3,
        "--input-embeddings",
        kind,
        "--dtype",
        dtype,
        "--decode",
        1,
    )
    expected = torch.tensor([[scale * unit(t * 48 + c) for c in range(48)] for t in range(5)]).to(DTYPES[dtype])
    found = torch.cat([step.tensors["input_embeddings"].torch() for step in trace.steps[:2]])
    assert torch.equal(found, expected)
    assert trace.steps[0].input_ids.tolist() == [-1] * 3  # no token was read
    weight = load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"].to(DTYPES[dtype])
    decoded = trace.steps[2]
    assert torch.equal(decoded.tensors["input_embeddings"].torch(), weight[decoded.input_ids.tolist()])


def unit(k):
    """The formula in plain integers."""
    mask = (1 << 64) - 1
    z = (k + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return ((z ^ z >> 31) >> 40) * 2.0**-23 - 1


@pytest.mark.parametrize("stored", ["f2", "f4", "f8", ">f4"])
def test_embeddings_from_a_file(checkpoint, tmp_path, stored):
    array = np.random.default_rng(0).standard_normal((4, 48)).astype(stored)
    np.save(tmp_path / "e.npy", array)
    trace = run(checkpoint, tmp_path / "out", "--input-embeddings", tmp_path / "e.npy", "--tokens", "1,2,3,4")
    assert np.array_equal(trace.steps[0].tensors["input_embeddings"].numpy(), array.astype(np.float32))
    assert trace.steps[0].input_ids.tolist() == [-1] * 4


def test_selections(checkpoint, tmp_path, monkeypatch):
    options = ["--tokens", "1,2,3,4,5", "--decode", 2]
    selected = ["--points", "attn_q_*,logits", "--layers", "0,2", "--steps", "0,2", "--rows", "last:2"]
    trace = run(checkpoint, tmp_path / "a", *options, *selected)
    names = [f"layer_{i}_attn_q_{x}" for i in (0, 2) for x in ("proj_raw", "normed", "rope")] + ["logits"]
    assert [set(step.tensors) for step in trace.steps] == [set(names), set(), set(names)]
    assert trace.meta["points"] == names
    assert trace.steps[0].tensors["logits"].rows.tolist() == [3, 4]
    monkeypatch.setenv("LOCKSTEP_POINTS", "logits")
    assert set(run(checkpoint, tmp_path / "b", *options).names()) == {"logits"}
    assert set(run(checkpoint, tmp_path / "c", *options, "--points", "final_*").names()) == {"final_norm_output"}


def test_runs_are_deterministic(checkpoint, tmp_path):
    traces = [run(checkpoint, tmp_path / name, "--threads", 2, "--decode", 3) for name in "ab"]
    assert_same_traces(*traces)


def test_number_of_layers(checkpoint, tmp_path):
    trace = run(checkpoint, tmp_path / "out", "--tokens", "1,2", "--num-layers", 2)
    assert trace.meta["model"]["config"]["num_hidden_layers"] == 2
    assert set(trace.names()) == {*names_for(2), "next_token"}
    assert not any(name.startswith("model.layers.2.") for name in trace.meta["weights"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("implementation", ["pure", "transformers"])
def test_fingerprints_are_of_the_weights_in_use(tmp_path, tied, implementation):
    model = make_checkpoint(tmp_path / "model", tie_word_embeddings=tied)
    trace = run(model, tmp_path / "out", "--tokens", "1", "--dtype", "bf16", "--implementation", implementation)
    stored = load_file(model / "model.safetensors")
    stored.setdefault("lm_head.weight", stored["model.embed_tokens.weight"])
    assert trace.meta["weights"] == {name: fingerprint(weight.bfloat16()) for name, weight in stored.items()}


# --- Checkpoints that are refused ----------------------------------------------------------------------------------


def change_weights(model, change):
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.update({Q: w[Q].T.contiguous()}), rf"{Q}: expected [64, 48], found [48, 64]; transposed export?"),
        (lambda w: w.update({Q: w[Q][:10].clone()}), f"{Q}: expected [64, 48], found [10, 48]"),
        (lambda w: w.pop(Q), f"{Q}: expected [64, 48], found nothing of this name"),
        (lambda w: w.update({Q: w[Q].to(torch.int8)}), f"{Q}: expected F32, BF16, F16, found I8; quantized"),
        (lambda w: w.update({Q: w[Q].double()}), f"{Q}: expected F32, BF16, F16, found F64"),
        (lambda w: [w.pop(name) for name in list(w) if "layers.1." in name], "(and 10 more weights)"),
        (
            lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 1}),
            "lm_head.weight: expected a copy of model.embed_tokens.weight",
        ),
        (lambda w: w.update({"lm_head.weight": torch.zeros(3, 48)}), "lm_head.weight: expected a copy"),
    ],
)
def test_weights_are_checked(own_checkpoint, tmp_path, capsys, change, named):
    change_weights(own_checkpoint, change)
    assert named in refusal(capsys, own_checkpoint, tmp_path / "out", "--tokens", "1")


def test_a_tied_checkpoint_may_carry_a_copy_of_the_head(own_checkpoint, tmp_path, capsys):
    plain = run(own_checkpoint, tmp_path / "a", "--tokens", "1,2")
    change_weights(own_checkpoint, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert_same_traces(plain, run(own_checkpoint, tmp_path / "b", "--tokens", "1,2"))
    assert "not used" not in capsys.readouterr().err


def test_unused_weights_are_named(own_checkpoint, tmp_path, capsys):
    extra = {"model.layers.0.self_attn.q_proj.bias": torch.ones(64), "model.layers.7.mlp.up_proj.weight": torch.ones(1)}
    change_weights(own_checkpoint, lambda w: w.update(extra))
    assert open_checkpoint(own_checkpoint, num_layers=1).unused_weights == sorted(extra)
    run(own_checkpoint, tmp_path / "out", "--tokens", "1")
    assert "2 weights of the checkpoint are not used: model.layers.0.self_attn.q_proj.bias" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("model.safetensors", b"", "expected a safetensors file"),
        ("model.safetensors", b"\xff" * 100, "expected a safetensors file"),
        ("config.json", b"{", "config.json: expected JSON"),
        ("tokenizer.json", b"{}", "tokenizer.json: expected a Hugging Face tokenizer"),
    ],
)
def test_damaged_files(own_checkpoint, tmp_path, capsys, file, content, named):
    (own_checkpoint / file).write_bytes(content)
    assert named in refusal(capsys, own_checkpoint, tmp_path / "out")


def test_a_truncated_file(own_checkpoint, tmp_path, capsys):
    file = own_checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors: expected a safetensors file" in refusal(capsys, own_checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("config.json", "config.json: expected a model's config.json"),
        ("model.safetensors", "expected model.safetensors or model.safetensors.index.json, found neither"),
        ("tokenizer.json", "tokenizer.json: expected the model's tokenizer, found nothing"),
    ],
)
def test_missing_files(own_checkpoint, tmp_path, capsys, file, named):
    (own_checkpoint / file).unlink()
    assert named in refusal(capsys, own_checkpoint, tmp_path / "out")


def test_token_ids_need_no_tokenizer(own_checkpoint, tmp_path):
    (own_checkpoint / "tokenizer.json").unlink()
    run(own_checkpoint, tmp_path / "out", "--tokens", "1,2")


def test_shards_are_checked(tmp_path, capsys):
    model = make_checkpoint(tmp_path / "model", max_shard_size=30000)
    index = model / "model.safetensors.index.json"
    original = index.read_text()
    shard = sorted(model.glob("model-*.safetensors"))[1]

    index.write_text(original.replace(shard.name, "../" + shard.name))
    assert "expected names of files beside it" in refusal(capsys, model, tmp_path / "out", "--tokens", "1")
    index.write_text("{}")
    assert "expected JSON with a weight_map" in refusal(capsys, model, tmp_path / "out", "--tokens", "1")
    weights = json.loads(original)
    weights["weight_map"]["nonsense"] = shard.name
    index.write_text(json.dumps(weights))
    assert f"nonsense: expected in {shard.name}" in refusal(capsys, model, tmp_path / "out", "--tokens", "1")
    index.write_text(original)
    shard.unlink()
    assert f"{shard.name}: expected a safetensors file" in refusal(capsys, model, tmp_path / "out", "--tokens", "1")


def test_a_wrong_guess_of_head_dim_is_explained(own_checkpoint, tmp_path, capsys):
    edit_config(own_checkpoint, remove=("head_dim",))
    assert "config.json has no head_dim" in refusal(capsys, own_checkpoint, tmp_path / "out", "--tokens", "1")


def test_transformers_default_of_head_dim_is_not_taken_for_ours(tmp_path, capsys):
    """transformers reads an absent head_dim as 128, whatever hidden / heads is."""
    model = make_checkpoint(tmp_path / "model", hidden_size=64, head_dim=16)
    edit_config(model, remove=("head_dim",))
    run(model, tmp_path / "a", "--tokens", "1")
    line = refusal(capsys, model, tmp_path / "b", "--tokens", "1", "--implementation", "transformers")
    assert "head_dim: expected 16, found 128 in the reading of transformers" in line


def test_a_theta_that_transformers_reads_otherwise_is_refused(own_checkpoint, tmp_path, capsys, monkeypatch):
    """As transformers 4 does with a config of transformers 5."""
    from transformers import Qwen3Config

    original = Qwen3Config.from_pretrained

    def forgetful(*args, **kwargs):
        config = original(*args, **kwargs)
        config.rope_parameters["rope_theta"] = 10000.0
        return config

    monkeypatch.setattr(Qwen3Config, "from_pretrained", forgetful)
    line = refusal(capsys, own_checkpoint, tmp_path / "out", "--tokens", "1", "--implementation", "transformers")
    assert "rope_theta: expected 1000000.0, found about 10000 in the reading of transformers" in line


def test_what_transformers_cannot_load_is_refused(own_checkpoint, tmp_path, capsys):
    edit_config(own_checkpoint, initializer_range="wide")
    line = refusal(capsys, own_checkpoint, tmp_path / "out", "--tokens", "1", "--implementation", "transformers")
    assert "expected a model that transformers" in line


def test_an_unclosed_trace_is_replayed_with_a_warning(checkpoint, tmp_path, capsys):
    write_steps(tmp_path / "a", ("prefill", [1], [0], [0]))
    meta = tmp_path / "a" / "trace.json"
    meta.write_text(meta.read_text().replace('"closed": true', '"closed": false'))
    run(checkpoint, tmp_path / "out", "--from", tmp_path / "a")
    assert f"lockstep reference: warning: {tmp_path / 'a'}: " in capsys.readouterr().err


# --- Input that is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--input", ""], "--input: expected at least one token, found an empty prompt"),
        (["--tokens", ""], "expected at least one token"),
        (["--tokens", "1,x"], "--tokens: expected token ids such as 1,2,3, found '1,x'"),
        (["--tokens", "1,,2"], "--tokens: expected token ids"),
        (["--tokens", "1,257"], "token 1 of sequence 0: expected an id from 0 to 256, found 257"),
        (["--tokens", "1", "--tokens", "-1"], "token 0 of sequence 1: expected an id from 0 to 256, found -1"),
        (
            ["--tokens", "1", "--decode", "1024"],
            "expected at most 1024 tokens (max_position_embeddings), found 1 and 1024",
        ),
        (["--tokens", ",".join(["1"] * 1025)], "expected at most 1024 tokens"),
        (["--tokens", "1", "--decode", "-1"], "--decode: expected at least 0, found -1"),
        (["--tokens", "1", "--chunk", "0"], "--chunk: expected at least 1, found 0"),
        (["--tokens", "1", "--threads", "0"], "--threads: expected at least 1, found 0"),
        (["--tokens", "1", "--num-layers", "4"], "number of layers: expected 1 to 3, as the model has, found 4"),
        (["--tokens", "1", "--num-layers", "0"], "number of layers"),
        (["--input", "a\udcffb"], "--input: expected UTF-8"),
        (["--input-file", "/nonexistent"], "/nonexistent: expected a file of prompts, found No such file"),
        (
            ["--input-embeddings", "/nonexistent.npy"],
            "--input-embeddings /nonexistent.npy: expected zeros, tiny, huge or",
        ),
        (["--from", "/nonexistent.trace"], "/nonexistent.trace"),
        (["--from", "/nonexistent.trace", "--tokens", "1"], "--from: expected no --input"),
        (["--from", "/nonexistent.trace", "--chunk", "1"], "--from: expected no --input"),
        (["--tokens", "1", "--layers", "x"], "selection layers='x'"),
        (["--tokens", "1", "--rows", "last:0"], "selection rows='last:0'"),
    ],
)
def test_input_is_refused(checkpoint, tmp_path, capsys, options, named):
    assert named in refusal(capsys, checkpoint, tmp_path / "out", *options)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"good\n\xff\n", "expected UTF-8, found byte 0xff at offset 5"),
        (b"", "expected one prompt a line, found an empty file"),
        (b"one\n\nthree\n", ":2: expected at least one token, found an empty prompt"),
    ],
)
def test_prompt_files_are_refused(checkpoint, tmp_path, capsys, content, named):
    (tmp_path / "prompts").write_bytes(content)
    assert named in refusal(capsys, checkpoint, tmp_path / "out", "--input-file", tmp_path / "prompts")


@pytest.mark.parametrize(
    ("array", "options", "named"),
    [
        (np.zeros((3, 47), np.float32), [], "expected f16, f32 or f64 of shape [tokens, 48]"),
        (np.zeros((3, 48), np.int32), [], "found int32 [3, 48]"),
        (np.zeros(48, np.float32), [], "found float32 [48]"),
        (np.zeros((0, 48), np.float32), [], "found float32 [0, 48]"),
        (np.zeros((2, 48), np.float32), ["--tokens", "1,2,3"], "expected embeddings for 3 tokens of sequence 0"),
        (np.zeros((2, 48), np.float32), ["--tokens", "1", "--tokens", "1"], "of sequence 1, found 1 sequences"),
        (np.array([None]), [], "expected zeros, tiny, huge or a .npy file"),
    ],
)
def test_embeddings_are_refused(checkpoint, tmp_path, capsys, array, options, named):
    np.save(tmp_path / "e.npy", array)
    line = refusal(capsys, checkpoint, tmp_path / "out", "--input-embeddings", tmp_path / "e.npy", *options)
    assert named in line


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ([("prefill", [1, 2], [0, 2], [0, 0])], "step 0, sequence 0: expected positions without gaps, found [0, 2]"),
        ([("prefill", [1, 2], [1, 2], [0, 0])], "sequence 0: expected the tokens from position 0 on, found 1"),
        ([("prefill", [1], [0], [0]), ("decode", [1], [2], [0])], "expected the tokens from position 1 on, found 2"),
        ([("prefill", [300], [0], [0])], "token 0 of sequence 0: expected an id from 0 to 256, found 300"),
        ([("prefill", [-1], [0], [0])], "expected input_ids or all rows of input_embeddings"),
    ],
)
def test_traces_are_refused(checkpoint, tmp_path, capsys, steps, named):
    write_steps(tmp_path / "a", *steps)
    assert named in refusal(capsys, checkpoint, tmp_path / "out", "--from", tmp_path / "a")


def test_from_does_not_replace_its_source(checkpoint, tmp_path, capsys):
    write_steps(tmp_path / "a", ("prefill", [1], [0], [0]))
    assert reference.main([str(checkpoint), "--out", str(tmp_path / "a"), "--from", f"{tmp_path}/./a"]) == 2
    assert "it would be replaced" in capsys.readouterr().err
    assert load(tmp_path / "a").meta["producer"]["name"] == "test"


# --- As a process --------------------------------------------------------------------------------------------------


def process(module, *arguments):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "python")}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        env=environment,
        timeout=300,
        capture_output=True,
        check=False,
    )


def test_as_a_process(checkpoint, tmp_path):
    done = process("lockstep.reference", checkpoint, "--out", tmp_path / "out", "--tokens", "1,2", "--decode", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"{tmp_path}/out: 2 steps, 3 tokens, ")
    assert line.endswith(" MiB")
    assert load(tmp_path / "out").meta["closed"]


def test_a_refusal_as_a_process(checkpoint, tmp_path):
    done = process("lockstep.reference", checkpoint, "--out", tmp_path / "out", "--input", b"a\xffb")
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert "--input: expected UTF-8" in line
    assert not (tmp_path / "out").exists()


def test_the_pure_reference_needs_no_transformers(checkpoint, tmp_path):
    code = (
        "import sys; sys.modules['transformers'] = None; from lockstep import reference; "
        f"sys.exit(reference.main([{str(checkpoint)!r}, '--out', {str(tmp_path / 'out')!r}]))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "python")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_a_missing_package_is_named(package):
    code = (
        f"import runpy, sys; sys.modules[{package!r}] = None; "
        "runpy.run_module('lockstep.reference', run_name='__main__')"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "python")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"lockstep reference: {package} is missing: pip install torch ")
