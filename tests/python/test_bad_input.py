"""Bad input through the command line: exit code 2, one clear message, nothing half-written, no crash.

This file also runs under ASan.
"""

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from lockstep.trace import TraceWriter
from programs import LOCKSTEP, TINY, lockstep

TOKENS = ("--tokens", "1,2,3")


def refuse(*arguments: object, says: str | tuple[str, ...], creates: Path | None = None, **options) -> str:
    """The command must end with 2 and a message on stderr that holds all of `says`."""
    done = lockstep(*arguments, **options)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    for text in (says,) if isinstance(says, str) else says:
        assert text in done.stderr, done.stderr
    assert "Sanitizer" not in done.stderr and "terminate called" not in done.stderr
    if creates is not None:
        assert not (creates / "trace.json").exists()
    return done.stderr


# --- Checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    """A copy of the bundled model that a test may damage."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def edit_config(model: Path, remove: tuple[str, ...] = (), **changes: object) -> None:
    config = json.loads((model / "config.json").read_text()) | changes
    (model / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in remove}))


def read_weights(model: Path) -> tuple[dict, bytes]:
    data = (model / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_weights(model: Path, header: dict | bytes, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def change_entry(**changes):
    def change(header, data):
        header[Q_PROJ] = header[Q_PROJ] | changes
        return header, data

    return change


def transposed(header, data):
    header[Q_PROJ]["shape"].reverse()
    return header, data


def without_weight(header, data):
    """Another name for the weight: its data stay, so that only the name is missing."""
    header["model.layers.1.self_attn.other.weight"] = header.pop(Q_PROJ)
    return header, data


def overlapping(header, data):
    begin, end = header[Q_PROJ]["data_offsets"]
    header[Q_PROJ]["data_offsets"] = [begin - 2, end - 2]
    return header, data


WEIGHTS = {
    "wrong dtype": (change_entry(dtype="I16"), (Q_PROJ, "I16")),
    "unknown dtype": (change_entry(dtype="Q4"), (Q_PROJ, "dtype")),
    "transposed": (transposed, (Q_PROJ, "transposed")),
    "wrong shape": (change_entry(shape=[144, 384]), (Q_PROJ, "expected", "found")),
    "missing": (without_weight, Q_PROJ),
    "overlap": (overlapping, Q_PROJ),
    "out of range": (change_entry(data_offsets=[0, 1 << 60]), Q_PROJ),
    "backwards": (change_entry(data_offsets=[100, 0]), Q_PROJ),
    "overflow": (change_entry(shape=[1 << 40, 1 << 40]), Q_PROJ),
    "negative": (change_entry(shape=[-1, 192]), Q_PROJ),
    "truncated": (lambda header, data: (header, data[:-1000]), "truncated"),
    "tail": (lambda header, data: (header, data + b"1234"), "model.safetensors"),
}


@pytest.mark.parametrize("fault", WEIGHTS)
def test_damaged_weights(model, tmp_path, fault):
    change, says = WEIGHTS[fault]
    write_weights(model, *change(*read_weights(model)))
    refuse("capture", model, *TOKENS, "--out", tmp_path / "out", says=says, creates=tmp_path / "out")


def test_damaged_weight_files(model, tmp_path):
    header, data = read_weights(model)
    write_weights(model, header, data, length=1 << 40)
    refuse("capture", model, *TOKENS, says="header", cwd=tmp_path)
    write_weights(model, b"{not json", data)
    refuse("capture", model, *TOKENS, says="JSON", cwd=tmp_path)
    write_weights(model, b'{"a":' * 100_000, data)
    refuse("capture", model, *TOKENS, says="model.safetensors", cwd=tmp_path)
    (model / "model.safetensors").write_bytes(b"abc")
    refuse("capture", model, *TOKENS, says="truncated", cwd=tmp_path)
    (model / "model.safetensors").unlink()
    refuse("capture", model, *TOKENS, says="model.safetensors", cwd=tmp_path)
    refuse("capture", tmp_path / "nowhere", *TOKENS, says="nowhere", cwd=tmp_path)
    assert not (tmp_path / "cpp.trace").exists()


CONFIGS = {
    "model_type": ({"model_type": "llama"}, ("model_type", "qwen3", "llama")),
    "theta": ({"remove": ("rope_theta", "rope_parameters")}, "rope_theta"),
    "scaling": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}, "yarn"),
    "old scaling": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling"),
    "window": ({"use_sliding_window": True, "sliding_window": 128}, "sliding_window"),
    "layers": ({"layer_types": ["sliding_attention"] * 5}, "sliding_attention"),
    "bias": ({"attention_bias": True}, "attention_bias"),
    "negative": ({"hidden_size": -1}, "hidden_size"),
    "text": ({"hidden_size": "192"}, "hidden_size"),
    "huge": ({"vocab_size": 1 << 62}, "vocab_size"),
    "groups": ({"num_key_value_heads": 5}, "num_key_value_heads"),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_config(model, tmp_path, fault):
    changes, says = CONFIGS[fault]
    edit_config(model, **changes)
    refuse("capture", model, *TOKENS, "--out", tmp_path / "out", says=says, creates=tmp_path / "out")


def test_config_that_is_no_json(model, tmp_path):
    (model / "config.json").write_text('{"model_type": ')
    refuse("capture", model, *TOKENS, says=("config.json", "JSON"), cwd=tmp_path)
    (model / "config.json").write_bytes(b'{"a": "\xff\xfe"}')
    refuse("capture", model, *TOKENS, says="config.json", cwd=tmp_path)


# --- Prompts -------------------------------------------------------------------------------------------------------

PROMPTS = {
    "out of range": (("--tokens", "1,2048"), "2048"),
    "negative": (("--tokens", "1,-5"), "--tokens"),
    "no number": (("--tokens", "1,x"), "--tokens"),
    "empty ids": (("--tokens", ""), "--tokens"),
    "too long": (("--tokens", ",".join(["1"] * 4097)), "max_position_embeddings"),
    "decoded too long": (("--tokens", ",".join(["1"] * 4096), "--decode", "1"), "max_position_embeddings"),
    "two ways": (("--tokens", "1", "--input", "x"), "--tokens"),
    "no file": (("--input-embeddings", "nowhere.npy"), "nowhere.npy"),
    "unknown option": (("--tokens", "1", "--frobnicate"), "frobnicate"),
    "unknown dtype": (("--tokens", "1", "--dtype", "q4"), "--dtype"),
    "bad selection": (("--tokens", "1", "--layers", "3-1"), "layers"),
    "too many layers": (("--tokens", "1", "--num-layers", "99"), "99"),
}


@pytest.mark.parametrize("fault", PROMPTS)
def test_prompts(tmp_path, fault):
    options, says = PROMPTS[fault]
    refuse("capture", TINY, *options, "--out", tmp_path / "out", says=says, creates=tmp_path / "out")


def test_embeddings_of_the_wrong_kind(tmp_path):
    cases = {
        "shape": np.zeros((3, 7), np.float32),
        "ints": np.zeros((3, 192), np.int64),
        "order": np.asfortranarray(np.ones((3, 192), np.float32)),
    }
    for name, array in cases.items():
        np.save(tmp_path / f"{name}.npy", array)
        refuse("capture", TINY, "--input-embeddings", tmp_path / f"{name}.npy", says=name, cwd=tmp_path)
    whole = (tmp_path / "shape.npy").read_bytes()
    for length in (0, 5, 9, 40, len(whole) - 3):
        (tmp_path / "cut.npy").write_bytes(whole[:length])
        refuse("capture", TINY, "--input-embeddings", tmp_path / "cut.npy", says="cut.npy", cwd=tmp_path)


@pytest.mark.parametrize("command", ["capture", "debug"])
def test_text_prompts(tmp_path, command):
    refuse(command, TINY, "--input", "", says="empty", cwd=tmp_path)
    done = subprocess.run(
        [LOCKSTEP, command, TINY, b"--input", b"\xff\xfe"], cwd=tmp_path, capture_output=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2 and b"UTF-8" in done.stderr, done.stderr
    (tmp_path / "prompts.txt").write_bytes(b"fine\n\xff\n")
    refuse(command, TINY, "--input-file", tmp_path / "prompts.txt", says="UTF-8", cwd=tmp_path)
    assert not list(tmp_path.glob("**/trace.json"))


def test_prompts_without_a_tokenizer(model, tmp_path):
    """Ids need none."""
    refuse("generate", tmp_path / "nowhere", "--prompt", "x", says=("nowhere: expected", "no such directory"))
    (model / "tokenizer.json").unlink()
    for command, option in (("capture", "--input"), ("debug", "--input"), ("generate", "--prompt")):
        way_out = () if command == "generate" else ("--tokens 1,2,3",)
        refuse(command, model, option, "x", says=("tokenizer.json", *way_out), cwd=tmp_path)
    (model / "tokenizer.json").write_text("{}")
    refuse("capture", model, "--input", "x", says="tokenizer.json", cwd=tmp_path)
    assert lockstep("capture", model, *TOKENS, cwd=tmp_path).returncode == 0


# --- Generating ----------------------------------------------------------------------------------------------------

DRAWN = ("--prompt", "x", "--temperature", "1")
GENERATE = {
    "no prompt": ((), ("--prompt", "found 0")),
    "two prompts": (("--prompt", "x", "--tokens", "1"), ("--prompt", "found 2")),
    "empty prompt": (("--prompt", ""), "--prompt"),
    "no file": (("--prompt-file", "nowhere.txt"), ("nowhere.txt", "No such file")),
    "a directory": (("--prompt-file", "/"), ("/: expected", "directory")),
    "an empty file": (("--prompt-file", "/dev/null"), ("--prompt-file", "empty")),
    "no number": (("--tokens", "1,x"), "--tokens"),
    "out of range": (("--tokens", "1,2048"), "2048"),
    "too long": (("--tokens", ",".join(["1"] * 4097)), ("max_position_embeddings", "4096", "4097")),
    "unknown dtype": (("--prompt", "x", "--dtype", "q4"), "--dtype"),
    "too many layers": (("--prompt", "x", "--num-layers", "99"), "99"),
    "no tokens": (("--prompt", "x", "--max-tokens", "0"), "--max-tokens"),
    "tokens below 0": (("--prompt", "x", "--max-tokens", "-5"), "--max-tokens"),
    "empty stop string": (("--prompt", "x", "--stop", ""), "stop"),
    "chat of ids": (("--tokens", "1", "--chat"), "--chat"),
    "thinking without chat": (("--prompt", "x", "--no-thinking"), "--chat"),
    "temperature": (("--prompt", "x", "--temperature", "-1"), "temperature"),
    "temperature nan": (("--prompt", "x", "--temperature", "nan"), "temperature"),
    "temperature inf": (("--prompt", "x", "--temperature", "inf"), "temperature"),
    "temperature text": (("--prompt", "x", "--temperature", "warm"), "temperature"),
    "top-k": ((*DRAWN, "--top-k", "-1"), "top-k"),
    "top-p 0": ((*DRAWN, "--top-p", "0"), "top-p"),
    "top-p 1.5": ((*DRAWN, "--top-p", "1.5"), "top-p"),
    "top-p nan": ((*DRAWN, "--top-p", "nan"), "top-p"),
    "min-p": ((*DRAWN, "--min-p", "1.01"), "min-p"),
    "min-p below 0": ((*DRAWN, "--min-p", "-0.1"), "min-p"),
    "penalty 0": ((*DRAWN, "--repetition-penalty", "0"), "repetition penalty"),
    "penalty nan": (("--prompt", "x", "--repetition-penalty", "nan"), "repetition penalty"),
    "seed below 0": ((*DRAWN, "--seed", "-1"), "--seed"),
    "seed too large": ((*DRAWN, "--seed", str(2**64)), "--seed"),
    "seed of nothing": (("--prompt", "x", "--seed", "1"), ("--seed", "--temperature")),
    "top-k of nothing": (("--prompt", "x", "--temperature", "0", "--top-k", "5"), ("--top-k", "--temperature")),
    "top-p of nothing": (("--prompt", "x", "--top-p", "0.5"), ("--top-p", "--temperature")),
    "min-p of nothing": (("--prompt", "x", "--min-p", "0.5"), ("--min-p", "--temperature")),
}


@pytest.mark.parametrize("fault", GENERATE)
def test_generate(fault):
    options, says = GENERATE[fault]
    assert lockstep("generate", TINY, *options).stdout == ""
    refuse("generate", TINY, *options, says=says)


def test_generate_from_no_utf8(tmp_path):
    for options in ((b"--prompt", b"\xc3("), (b"--prompt", b"x", b"--stop", b"\xff")):
        done = subprocess.run([LOCKSTEP, b"generate", TINY, *options], capture_output=True, check=False)
        assert done.returncode == 2 and b"UTF-8" in done.stderr, done.stderr
    (tmp_path / "prompt.txt").write_bytes(b"fine\n\xff\n")
    refuse("generate", TINY, "--prompt-file", tmp_path / "prompt.txt", says=("prompt.txt", "UTF-8"))


def test_generate_with_damaged_files(model):
    (model / "generation_config.json").write_text('{"eos_token_id": "<|im_end|>"}')
    refuse("generate", model, "--prompt", "x", says=("generation_config.json", "eos_token_id"))
    (model / "generation_config.json").write_text("{")
    refuse("generate", model, "--prompt", "x", says="generation_config.json")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = []
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    (model / "generation_config.json").unlink()
    refuse("generate", model, "--prompt", "x", "--chat", says=("--chat", "<|im_start|>"))


# --- Traces --------------------------------------------------------------------------------------------------------

CONFIG = {"hidden_size": 8, "num_hidden_layers": 1}


def write_trace(path: Path, ids=(1, 2, 3), config=CONFIG, points=("input_embeddings", "logits")) -> Path:
    with TraceWriter(path, producer="test", config=config) as trace:
        positions = list(range(len(ids)))
        with trace.begin_step(list(ids), positions, [0] * len(ids)) as step:
            for i, name in enumerate(points):
                step.record(name, np.full((len(ids), 8), i + 1, np.float32))
    return path


@pytest.fixture
def good(tmp_path):
    return write_trace(tmp_path / "good")


def edit_meta(trace: Path, **changes: object) -> None:
    meta = json.loads((trace / "trace.json").read_text()) | changes
    (trace / "trace.json").write_text(json.dumps(meta))


def test_traces_that_cannot_be_compared(good, tmp_path):
    assert lockstep("compare", good, good).returncode == 0
    other = write_trace(tmp_path / "tokens", ids=(1, 9, 3))
    refuse("compare", good, other, says=("position 1", "2", "9"))
    other = write_trace(tmp_path / "config", config=CONFIG | {"hidden_size": 16})
    refuse("compare", good, other, says=("hidden_size", "8", "16"))
    other = write_trace(tmp_path / "points", points=("mine",))
    refuse("compare", good, other, says="no")
    other = write_trace(tmp_path / "newer")
    edit_meta(other, version=2)
    refuse("compare", good, other, says=("version", "2"))
    edit_meta(other, version=1, format="something else")
    refuse("compare", good, other, says="format")
    refuse("compare", good, tmp_path / "nowhere", says="nowhere")
    refuse("compare", good, says="candidate")
    refuse("compare", good, good, "--atol", "-1", says="--atol")
    refuse("compare", good, good, "--pair", "1", says="--pair")
    refuse("compare", good, good, "--json", tmp_path / "nowhere" / "x.json", says="x.json")


def test_a_trace_that_is_being_written(good, tmp_path):
    with TraceWriter(tmp_path / "open", producer="test", config=CONFIG) as trace:
        with trace.begin_step([1, 2, 3], [0, 1, 2], [0, 0, 0]) as step:
            step.record("logits", np.zeros((3, 8), np.float32))
        refuse("compare", good, tmp_path / "open", says="being written")
        refuse("show", tmp_path / "open", says="being written")
        refuse("show", tmp_path / "open", "--repair", says="open")
        refuse("capture", TINY, *TOKENS, "--out", tmp_path / "open", says="open")


STEP = "step-000000.safetensors"


def test_damaged_traces(good, tmp_path):
    data = (good / STEP).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    damage = {
        "short": data[:5],
        "cut": data[:-3],
        "header": struct.pack("<Q", 1 << 62) + data[8:],
        "json": data[:8] + b"!" * length + data[8 + length :],
        "shape": data.replace(b'"shape":[3,8]', b'"shape":[8,9]'),
        "dtype": data.replace(b'"dtype":"F32"', b'"dtype":"X32"'),
        "rows": data.replace(b'"positions"', b'"pOsitions"'),
    }
    for name, damaged in damage.items():
        assert damaged != data
        copy = Path(shutil.copytree(good, tmp_path / name))
        (copy / STEP).write_bytes(damaged)
        refuse("compare", good, copy, says=name)
        refuse("show", copy, says=name)
    (tmp_path / "rows" / STEP).unlink()
    refuse("compare", good, tmp_path / "rows", says=STEP)
    for text in ("", "[]", "{", '{"format": "lockstep-trace", "version": 1, "steps": [{"files": [{"file": "../x"}]}]}'):
        (tmp_path / "cut" / "trace.json").write_text(text)
        refuse("compare", good, tmp_path / "cut", says="cut")


# --- Where output can not be written -------------------------------------------------------------------------------


def test_unwritable_directories(tmp_path):
    (tmp_path / "file").write_text("x")
    refuse("capture", TINY, *TOKENS, "--out", tmp_path / "file" / "x", says="file")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    refuse("capture", TINY, *TOKENS, "--out", full, says="full")
    assert (full / "thesis.txt").read_text() == "mine" and len(list(full.iterdir())) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small tmpfs")
def test_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        refuse("capture", TINY, "--tokens", ",".join(["7"] * 100), "--out", disk / "out", says=("disk/out", "bytes"))
        # What was finished before stays readable.
        done = lockstep("show", disk / "out")
        assert done.returncode == 0 and "input_embeddings" in done.stdout
        assert "No space" in done.stdout
    finally:
        subprocess.run(["umount", disk], check=True)


def test_python_that_is_not_there(tmp_path):
    refuse("debug", TINY, "--python", tmp_path / "python", says="--python", cwd=tmp_path)
    refuse("debug", TINY, *TOKENS, says="LOCKSTEP_PYTHON", env={"LOCKSTEP_PYTHON": "/nowhere/python"}, cwd=tmp_path)
    refuse("debug", TINY, "--skip-python", says="--skip-python", cwd=tmp_path)
