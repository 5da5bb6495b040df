"""Every op judged by its own inputs: what is right is clean, what is wrong is named, on either side."""

import json
import shutil

import numpy as np
import pytest
from c_api import Model
from checkpoints import make_checkpoint
from lockstep.trace import TraceWriter, load
from programs import TINY, lockstep
from runs import compare, names, prompt, prompts, replay, run_engine, run_reference

VOCAB = 2048
TABLE = 3 + 5 * 18  # points of the bundled model
LENGTH = 60


def sabotage(out, point, change, length=LENGTH):
    """A trace of the engine in f32 in which `change(layer, rows)` has replaced what is at `point`."""
    with Model(TINY) as model:
        model.set_tap(lambda tensor: change(tensor.layer, tensor.array()), point)
        model.set_debug(out)
        model.forward([int(i) for i in prompt(length, VOCAB).split(",")], VOCAB)
        model.set_debug(None)
    return out


def rewrite(source, out, change=lambda name, array: array, **meta):
    """A copy of a trace of one step; `change(name, array)` gives other values, or None to leave a tensor out."""
    trace = load(source)
    step = trace.steps[0]
    options = {"config": trace.meta["model"]["config"], "storage": trace.meta["arithmetic"]["storage"]} | meta
    with (
        TraceWriter(out, producer="test", **options) as writer,
        writer.begin_step(step.input_ids, step.positions, step.sequences, step.phase) as copy,
    ):
        for name, tensor in step.tensors.items():
            changed = change(name, tensor.numpy())
            if changed is not None:
                copy.record(name, changed, rows=tensor.rows if name == "next_token" else None)
    return out


def edit_meta(trace, **changes):
    path = trace / "trace.json"
    meta = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in meta.items() if value is not None}))


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """The reference's trace and the engine's, in f32."""
    directory = tmp_path_factory.mktemp("traces")
    reference = run_reference(TINY, directory / "py.trace", "--tokens", prompt(LENGTH, VOCAB))
    return reference, run_engine(TINY, directory / "cpp.trace", "--from", reference)


# ---- correct runs


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_correct_runs_are_clean(tmp_path, dtype):
    """One shot, a ragged batch, decode and chunks, of the pure reference, of transformers and of the engine."""
    options = (*prompts([1, 17, 300], VOCAB), "--decode", 2, "--dtype", dtype)
    pure = run_reference(TINY, tmp_path / "pure", *options)
    hooked = run_reference(TINY, tmp_path / "hooked", *options, "--implementation", "transformers")
    engine = run_engine(TINY, tmp_path / "engine", "--from", pure, "--dtype", dtype)
    chunks = run_engine(TINY, tmp_path / "chunks", "--from", pure, "--dtype", dtype, "--chunk", 7)
    for trace in (pure, hooked, engine, chunks):
        code, result = replay(trace, tmp_path / "r.json", model=TINY)
        assert (code, result["verdict"], result["findings"]) == (0, "clean", []), (trace.name, names(result, "faulty"))
        assert len(names(result, "clean")) == TABLE, trace.name
        assert result["arithmetic"]["storage"] == dtype.upper() and result["arithmetic"]["declared"]


def test_large_differences_without_a_fault_are_inherited_rounding(tmp_path):
    """bf16 against f32: SIGNIFICANT in the classes, and yet every op is right."""
    pure = run_reference(TINY, tmp_path / "pure", "--tokens", prompt(300, VOCAB))
    engine = run_engine(TINY, tmp_path / "engine", "--from", pure, "--dtype", "bf16")
    code, result = compare(pure, engine, tmp_path / "r.json", "--model", TINY)
    assert code == 0 and result["first_significant"] and result["verdict"] == "same"
    growth = result["growth"]
    outputs = {p["layer"]: p["relative_l2"] for p in result["points"] if p["point"] == "layer_output"}
    assert (growth["first"]["layer"], growth["last"]["layer"]) == (0, 4)
    assert growth["first"]["relative_l2"] == outputs[0] and growth["last"]["relative_l2"] == outputs[4]
    assert growth["per_layer"] == pytest.approx((outputs[4] / outputs[0]) ** (1 / 4))
    text = " ".join(lockstep("compare", pure, engine, "--model", TINY).stdout.split())
    assert "INHERITED ROUNDING" in text and f"{outputs[4]:.2e} (L4)" in text
    assert "VERDICT: SAME (no faulty op on either side)" in text


# ---- faults


FAULTS = {
    "one head of one token": ("attn_q_rope", 2, lambda rows: rows[LENGTH // 2, 1].__imul__(-1)),
    "one token": ("mlp_down_proj", 1, lambda rows: rows[LENGTH // 2].__imul__(-1)),
    "one element": ("mlp_norm_output", 3, lambda rows: rows[LENGTH // 2, 17:18].__iadd__(0.01)),
    "half a percent": ("attn_v_proj_raw", 0, lambda rows: rows.__imul__(np.float32(1.005))),
    "the stream": ("layer_output", 4, lambda rows: rows[-1].__imul__(2)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_the_only_one_named(traces, tmp_path, fault):
    point, layer, change = FAULTS[fault]
    bad = sabotage(tmp_path / "bad.trace", point, lambda at, rows: change(rows) if at == layer else None)
    name = f"layer_{layer}_{point}"
    code, result = replay(bad, tmp_path / "r.json", model=TINY)
    assert code == result["exit_code"] == 1 and result["verdict"] == "faulty"
    assert result["first_faulty"] == name and names(result, "faulty") == [name]
    assert [finding["points"] for finding in result["findings"]] == [[name]]
    assert result["findings"][0]["layers"] == str(layer) and result["findings"][0]["point"] == point

    code, result = compare(traces[0], bad, tmp_path / "r.json", "--model", TINY)
    assert code == 1 and result["replay"]["reference"]["verdict"] == "clean"
    assert result["replay"]["candidate"]["first_faulty"] == name
    text = lockstep("compare", traces[0], bad, "--model", TINY).stdout
    assert f"FAULT      candidate: layer {layer} {point}: op error" in text
    assert f"VERDICT: DIFFERENT (1 faulty op in the candidate, the first {name})" in text


def test_two_faults_do_not_hide_each_other(tmp_path):
    def change(layer, rows):
        if (layer, rows.ndim) in ((1, 3), (3, 2)):  # q of one layer, the MLP of another
            rows *= -1

    bad = sabotage(tmp_path / "bad.trace", "attn_q_rope,mlp_down_proj", change)
    code, result = replay(bad, tmp_path / "r.json", model=TINY)
    assert code == 1 and names(result, "faulty") == ["layer_1_attn_q_rope", "layer_3_mlp_down_proj"]
    assert [finding["points"] for finding in result["findings"]] == [[name] for name in names(result, "faulty")]


def test_a_wrong_reference_is_accused_as_readily(traces, tmp_path):
    bad = sabotage(tmp_path / "bad.trace", "attn_k_rope", lambda layer, rows: rows.__imul__(-1) if layer == 2 else None)
    code, result = compare(bad, traces[0], tmp_path / "r.json", "--model", TINY)
    assert code == 1 and result["replay"]["candidate"]["verdict"] == "clean"
    assert names(result["replay"]["reference"], "faulty") == ["layer_2_attn_k_rope"]
    text = lockstep("compare", bad, traces[0], "--model", TINY).stdout
    assert "FAULT      reference: layer 2 attn_k_rope" in text and "faulty op in the reference" in text


def test_the_worked_example(traces, tmp_path):
    """docs/replay.md: RoPE turns interleaved pairs of the queries, and one projection is scaled by 1.01."""
    normed = []

    def plant(tensor):
        rows = tensor.array()
        if tensor.point == b"attn_q_normed":
            normed[:] = [rows.astype(np.float64)]
        elif tensor.point == b"attn_q_rope":
            (x,) = normed
            angle = np.arange(len(x))[:, None, None] * 1e6 ** (-np.arange(0, 48, 2) / 48)
            rows[..., 0::2] = x[..., 0::2] * np.cos(angle) - x[..., 1::2] * np.sin(angle)
            rows[..., 1::2] = x[..., 1::2] * np.cos(angle) + x[..., 0::2] * np.sin(angle)
        elif tensor.layer == 3:
            rows *= np.float32(1.01)

    with Model(TINY) as model:
        model.set_tap(plant, "attn_q_normed,attn_q_rope,mlp_down_proj")
        model.set_debug(tmp_path / "bad.trace")
        model.forward([int(i) for i in prompt(LENGTH, VOCAB).split(",")], VOCAB)
        model.set_debug(None)
    code, result = replay(tmp_path / "bad.trace", tmp_path / "r.json", model=TINY)
    found = [(finding["cause"], finding["layers"], finding["point"]) for finding in result["findings"]]
    assert code == 1
    assert found == [("rope-interleaved", "0-4", "attn_q_rope"), ("values-scaled", "3", "mlp_down_proj")]
    rope, scaled = result["findings"]
    assert rope["explained"] < rope["clean"] < rope["next"]["explained"] and len(rope["points"]) == 5
    assert "interleaved pairs" in rope["text"] and "1.01" in scaled["text"]
    assert len(names(result, "faulty")) == 6 and len(names(result, "clean")) == TABLE - 6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_origin_of_what_is_not_finite_is_named(tmp_path, value):
    bad = sabotage(
        tmp_path / "bad.trace", "mlp_norm_output", lambda layer, rows: rows[40].fill(value) if layer == 1 else None
    )
    code, result = replay(bad, tmp_path / "r.json", model=TINY)
    assert code == 1 and names(result, "faulty") == ["layer_1_mlp_norm_output"]
    points = {point["name"]: point for point in result["points"]}
    origin = points["layer_1_mlp_norm_output"]
    assert origin["non_finite"] == 192 and origin["first_non_finite"]["position"] == 40
    assert points["layer_1_mlp_down_proj"]["rows_inherited"] == 1
    # What attends to the row; and where a kernel multiplies masked keys by 0, more.
    assert LENGTH - 40 <= points["layer_4_layer_output"]["rows_inherited"] < LENGTH


# ---- verdict and output


def test_text_and_json_tell_the_same(tmp_path):
    bad = sabotage(tmp_path / "bad.trace", "attn_q_rope", lambda layer, rows: rows.__imul__(-1) if layer == 2 else None)
    done = lockstep("replay", bad, "--model", TINY, "--all", "--json", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert done.returncode == 1
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("  clean ", "  FAULTY "))]
    assert len(rows) == len(result["points"]) == TABLE
    for row, point in zip(rows, result["points"], strict=True):
        assert (row[0].lower(), row[2], row[3]) == (point["verdict"], point["point"], point["op"])
        assert int(row[4]) == point["rows"] == LENGTH
        figures = (point["worst_row"], point["worst_head"], {"error": point["whole"]}, point["max"])
        for shown, figure in zip(row[5:9], figures, strict=True):
            if figure is None:
                assert shown == "-"
            else:
                assert float(shown) == pytest.approx(figure["error"], rel=0.06, abs=0.006), (row, point)
        assert float(row[9]) == pytest.approx(point["scale"]["value"], rel=0.06)
    assert result["findings"][0]["sentence"] in " ".join(done.stdout.split())


def test_the_keys_are_those_of_the_documentation(tmp_path):
    bad = sabotage(tmp_path / "bad.trace", "attn_q_rope", lambda layer, rows: rows.__imul__(-1) if layer == 2 else None)
    _, result = replay(bad, tmp_path / "r.json", model=TINY)
    assert result["schema"] == "lockstep-replay/1"
    assert set(result) == {
        *("schema", "verdict", "exit_code", "trace", "model", "arithmetic", "counts", "first_faulty", "findings"),
        *("layouts", "notes", "points", "weights", "weights_compared"),
    }
    assert set(result["points"][0]) == {
        *("name", "layer", "point", "op", "verdict", "why", "from", "bridged", "arithmetic", "rows"),
        *("rows_not_observable", "rows_inherited", "elements", "worst_row", "worst_head", "whole", "max", "scale"),
        *("limits", "non_finite", "first_non_finite"),
    }
    assert set(result["findings"][0]) == {
        *("points", "point", "layers", "op", "cause", "text", "advice", "error", "clean", "explained", "also", "next"),
        *("patterns", "worst", "sentence"),
    }
    assert result["trace"] == [str(bad)] and result["model"] == str(TINY)


def test_selections(traces, tmp_path):
    _, result = replay(traces[1], tmp_path / "r.json", "--points", "attn_q*,logits", "--layers", "1-2", model=TINY)
    expected = [f"layer_{i}_attn_q_{kind}" for i in (1, 2) for kind in ("proj_raw", "normed", "rope")]
    assert [point["name"] for point in result["points"]] == [*expected, "logits"]


def test_the_users_tolerance_still_decides(traces, tmp_path):
    code, result = compare(*traces, tmp_path / "r.json", "--model", TINY, "--atol", "1e-12")
    assert code == 1 and result["replay"]["candidate"]["verdict"] == "clean"
    assert "beyond tolerance" in lockstep("compare", *traces, "--model", TINY, "--atol", "1e-12").stdout


def test_without_a_model_nothing_is_replayed(traces, tmp_path):
    code, result = compare(*traces, tmp_path / "r.json")
    assert code == 0 and result["replay"] is None
    assert "op err" not in lockstep("compare", *traces).stdout


def test_an_op_that_was_not_captured_is_bridged(traces, tmp_path):
    """Only the layers' inputs and outputs: the whole layer is recomputed."""
    ends = ("input_embeddings", "logits")
    few = rewrite(
        traces[1],
        tmp_path / "few.trace",
        lambda name, array: array if name in ends or "_layer_output" in name else None,
    )
    code, result = replay(few, tmp_path / "r.json", model=TINY)
    assert code == 0 and len(names(result, "clean")) == 2 + 5
    assert [point["bridged"] for point in result["points"]] == [False] + 6 * [True]
    assert "recomputed from layer_0_layer_output" in lockstep("replay", few, "--model", TINY, "--all").stdout


def test_a_trace_in_parts(tmp_path):
    a = run_engine(TINY, tmp_path / "a.trace", "--tokens", prompt(20, VOCAB))
    b = run_engine(TINY, tmp_path / "b.trace", "--tokens", prompt(31, VOCAB, seed=1))
    done = lockstep("replay", a, b, "--model", TINY, "--json", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert done.returncode == 0 and result["trace"] == [str(a), str(b)]
    assert all(point["rows"] == 51 for point in result["points"])


# ---- debug


def test_debug_judges_every_op(tmp_path):
    options = ("debug", TINY, "--input", "And God said,", "--out", tmp_path, "--json", tmp_path / "r.json")
    done = lockstep(*options)
    assert done.returncode == 0, done.stderr
    sides = json.loads((tmp_path / "r.json").read_text())["replay"]
    assert all(len(names(sides[side], "clean")) == TABLE for side in ("reference", "candidate"))
    assert f"candidate: {TABLE} ops, {TABLE} clean\n" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr and "replay of" not in done.stderr  # no progress in a pipe

    done = lockstep(*options, "--skip-python", "--live")
    assert done.returncode == 0 and "no op was replayed" in done.stdout
    assert json.loads((tmp_path / "r.json").read_text())["replay"] is None


# ---- bad input


def refused(trace, *options, model=TINY):
    done = lockstep("replay", trace, "--model", model, *options)
    assert done.returncode == 2 and done.stdout == "", done.stdout + done.stderr
    return done.stderr


def test_a_trace_of_another_model(traces, tmp_path):
    other = make_checkpoint(tmp_path / "other", num_hidden_layers=5)
    message = refused(traces[1], model=other)
    assert "hidden_size" in message and "192" in message and "48" in message
    done = lockstep("compare", *traces, "--model", other)
    assert done.returncode == 2 and "hidden_size" in done.stderr


def test_weights_that_changed_since(traces, tmp_path):
    from safetensors.torch import load_file, save_file

    changed = tmp_path / "changed"
    shutil.copytree(TINY, changed)
    weights = load_file(changed / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 5] += 1
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    done = lockstep("replay", traces[1], "--model", changed)
    assert done.returncode == 1 and f"WEIGHT     {name}" in done.stdout
    assert "layer 1 mlp_up_proj" in done.stdout and "1 weight not the checkpoint's" in done.stdout
    done = lockstep("compare", *traces, "--model", changed)
    assert done.returncode == 1 and f"WEIGHT     reference: {name}" in done.stdout
    assert "1 weight of the candidate not the checkpoint's" in " ".join(done.stdout.split())


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_undeclared_arithmetic_is_inferred(tmp_path, dtype):
    trace = run_engine(TINY, tmp_path / "t", "--tokens", prompt(LENGTH, VOCAB), "--dtype", dtype)
    edit_meta(trace, arithmetic=None)
    code, result = replay(trace, tmp_path / "r.json", model=TINY)
    assert code == 0, names(result, "faulty")
    assert result["arithmetic"]["storage"] == dtype.upper() and not result["arithmetic"]["declared"]
    text = lockstep("replay", trace, "--model", TINY).stdout
    assert f"arithmetic {dtype.upper()}" in text and "(not declared; inferred from the data)" in text


def test_16_bit_values_in_wide_tensors_are_recognised(tmp_path):
    """An engine in bf16 that records f32 and declares nothing."""
    trace = run_engine(TINY, tmp_path / "t", "--tokens", prompt(LENGTH, VOCAB), "--dtype", "bf16")
    wide = rewrite(
        trace, tmp_path / "wide", lambda name, array: array if name == "next_token" else array.astype(np.float32)
    )
    edit_meta(wide, arithmetic=None)
    code, result = replay(wide, tmp_path / "r.json", model=TINY)
    assert code == 0 and result["arithmetic"]["storage"] == "BF16", names(result, "faulty")


def test_a_selection_that_matches_nothing(traces):
    assert "attn_zzz" in refused(traces[1], "--points", "attn_zzz")


def test_nothing_that_can_be_recomputed(traces, tmp_path):
    """Logits alone, of embeddings that were given."""
    options = ("--input-embeddings", "tiny", "--tokens", prompt(5, VOCAB), "--points", "logits")
    alone = run_engine(TINY, tmp_path / "t", *options)
    assert "logits" in refused(alone) and "input_ids" in refused(alone)
    done = lockstep("debug", TINY, "--out", tmp_path, *options)
    assert done.returncode == 0 and "note: the candidate was not replayed" in done.stdout


def test_a_trace_without_any_point_of_the_table(traces, tmp_path):
    own = rewrite(
        traces[1], tmp_path / "own.trace", lambda name, array: array if name == "layer_1_attn_q_rope" else None
    )
    for path in [*own.glob("step-*.safetensors"), own / "trace.json"]:
        path.write_bytes(path.read_bytes().replace(b'"layer_1_attn_q_rope"', b'"layer_1_attn_q_mine"'))
    assert "layer_1_attn_q_mine" in refused(own) and "docs/points.md" in refused(own)


def test_usage(traces):
    for arguments in (("replay",), ("replay", traces[1]), ("replay", "/nowhere", "--model", TINY)):
        done = lockstep(*arguments)
        assert done.returncode == 2 and done.stderr
    assert lockstep("replay", traces[1], "--model", "/nowhere").returncode == 2
