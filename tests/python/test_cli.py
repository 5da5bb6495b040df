"""The commands as a user has them: everything through the program, Python included."""

import json
import random
import shutil

import lockstep as lockstep_package
import numpy as np
import pytest
from checkpoints import make_checkpoint
from lockstep.tokenize import Tokenizer, read_prompts
from programs import TINY, lockstep
from runs import prompt

TABLE = 3 + 5 * 18  # points of the bundled model


def ok(*arguments, code=0, **options):
    done = lockstep(*arguments, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def debugged(tmp_path_factory):
    """A directory with the two traces of a short `debug` run, its result, and what was printed."""
    out = tmp_path_factory.mktemp("debug")
    done = ok(
        "debug", TINY, "--input", "And God said,", "--decode", 2, "--out", out, "--json", out / "result.json", "--all"
    )
    return out, json.loads((out / "result.json").read_text()), done


def test_debug_prints_every_point(debugged):
    out, result, done = debugged
    assert result["verdict"] == "same" and len(result["points"]) == TABLE and result["weights_compared"] == 58
    rows = [line for line in done.stdout.splitlines() if line.lstrip("* ").startswith(("EXCELLENT  ", "GOOD  "))]
    assert len(rows) == TABLE
    assert "VERDICT: SAME" in done.stdout
    assert f"traces: {out / 'py.trace'} {out / 'cpp.trace'}" in done.stdout
    assert "next tokens: 3 of 3 agree" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr  # no colour and no progress in a pipe


def test_clean_layers_are_folded(debugged):
    out, _, _ = debugged
    text = ok("compare", out / "cpp.trace", out / "cpp.trace").stdout
    assert "L0-L4 90 points" in text and "layer" in text
    assert len(text.splitlines()) <= 24


def test_skip_uses_what_is_there(debugged, tmp_path):
    out, _, _ = debugged
    shutil.copytree(out, tmp_path / "copy")
    done = ok("debug", TINY, "--skip-python", "--chunk", 2, "--out", tmp_path / "copy")
    assert "py.trace:" not in done.stderr and "4 steps" in done.stderr  # chunks of 2 tokens, then the decode steps
    done = ok("debug", TINY, "--skip-cpp", "--input", "And God said,", "--decode", 2, "--out", tmp_path / "copy")
    assert "c++:" not in done.stderr


def test_the_users_tolerance_decides(debugged):
    out, _, _ = debugged
    ok("compare", out / "py.trace", out / "cpp.trace", "--atol", "1e-2")
    done = ok("compare", out / "py.trace", out / "cpp.trace", "--atol", "1e-9", "--rtol", "0", code=1)
    assert "DIFFERENT" in done.stdout


def test_points_and_layers(debugged, tmp_path):
    out, _, _ = debugged
    selection = ("--points", "attn_q*,logits", "--layers", "1-2", "--json", tmp_path / "r.json")
    ok("compare", out / "py.trace", out / "cpp.trace", *selection)
    names = [point["name"] for point in json.loads((tmp_path / "r.json").read_text())["points"]]
    expected = [f"layer_{i}_attn_q_{kind}" for i in (1, 2) for kind in ("proj_raw", "normed", "rope")]
    assert names == [*expected, "logits"]


def test_a_batch_from_a_file_with_transformers_in_bf16(tmp_path):
    (tmp_path / "prompts.txt").write_text("In the beginning\nBlessed are\nPaul, an apostle\n")
    options = ("--input-file", tmp_path / "prompts.txt", "--reference", "transformers", "--dtype", "bf16")
    ok("debug", TINY, *options, "--out", tmp_path, "--json", tmp_path / "r.json", "--decode", 1)
    result = json.loads((tmp_path / "r.json").read_text())
    assert len(result["pairs"]) == 3 and "transformers" in result["reference"]["producer"]


def test_precision_analysis_and_fewer_layers(tmp_path):
    options = ("--tokens", "5,6,7,8", "--num-layers", 2, "--dtype", "bf16", "--reference-dtype", "f32")
    done = lockstep("debug", TINY, *options, "--out", tmp_path, "--json", tmp_path / "r.json")
    assert done.returncode in (0, 1), done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert len(result["points"]) == 3 + 2 * 18
    assert (result["reference"]["storage"], result["candidate"]["storage"]) == ("F32", "BF16")


def test_edge_case_embeddings(tmp_path):
    for kind in ("zeros", "tiny", "huge"):
        ok("debug", TINY, "--input", "And God said,", "--input-embeddings", kind, "--out", tmp_path)
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(7, 192)).astype(np.float16))
    ok("debug", TINY, "--input-embeddings", tmp_path / "x.npy", "--decode", 1, "--out", tmp_path)


def test_capture_tokenizes_and_decodes(tmp_path):
    ok("capture", TINY, "--input", "And God said,", "--decode", 3, "--out", tmp_path / "a.trace")
    ok("reference", TINY, "--input", "And God said,", "--decode", 3, "--out", tmp_path / "b.trace")
    ok("compare", tmp_path / "b.trace", tmp_path / "a.trace")


def test_capture_needs_no_python(tmp_path):
    nowhere = {"LOCKSTEP_PYTHON": "/nowhere/python", "PATH": ""}
    ok("capture", TINY, "--input", "And God said,", "--out", tmp_path / "a.trace", env=nowhere)


def test_both_sides_have_the_same_tokenizer(tmp_path):
    """Of every prompt of a file, in C++ and in Python."""
    generator = random.Random(1)
    alphabet = "aeinst  ,.;:'\"019ABé漢字\u0301\u00a0\u3000😀\t<|>" + "\u2028\x0b\x85"
    lines = ["".join(generator.choices(alphabet, k=generator.randrange(1, 40))) for _ in range(200)]
    lines += ["<|im_start|>user", "  In the beginning", "don't we'll", "1234567", "a\r"]
    (tmp_path / "prompts").write_bytes("\n".join(lines).encode())
    options = ("--num-layers", 1, "--points", "final_norm_output", "--out", tmp_path / "t")
    ok("capture", TINY, "--input-file", tmp_path / "prompts", *options)
    found: dict[int, list[int]] = {}
    for step in lockstep_package.load(tmp_path / "t").steps:
        for sequence, token in zip(step.sequences, step.input_ids, strict=True):
            found.setdefault(int(sequence), []).append(int(token))
    tokenizer = Tokenizer(TINY)
    for i, line in enumerate(read_prompts(tmp_path / "prompts")):
        assert found[i] == tokenizer.encode(line), line
    assert len(found) == len(lines)


def test_show(debugged):
    out, _, _ = debugged
    listing = ok("show", out / "cpp.trace").stdout
    assert "mlp_down_proj" in listing and "step 2     decode, 1 token" in listing
    tensor = ok("show", out / "cpp.trace", "layer_4_mlp_down_proj").stdout
    assert "mean" in tensor and "seq 0 pos" in tensor
    ok("show", out / "cpp.trace", "layer_9_mlp_down_proj", code=2)


def test_repair(debugged, tmp_path):
    from safetensors.numpy import load_file

    out, _, _ = debugged
    broken = tmp_path / "broken.trace"
    shutil.copytree(out / "cpp.trace", broken)
    step = broken / "step-000000.safetensors"
    step.write_bytes(step.read_bytes() + b"half a tensor")
    meta = json.loads((broken / "trace.json").read_text())
    (broken / "trace.json").write_text(json.dumps(meta | {"closed": False}))
    assert "warning" in ok("show", broken).stderr
    with pytest.raises(Exception, match="(?i)not fully covered|buffer"):
        load_file(step)
    ok("show", broken, "--repair")
    assert "logits" in load_file(step)
    ok("compare", out / "cpp.trace", broken)


@pytest.mark.parametrize("form", ["txt", "npy", "npz"])
def test_export_and_import(debugged, tmp_path, form):
    out, _, _ = debugged
    ok("export", out / "py.trace", "--format", form, "--out", tmp_path / "files", "--prefix", "py_")
    if form == "txt":
        assert (tmp_path / "files" / "py_layer_3_attn_q_rope.txt").exists()
    source = next((tmp_path / "files").glob("*.npz")) if form == "npz" else tmp_path / "files"
    ok("import", source, "--prefix", "py_", "--out", tmp_path / "back.trace")
    ok("compare", tmp_path / "back.trace", out / "cpp.trace", "--json", tmp_path / "r.json")
    assert len(json.loads((tmp_path / "r.json").read_text())["points"]) == TABLE


def test_doctor():
    text = ok("doctor").stdout
    assert "self-test     passed" in text and "torch" in text and "own kernels" in text
    text = ok("doctor", "--python", "/usr/bin/false", code=2).stdout
    assert "self-test     passed" in text and "does not run" in text


def test_any_checkpoint_with_a_tokenizer(tmp_path):
    model = make_checkpoint(tmp_path / "model", tokenizer=True, max_shard_size="40KB")
    ok("debug", model, "--input", "Hello world", "--decode", 4, "--out", tmp_path / "out")


def test_help_and_usage(tmp_path):
    commands = "debug reference capture generate compare replay show import export bench doctor"
    for command in commands.split():
        assert "usage" in ok(command, "--help").stdout.lower(), command
    ok("--version")
    assert lockstep().returncode == 2
    assert lockstep("frobnicate").returncode == 2
    assert lockstep("capture", TINY, "--tokens", prompt(3, 2048), "--chunk", 0, cwd=tmp_path).returncode == 2
