"""Goldens end to end: recorded from the engine, checked against the engine's other runs, and damaged."""

import json
import os
import re
import subprocess

import numpy as np
import pytest
from c_api import Model, Tensor
from programs import LOCKSTEP, ROOT, TINY, lockstep
from runs import prompt, run_engine
from test_sabotage import rewrite

VOCAB = 2048
LENGTH = 24


def record(trace, out, *options):
    done = lockstep("record", trace, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    return out


def check(golden, trace, out, *options):
    """Exit code, everything that was found, the text."""
    done = lockstep("check", golden, trace, "--json", out, *options)
    assert done.returncode in (0, 1), done.stderr
    result = json.loads(out.read_text())
    assert result["exit_code"] == done.returncode
    return done.returncode, result, done.stdout


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("golden")
    trace = run_engine(TINY, directory / "a.trace", "--tokens", prompt(LENGTH, VOCAB), "--decode", 4)
    return trace, record(trace, directory / "golden.json"), record(trace, directory / "all.json", "--points", "*")


def test_the_same_run_is_the_same_to_the_bit(engine, tmp_path):
    trace, golden, _ = engine
    code, result, text = check(golden, trace, tmp_path / "check.json", "--exact")
    assert code == 0 and "VERDICT: SAME (to the bit)" in text
    assert result["bit_identical"] == len(result["points"]) == 13
    assert len(text.splitlines()) < 20
    again = run_engine(TINY, tmp_path / "again.trace", "--from", trace)
    assert record(again, tmp_path / "again.json").read_bytes() == golden.read_bytes()


def test_the_bytes_do_not_depend_on_the_threads(engine, tmp_path):
    trace, golden, _ = engine
    done = lockstep("record", trace, "--out", tmp_path / "one.json", env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and (tmp_path / "one.json").read_bytes() == golden.read_bytes()


@pytest.mark.parametrize("options", [("--chunk", 1), ("--chunk", 5)])
def test_other_splits_of_the_tokens_are_the_same(engine, tmp_path, options):
    trace, _, golden = engine
    other = run_engine(TINY, tmp_path / "b.trace", "--from", trace, *options)
    code, result, _ = check(golden, other, tmp_path / "check.json")
    assert code == 0 and result["failures"] == []
    assert all(point["rows"] == LENGTH + 4 for point in result["points"])


def test_decode_steps_are_prefill_rows(engine, tmp_path):
    """All tokens in one prefill: the rows that the golden has from decode steps are prefill rows here."""
    trace, _, golden = engine
    ids = json.loads(golden.read_text())["sequences"][0]["ids"]
    other = run_engine(TINY, tmp_path / "b.trace", "--tokens", ",".join(map(str, ids)))
    code, result, _ = check(golden, other, tmp_path / "check.json")
    assert code == 0 and result["failures"] == []


def test_another_dtype_is_told(engine, tmp_path):
    trace, golden, _ = engine
    other = run_engine(TINY, tmp_path / "b.trace", "--from", trace, "--dtype", "bf16")
    code, result, text = check(golden, other, tmp_path / "check.json")
    assert code == 1 and result["arithmetic"].startswith("storage BF16")
    assert result["first_drifted"] == "layer_0_attn_residual_output"
    assert "another arithmetic" in text


def test_a_fault_is_named_with_point_and_row(engine, tmp_path):
    trace, _, golden = engine
    ids = json.loads(golden.read_text())["sequences"][0]["ids"][:LENGTH]

    def sabotage(tensor: Tensor) -> None:
        if tensor.layer == 2:
            tensor.array()[11, 1] *= -1  # one head of one token

    with Model(TINY) as model:
        model.set_tap(sabotage, "attn_q_rope")
        model.set_debug(tmp_path / "bad.trace")
        model.forward(ids, VOCAB)
        model.set_debug(None)
    code, result, text = check(golden, tmp_path / "bad.trace", tmp_path / "check.json")
    assert code == 1 and result["first_drifted"] == "layer_2_attn_q_rope"
    point = next(p for p in result["points"] if p["name"] == "layer_2_attn_q_rope")
    assert (point["worst"]["sequence"], point["worst"]["first_position"], point["worst"]["last_position"]) == (
        0,
        11,
        11,
    )
    assert "FIRST POINT THAT DRIFTED: layer_2_attn_q_rope" in text and "sequence 0, position 11" in text


def test_the_estimate_is_near_the_truth(engine, tmp_path):
    trace, _, golden = engine
    rng = np.random.default_rng(1)
    differences = {}

    def noise(name, array, tensors):
        if not name.endswith("mlp_up_proj"):
            return array
        changed = array + (1e-3 * rng.standard_normal(array.shape)).astype(np.float32)
        sums = differences.setdefault(name, [0.0, 0.0])
        sums[0] += float(((changed.astype(np.float64) - array) ** 2).sum())
        sums[1] += float((array.astype(np.float64) ** 2).sum())
        return changed

    rewrite(trace, tmp_path / "b.trace", noise)
    _, result, _ = check(golden, tmp_path / "b.trace", tmp_path / "check.json")
    points = {p["name"]: p for p in result["points"]}
    assert len(differences) == 5
    for name, (squares, norm) in differences.items():
        truth = (squares / norm) ** 0.5
        assert 0 < points[name]["standard_error"] < 0.15 * truth
        assert abs(points[name]["relative_l2"] - truth) < 4 * points[name]["standard_error"]
    assert all(p["bit_identical"] for name, p in points.items() if name not in differences)


def test_a_missing_point_and_a_wrong_weight_are_named(engine, tmp_path):
    trace, golden, _ = engine
    gone = "layer_1_layer_output"
    rewrite(trace, tmp_path / "b.trace", lambda name, array, tensors: None if name == gone else array)
    code, result, _ = check(golden, tmp_path / "b.trace", tmp_path / "check.json")
    assert code == 1 and ("missing", gone) in {(f["kind"], f["point"]) for f in result["failures"]}

    changed = json.loads(golden.read_text())
    weight = next(w for w in changed["weights"] if w["name"] == "model.layers.*.mlp.up_proj.weight")
    weight["hashes"][3] = "0" * 16
    (tmp_path / "other.json").write_text(json.dumps(changed))
    code, result, _ = check(tmp_path / "other.json", trace, tmp_path / "check.json")
    assert code == 1 and [w["name"] for w in result["weights"]] == ["model.layers.3.mlp.up_proj.weight"]


def test_other_tokens_cannot_be_told(engine, tmp_path):
    other = run_engine(TINY, tmp_path / "b.trace", "--tokens", prompt(LENGTH, VOCAB, seed=7))
    done = lockstep("check", engine[1], other)
    assert done.returncode == 2 and "different tokens from position 0" in done.stderr


BAD = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "deep": lambda text: "[" * 100_000,
    "trace.json": lambda text: '{"format": "lockstep-trace", "version": 1}',
    "newer": lambda text: text.replace("lockstep-golden/1", "lockstep-golden/2"),
    "rows": lambda text: re.sub(r'"rows":"[^"]*"', '"rows":"0-2147483647"', text),
    "blocks": lambda text: re.sub(r'"block_rows":\d+', '"block_rows":7', text),
    "nan": lambda text: re.sub(r'"mean":[^,]*', '"mean":NaN', text),
    "type": lambda text: re.sub(r'"mean":[^,]*', '"mean":{}', text),
    "escape": lambda text: text.replace('"name":"layer_0', '"name":"\\u001b]0;x\\u0007', 1).replace('"mean":', '"m":'),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_golden_is_a_clear_error(engine, tmp_path, fault):
    trace, golden, _ = engine
    bad = tmp_path / "bad.json"
    bad.write_text(BAD[fault](golden.read_text()))
    done = lockstep("check", bad, trace)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"lockstep: {bad}")
    assert ("nested deeper" if fault == "deep" else "expected") in done.stderr
    assert "lockstep record writes a new one" in done.stderr
    assert "\x1b" not in done.stderr


def test_nothing_is_left_half_written(engine, tmp_path):
    trace, golden, _ = engine
    for command in [("record", trace, "--out"), ("check", golden, trace, "--json")]:
        done = lockstep(*command, tmp_path / "no" / "such" / "file.json")
        assert done.returncode == 2 and "cannot be written" in done.stderr
        (tmp_path / "file.json").mkdir(exist_ok=True)
        done = lockstep(*command, tmp_path / "file.json")
        assert done.returncode == 2 and list(tmp_path.iterdir()) == [tmp_path / "file.json"]
    done = lockstep("record", trace, "--points", "nothing_such", "--out", tmp_path / "x.json")
    assert done.returncode == 2 and not (tmp_path / "x.json").exists()


def block_of(document: str, name: str) -> str:
    """The shell block behind <!-- name --> of docs/ci.md."""
    found = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", document, re.DOTALL)
    assert found, name
    return found[1]


def test_the_recipe_of_the_documentation_runs(tmp_path):
    document = (ROOT / "docs" / "ci.md").read_text()
    environment = {**os.environ, "MODEL": str(TINY), "PATH": f"{LOCKSTEP.parent}:{os.environ['PATH']}"}

    def run(script):
        command = ["sh", "-e", "-c", script]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    assert run(block_of(document, "record")).returncode == 0
    done = run(block_of(document, "check"))
    assert done.returncode == 0 and "the engine is what it was" in done.stdout, done.stderr
    drifted = run(block_of(document, "check").replace("lockstep capture", "lockstep capture --dtype f16"))
    assert drifted.returncode == 1 and "the engine drifted" in drifted.stdout
    (tmp_path / "golden.json").write_text("{}")
    assert run(block_of(document, "check")).returncode == 2
