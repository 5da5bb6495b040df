"""`debug --live` tells the same as capturing and comparing, and writes only what it is asked to."""

import json
import shutil

import numpy as np
import pytest
from lockstep.trace import load
from programs import TINY, lockstep
from runs import prompt, prompts, run_reference

VOCAB = 2048


def result_of(done, out, code):
    """The result as JSON, without the paths, and the report."""
    assert done.returncode == code, done.stdout + done.stderr
    result = json.loads((out / "r.json").read_text())
    assert len(result["candidate"].pop("traces")) == 1
    # Where a line is wrapped depends on the paths in it.
    text = done.stdout.replace("\n" + " " * 11, " ").replace(str(out / "cpp.trace"), "live")
    return result, text.splitlines()


def live(out, *options, code):
    done = lockstep("debug", TINY, "--skip-python", "--live", "--out", out, "--json", out / "r.json", "--all", *options)
    result, text = result_of(done, out, code)
    assert text[-1].startswith("traces: ") and text[-2].startswith("no op was replayed")
    return result, text[:-2]


def written(out, *options, compared, code):
    """The same by a trace of the engine; what `debug` itself says of it also has the replays."""
    done = lockstep("debug", TINY, "--skip-python", "--out", out, *options)
    assert done.returncode in (0, 1), done.stderr
    traces = (out / "py.trace", out / "cpp.trace")
    return result_of(lockstep("compare", *traces, "--json", out / "r.json", "--all", *compared), out, code)


def check(out, *options, compared=(), code=0):
    """Both ways; the live one writes nothing. `compared`: options of the comparison alone."""
    alive = live(out, *options, *compared, code=code)
    assert not (out / "cpp.trace").exists()
    assert alive == written(out, *options, compared=compared, code=code)
    shutil.rmtree(out / "cpp.trace")
    return alive[0]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("chunk", [[], ["--chunk", "7"]])
def test_one_shot_chunks_and_decode(tmp_path, dtype, chunk):
    tokens = ("--tokens", prompt(40, VOCAB), "--decode", "3", "--dtype", dtype)
    run_reference(TINY, tmp_path / "py.trace", *tokens)
    result = check(tmp_path, "--dtype", dtype, *chunk)
    assert result["next_tokens"]["compared"] == 4 and result["weights_compared"] == 58


def test_a_batch_with_selections(tmp_path):
    run_reference(
        TINY,
        tmp_path / "py.trace",
        *prompts([12, 1, 30, 12], VOCAB),
        "--decode",
        "2",
        "--points",
        "*,attn_scores,attn_probs",
    )
    assert len(check(tmp_path)["pairs"]) == 4
    check(tmp_path, "--chunk", "5", "--rows", "last:2", "--steps", "0-3")
    check(
        tmp_path,
        "--points",
        "attn_*,attn_scores,attn_probs,logits",
        "--layers",
        "1-2",
        compared=("--rtol", "1e-9"),
        code=1,
    )


def test_a_sabotaged_reference(tmp_path):
    run_reference(TINY, tmp_path / "py.trace", "--tokens", prompt(50, VOCAB))
    path = tmp_path / "py.trace"
    tensors = load(path).steps[0].tensors
    negated = np.array(tensors["layer_2_attn_q_rope"].numpy())
    with open(next(path.glob("step-*.safetensors")), "r+b") as file:
        data = bytearray(file.read())
        for name, change in {
            "layer_2_attn_q_rope": -1,
            "layer_3_mlp_norm_output": 0,
            "layer_4_attn_v_proj_raw": np.nan,
        }.items():
            values = tensors[name].numpy()
            at = data.find(values.tobytes())
            changed = np.array(values)
            changed[7:9] *= change
            if change == 0:
                changed[:] = 0
            data[at : at + changed.nbytes] = changed.tobytes()
        file.seek(0)
        file.write(data)
    assert negated.any()
    result = check(tmp_path, code=1)
    assert result["first_failing"] == "layer_2_attn_q_rope"
    assert [failure["kind"] for failure in result["failures"]] == ["all-zero"]

    live(tmp_path, "--keep-failing", code=1)
    kept = load(tmp_path / "cpp.trace")
    failing = {point["name"] for point in result["points"] if point["reasons"] or point["class"] == "SIGNIFICANT DIFF"}
    assert set(kept.steps[0].tensors) - {"next_token"} == failing
    name = "layer_2_attn_q_rope"
    assert np.abs(kept.steps[0].tensors[name].numpy() - negated).max() < 1e-4


def test_usage_errors(tmp_path):
    for options, message in [(("--live", "--skip-cpp"), "--skip-cpp"), (("--keep-failing",), "--live")]:
        done = lockstep("debug", TINY, "--out", tmp_path, *options)
        assert done.returncode == 2 and message in done.stderr, done.stderr
