"""Traces: round trips, selections, hostile files, crashes and full disks."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lockstep import LockstepError, Selection, TraceWriter, load, trace_layout, trace_step_file
from lockstep import trace as module
from lockstep.points import names_for, parse_name, point_name, points
from safetensors.numpy import load_file as official_load
from safetensors.torch import load_file as official_load_torch

SOURCE = str(Path(module.__file__).parents[1])
DTYPES = [
    *(
        "bool",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "uint32",
        "int32",
        "uint64",
        "int64",
        "float16",
        "float32",
        "float64",
    ),
    *("bfloat16", "float8_e4m3fn", "float8_e5m2"),
]


@pytest.fixture(autouse=True)
def no_selection(monkeypatch):
    for key in ("POINTS", "LAYERS", "STEPS", "ROWS"):
        monkeypatch.delenv(f"LOCKSTEP_{key}", raising=False)


def writer(path, **kw) -> TraceWriter:
    return TraceWriter(path, producer="test", config={"hidden_size": 4}, **kw)


def begin(trace, tokens=3, start=0, sequence=0, **kw):
    """A step of one sequence: positions start, start + 1, …"""
    return trace.begin_step(
        np.arange(tokens) + 100 + start, np.arange(start, start + tokens), np.full(tokens, sequence), **kw
    )


def small_trace(path, **kw) -> Path:
    with writer(path, **kw) as trace, begin(trace) as step:
        step.record("layer_0_attn_q_rope", np.arange(24, dtype=np.float32).reshape(3, 2, 4))
        step.record("logits", np.arange(5, dtype=np.float32)[None], rows=[2])
    return Path(path)


def step_file(path, index=0) -> Path:
    return Path(path) / f"step-{index:06d}.safetensors"


def rewrite_json(path, change) -> None:
    """Applies `change` to the parsed trace.json."""
    file = Path(path) / "trace.json"
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))


# --- Points -----------------------------------------------------------------------------------------------------------


def test_point_names():
    assert point_name("attn_q_rope", 3) == "layer_3_attn_q_rope"
    assert point_name("logits") == "logits"
    assert parse_name("layer_3_attn_q_rope") == ("attn_q_rope", 3)
    assert parse_name("layer_x_y") == ("layer_x_y", None)
    assert names_for(2)[0] == "input_embeddings" and names_for(2)[-1] == "logits"
    assert "layer_1_attn_probs" in names_for(2, on_request=True)
    assert "layer_1_attn_probs" not in names_for(2)
    per_layer = sum(point.per_layer and not point.on_request for point in points().values())
    assert len(names_for(5)) == 5 * per_layer + 3


@pytest.mark.parametrize("arguments", [("nonsense",), ("logits", 3), ("attn_q_rope",), ("attn_q_rope", -1)])
def test_point_name_refuses(arguments):
    with pytest.raises(LockstepError):
        point_name(*arguments)


# --- Round trips ------------------------------------------------------------------------------------------------------


def random_torch(dtype: str, shape, seed=0) -> torch.Tensor:
    """Random bits of a torch dtype: NaNs, infinities and subnormals included."""
    kind = getattr(torch, dtype)
    if kind == torch.bool:
        return torch.from_numpy(np.random.default_rng(seed).integers(0, 2, shape).astype(bool))
    size = torch.empty(0, dtype=kind).element_size()
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, size), dtype=np.uint8)
    return torch.from_numpy(raw).view(kind).reshape(shape) if raw.size else torch.empty(tuple(shape), dtype=kind)


def bits(array) -> bytes:
    """The elements' bytes in row-major order."""
    if isinstance(array, torch.Tensor):
        flat = torch.empty(array.shape, dtype=array.dtype).copy_(array).reshape(-1)
        return flat.view(torch.uint8).numpy().tobytes() if array.numel() else b""
    return np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 2, 4), (3, 0, 4), (3, 1, 1, 2)])
def test_every_dtype_from_torch_and_numpy(tmp_path, dtype, shape):
    tensor = random_torch(dtype, shape)
    numpy_dtype = np.dtype(getattr(ml_dtypes, dtype) if dtype.startswith(("bf", "float8")) else dtype)
    array = np.frombuffer(bits(tensor), numpy_dtype).reshape(shape)
    with writer(tmp_path / "t") as trace, begin(trace) as step:
        step.record("odd", np.zeros((3, 1), np.int8))  # what follows is unaligned
        step.record("from_torch", tensor)
        step.record("from_numpy", array)
    tensors = load(tmp_path / "t").steps[0].tensors
    for name in ("from_torch", "from_numpy"):
        found = tensors[name]
        assert found.shape == shape and found.numpy().dtype == numpy_dtype and found.torch().dtype == tensor.dtype
        assert found.numpy().flags.aligned and found.torch().data_ptr() % tensor.element_size() == 0
        assert bits(found.numpy()) == bits(found.torch()) == bits(tensor)
    official = official_load_torch(step_file(tmp_path / "t"))
    assert bits(official["from_torch"]) == bits(tensor) and official["from_torch"].dtype == tensor.dtype


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_strides(data):
    """Any permutation, step and expansion of a torch or numpy array arrives as its logical values."""
    shape = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    dtype = data.draw(st.sampled_from(["float32", "bfloat16", "float16", "int8"]))
    tensor = random_torch(dtype, shape, data.draw(st.integers(0, 99)))
    tensor = tensor.permute(data.draw(st.permutations(range(len(shape)))))
    for axis in range(tensor.dim()):
        tensor = tensor.narrow(axis, tensor.shape[axis] // 3, tensor.shape[axis] - tensor.shape[axis] // 3)
        if data.draw(st.booleans()):
            tensor = tensor[(slice(None),) * axis + (slice(None, None, 2),)]
    if data.draw(st.booleans()):
        tensor = tensor.unsqueeze(-1).expand(*tensor.shape, 2)
    with tempfile.TemporaryDirectory() as folder:
        with writer(Path(folder) / "t") as trace, begin(trace, tokens=tensor.shape[0]) as step:
            step.record("torch", tensor)
            if dtype != "bfloat16":
                step.record("numpy", tensor.numpy())
                step.record("reversed", tensor.numpy()[..., ::-1])
        tensors = load(Path(folder) / "t").steps[0].tensors
        assert bits(tensors["torch"].torch()) == bits(tensor)
        if dtype != "bfloat16":
            assert bits(tensors["numpy"].numpy()) == bits(tensor)
            assert bits(tensors["reversed"].numpy()) == bits(tensor.numpy()[..., ::-1])


def test_torch_views_that_are_lazy(tmp_path):
    """A parameter that wants gradients, and a tensor with the lazy negative bit."""
    lazy = torch._neg_view(torch.tensor([2.0, -4.0]))
    assert lazy.is_neg() and lazy.is_contiguous()
    with writer(tmp_path / "t") as trace, begin(trace, tokens=2) as step:
        step.record("parameter", torch.nn.Parameter(torch.ones(2, 3)) * 2)
        step.record("negative", lazy)
    tensors = load(tmp_path / "t").steps[0].tensors
    assert tensors["parameter"].numpy().tolist() == [[2] * 3] * 2
    assert tensors["negative"].numpy().tolist() == [-2, 4]


def test_big_endian_numpy(tmp_path):
    with writer(tmp_path / "t") as trace, begin(trace) as step:
        step.record("x", np.array([1.5, 2, 3], ">f4"))
    assert load(tmp_path / "t").steps[0].tensors["x"].numpy().tolist() == [1.5, 2, 3]


def test_views_are_views_and_read_only(tmp_path):
    """An aligned tensor is not copied; what torch does to its own stays off the file."""
    tensor = load(small_trace(tmp_path / "t")).steps[0].tensors["layer_0_attn_q_rope"]
    view = tensor.numpy()
    assert not view.flags.owndata and not view.flags.writeable and type(view) is np.ndarray
    tensor.torch().zero_()
    assert tensor.numpy()[2, 1, 3] == 23


def test_bf16_without_ml_dtypes_is_float32(tmp_path, monkeypatch):
    tensor = random_torch("bfloat16", (3, 5))
    with writer(tmp_path / "t") as trace, begin(trace) as step:
        step.record("x", tensor)
        step.record("f8", random_torch("float8_e5m2", (3, 5)))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    tensors = load(tmp_path / "t").steps[0].tensors
    assert tensors["x"].numpy().dtype == np.float32
    np.testing.assert_array_equal(tensors["x"].numpy(), tensor.float().numpy())
    with pytest.raises(LockstepError, match="ml_dtypes"):
        tensors["f8"].numpy()


def test_import_needs_no_torch():
    code = "import sys, lockstep; lockstep.TraceWriter; assert not {'torch', 'ml_dtypes'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": SOURCE})


def test_empty_step(tmp_path):
    with writer(tmp_path / "t") as trace, begin(trace, tokens=0, phase="decode") as step:
        step.record("x", np.zeros((0, 7), np.float16))
    found = load(tmp_path / "t")
    assert found.steps[0].tensors["x"].numpy().shape == (0, 7)
    assert found.steps[0].phase == "decode" and found.sequences() == [] and found.rows("x") == {}
    official_load(step_file(tmp_path / "t"))


def test_meta(tmp_path):
    weights = {"model.norm.weight": {"dtype": "F32", "shape": [4], "hash": "0" * 16}}
    overrides = {"*_output": {"storage": "F32"}}
    promises = {"points": ["logits"], "not_observable": ["*_scores"], "weights": weights}
    with writer(tmp_path / "t", version="3", storage="BF16", cache="F16", overrides=overrides, **promises):
        pass
    meta = load(tmp_path / "t").meta
    assert meta["producer"] == {"name": "test", "version": "3"} and meta["closed"] is True
    assert meta["model"] == {"type": "qwen3", "config": {"hidden_size": 4}}
    assert meta["arithmetic"] == {
        "storage": "BF16", "operands": "BF16", "accumulate": "F32", "cache": "F16",
        "overrides": {"*_output": {"storage": "F32"}},
    }  # fmt: skip
    assert meta["points"] == ["logits"] and meta["not_observable"] == ["*_scores"] and meta["weights"] == weights


def test_the_join(tmp_path):
    """Chunked prefill of two sequences with padding, decode, and a recomputation that wins."""
    with writer(tmp_path / "t") as trace:
        with trace.begin_step([10, 11, -1, 20], [0, 1, 0, 0], [0, 0, -1, 1]) as step:
            step.record("x", np.array([[0.0], [1], [99], [10]], np.float32))
        with trace.begin_step([12, 21], [2, 1], [0, 1], phase="decode") as step:
            step.record("x", np.array([[11], [2.0]], np.float32), rows=[1, 0])
        with trace.begin_step([13], [2], [0], phase="decode") as step:
            step.record("x", np.array([[2.5]], np.float32))
    found = load(tmp_path / "t")
    assert found.sequences() == [[10, 11, 13], [20, 21]]
    assert {key: row.item() for key, row in found.rows("x").items()} == {
        (0, 0): 0.0, (0, 1): 1.0, (0, 2): 2.5, (1, 0): 10.0, (1, 1): 11.0
    }  # fmt: skip
    assert found.steps[1].tensors["x"].rows.tolist() == [1, 0]
    assert found.steps[0].tensors["x"].rows.tolist() == [0, 1, 2, 3]
    with pytest.raises(LockstepError, match="no tensor 'y'"):
        found.rows("y")


def test_token_axis_elsewhere(tmp_path):
    tensors = {"*attn_q_rope": {"axes": ["q_head", "token", "head_dim"]}}
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with writer(tmp_path / "t", tensors=tensors, selection=Selection(rows="1-2")) as trace, begin(trace) as step:
        step.record("layer_0_attn_q_rope", array)
        step.record("layer_0_attn_k_rope", torch.from_numpy(array).transpose(0, 1))
    found = load(tmp_path / "t")
    assert found.steps[0].tensors["layer_0_attn_q_rope"].shape == (2, 2, 4)
    for name in ("layer_0_attn_q_rope", "layer_0_attn_k_rope"):
        rows = found.rows(name)
        assert list(rows) == [(0, 1), (0, 2)]
        np.testing.assert_array_equal(rows[0, 2], array[:, 2])


def test_the_narrowest_pattern_wins():
    """Independently of the order in trace.json, and as in the C++ reader."""
    patterns = {"*": 0, "*_q_rope": 1, "layer_1_*": 2, "layer_*_q_rope": 3, "layer_2_q_rope": 4}
    for order in (list(patterns), list(patterns)[::-1]):
        found = {
            name: trace_layout.entry_for(name, {p: patterns[p] for p in order}) for name in ("x", "layer_1_q_rope")
        }
        assert found == {"x": 0, "layer_1_q_rope": 3}
        assert trace_layout.entry_for("layer_2_q_rope", {"*layer_2_q_rope": 9, **patterns}) == 4
    assert trace_layout.entry_for("x", {"y*": 1}) is None


def test_keys(tmp_path):
    with writer(tmp_path / "t", selection=Selection("attn_probs", rows="last:1")) as trace, begin(trace) as step:
        step.record("layer_0_attn_probs", np.ones((3, 2, 4), np.float32), keys=np.arange(12).reshape(3, 4))
    tensor = load(tmp_path / "t").steps[0].tensors["layer_0_attn_probs"]
    assert tensor.keys.numpy().tolist() == [[8, 9, 10, 11]] and tensor.rows.tolist() == [2]


def test_ranks(tmp_path):
    tensors = {"*q_rope": {"shard": {"axis": "q_head", "count": 2}}}
    with writer(tmp_path / "t", tensors=tensors) as trace:
        for _ in range(2):
            for rank in (0, 1):
                with begin(trace, rank=rank) as step:
                    step.record("layer_0_attn_q_rope", np.full((3, 1, 4), rank, np.float32))
                    step.record(f"only_{rank}", np.full((3, 4), rank, np.float32))
    found = load(tmp_path / "t")
    assert len(found.steps) == 2 and sorted(p.name for p in (tmp_path / "t").glob("step-000001*")) == [
        "step-000001.rank1.safetensors", "step-000001.safetensors"
    ]  # fmt: skip
    assert found.steps[1].ranks[1].tensors["layer_0_attn_q_rope"].numpy()[0, 0, 0] == 1
    assert found.rows("only_1")[0, 0][0] == 1
    with pytest.raises(LockstepError, match="several ranks"):
        found.rows("layer_0_attn_q_rope")


def test_a_whole_rank_in_its_own_directory(tmp_path):
    with writer(tmp_path / "t", rank=3) as trace, begin(trace) as step:
        step.record("x", np.zeros(3, np.float32))
    found = load(tmp_path / "t")
    assert list(found.steps[0].ranks) == [3] and (tmp_path / "t/step-000000.rank3.safetensors").exists()


def test_continuation_files(tmp_path, monkeypatch):
    """A header region that fills up goes on in further files, each of which any safetensors reader opens."""
    monkeypatch.setattr(trace_step_file, "HEADER_BYTES", 2 * 4096)
    names = [f"layer_{i}_{'x' * random.Random(i).randrange(1, 300)}" for i in range(120)]
    with writer(tmp_path / "t") as trace, begin(trace) as step:
        for i, name in enumerate(names):
            step.record(name, np.full((3, 2), i, np.float32), rows=[2, 1, 0] if i % 3 else None)
    files = [entry["file"] for entry in load(tmp_path / "t").meta["steps"][0]["files"]]
    assert files[:2] == ["step-000000.safetensors", "step-000000.1.safetensors"] and len(files) > 5
    tensors = load(tmp_path / "t").steps[0].tensors
    assert list(tensors) == names
    assert all(tensors[name].numpy()[0, 0] == i for i, name in enumerate(names))
    merged = {name for file in files for name in official_load(tmp_path / "t" / file)}
    assert set(names) < merged


def test_entries_do_not_cross_pages(tmp_path, monkeypatch):
    """Each header entry is one write inside one page; this is what makes it atomic."""
    spans, real = [], os.pwrite

    def spy(fd, data, offset):
        if bytes(data[:2]) == b',"':
            spans.append((offset, offset + len(data)))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", spy)
    with writer(tmp_path / "t") as trace, begin(trace) as step:
        for i in range(300):
            step.record(f"{i}_{'é' * (i % 37)}", np.zeros((3, 1), np.int8))
    assert len(spans) == 301 and any(begin % 4096 == 0 for begin, _ in spans)
    assert all(begin // 4096 == (end - 1) // 4096 for begin, end in spans)
    assert len(official_load(step_file(tmp_path / "t"))) == 303


def test_an_entry_that_fills_the_region(tmp_path, monkeypatch):
    """To the last byte before the closing brace; one byte more goes on in a second file."""
    monkeypatch.setattr(trace_step_file, "HEADER_BYTES", 2 * 4096)
    most = 4096 - 1 - len(b',"":{"dtype":"I8","shape":[3],"data_offsets":[36,39]}')
    for length, num_files in ((most - 1, 1), (most, 1), (most + 1, 2)):
        with writer(tmp_path / "t") as trace, begin(trace) as step:
            step.record("x" * length, np.zeros(3, np.int8))
        found = load(tmp_path / "t")
        assert list(found.steps[0].tensors) == ["x" * length]
        assert len(found.meta["steps"][0]["files"]) == num_files


def test_threads(tmp_path):
    def run(rank):
        for _ in range(10):
            with begin(trace, rank=rank) as step:
                for i in range(5):
                    step.record(f"layer_{i}_x", np.full((3, 10), rank, np.float32))

    with writer(tmp_path / "t") as trace:
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    found = load(tmp_path / "t")
    assert len(found.steps) == 10 and all(sorted(step.ranks) == [0, 1, 2, 3] for step in found.steps)
    assert all((s.ranks[r].tensors["layer_4_x"].numpy() == r).all() for s in found.steps for r in range(4))


# --- Mistakes of the caller -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "array", "extra", "message"),
    [
        ("x", np.zeros((2, 4)), {}, "expected 3 rows"),
        ("x", np.zeros(()), {}, "scalar"),
        ("x", np.zeros((1, 4)), {"rows": [3]}, "indices into the step's 3 tokens, found 3"),
        ("x", np.zeros((2, 4)), {"rows": [1, 1]}, "twice"),
        ("x", np.zeros((2, 4)), {"rows": [0.5, 1]}, "integers"),
        ("x", np.zeros((2, 4)), {"rows": [[1], [1, 2]]}, "integers"),
        ("x", np.zeros((2, 4)), {"rows": [0]}, "expected 1 rows"),
        ("x", np.zeros((3, 2, 4)), {"keys": [[0, 1, 2]] * 3}, "keys:x"),
        ("x", np.zeros((3, 2, 4)), {"keys": [0, 1, 2]}, "2 axes"),
        ("x", np.zeros(3, complex), {}, "complex128 cannot be stored"),
        ("x", np.array(["a", "b", "c"]), {}, "cannot be stored"),
        ("x", [1.0, 2.0, 3.0], {}, "found list"),
        ("x", torch.zeros(3, 2).to_sparse(), {}, "dense"),
        ("x", torch.zeros(3, 2, device="meta"), {}, "meta"),
        ("x", torch.zeros(3, dtype=torch.complex64), {}, "complex64 cannot be stored"),
        ("positions", np.zeros(3), {}, "taken by the format"),
        ("rows:x", np.zeros(3), {}, "taken by the format"),
        ("__metadata__", np.zeros(3), {}, "taken by the format"),
        ("", np.zeros(3), {}, "expected a name"),
        ("a\nb", np.zeros(3), {}, "control"),
        ("\ud800", np.zeros(3), {}, "surrogates"),
        ("x" * 5000, np.zeros(3), {}, "too long"),
        ("once", np.zeros(3), {}, "recorded twice"),
    ],
)
def test_record_refuses(tmp_path, name, array, extra, message):
    """The call fails, trace.json says so, and the trace is otherwise whole."""
    with writer(tmp_path / "t") as trace, begin(trace) as step:
        step.record("once", np.ones(3))
        with pytest.raises(LockstepError, match=message):
            step.record(name, array, **extra)
        step.record("after", np.ones(3))
    found = load(tmp_path / "t")
    assert list(found.steps[0].tensors) == ["once", "after"]
    assert len(found.meta["errors"]) == 1 and message in found.meta["errors"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [0, 1], [0]), "sequences"),
        (([1], [0, 1], [0, 0]), "input_ids"),
        ((None, [0, -1], [0, 0]), "positions >= 0, found -1"),
        ((None, [0, 1], [0, -2]), "sequences: expected values >= -1"),
        (([-2, 1], [0, 1], [0, 0]), "input_ids: expected values >= -1"),
        ((None, [0, 2**31], [0, 0]), "32-bit"),
        ((None, [[0, 1]], [[0, 0]]), "1 axes"),
        ((None, [0.0, 1.0], [0, 0]), "integers"),
        ((None, [0], [0], "prefil"), "prefill"),
        ((None, [0], [0], "decode", -1), "rank"),
    ],
)
def test_begin_step_refuses(tmp_path, arguments, message):
    with writer(tmp_path / "t") as trace:
        with pytest.raises(LockstepError, match=message):
            trace.begin_step(*arguments)
        with begin(trace):
            pass
    found = load(tmp_path / "t")
    assert len(found.steps) == 1 and len(found.meta["errors"]) == 1


def test_config_must_be_json(tmp_path):
    for config in ({"a": float("nan")}, {"a": torch.float32}):
        with pytest.raises(LockstepError, match="JSON"):
            TraceWriter(tmp_path / "t", producer="x", config=config)
    assert not (tmp_path / "t").exists()


def test_after_the_end(tmp_path):
    trace = writer(tmp_path / "t")
    step = begin(trace)
    step.end()
    with pytest.raises(LockstepError, match="after the end"):
        step.record("x", np.zeros(3))
    trace.close()
    trace.close()
    with pytest.raises(LockstepError, match="closed"):
        begin(trace)


def test_an_exception_leaves_the_trace_unclosed(tmp_path):
    with pytest.raises(ZeroDivisionError), writer(tmp_path / "t") as trace, begin(trace) as step:
        step.record("x", np.zeros(3))
        raise ZeroDivisionError("boom")
    with pytest.warns(UserWarning, match="not closed"):
        found = load(tmp_path / "t")
    assert "x" in found.steps[0].tensors and found.meta["errors"] == ["stopped by ZeroDivisionError: boom"]


# --- Directories and locks --------------------------------------------------------------------------------------------


def test_an_older_trace_is_replaced_and_other_files_stay(tmp_path):
    with writer(tmp_path / "t") as trace:
        for _ in range(3):
            begin(trace).end()
    (tmp_path / "t/notes.txt").write_text("mine")
    (tmp_path / "t/step-000009.safetensors.tmp").write_text("left by a crash")
    small_trace(tmp_path / "t")
    assert sorted(os.listdir(tmp_path / "t")) == ["notes.txt", "step-000000.safetensors", "trace.json"]
    assert len(load(tmp_path / "t").steps) == 1


@pytest.mark.parametrize(
    ("name", "text"), [("a.txt", "x"), ("trace.json", "{}"), ("trace.json", "["), ("trace.json", '{"format":1}')]
)
def test_other_directories_are_not_touched(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(LockstepError, match=str(tmp_path)):
        writer(tmp_path)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == text


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/below", Path("/proc/nowhere")):
        with pytest.raises(LockstepError, match="cannot make a trace directory"):
            writer(place)


def test_a_read_only_directory():
    """As another user where the tests run as root, who may write anywhere."""
    code = (
        "import os, sys, lockstep, lockstep.trace\n"
        "os.getuid() or os.setuid(65534)\n"
        "try: lockstep.TraceWriter(sys.argv[1], producer='x', config={})\n"
        "except lockstep.LockstepError as error: print('refused:', error)"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o555)
        env = {**os.environ, "PYTHONPATH": SOURCE}
        done = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.startswith(f"refused: {place}/trace.json: cannot write: Permission denied")


def test_a_directory_being_written_is_refused(tmp_path):
    with writer(tmp_path / "t") as trace:
        begin(trace).end()
        for use in (load, writer):
            with pytest.raises(LockstepError, match="being written"):
                use(tmp_path / "t")
    load(tmp_path / "t")
    code = (
        "import lockstep, sys\n"
        "trace = lockstep.TraceWriter(sys.argv[1], producer='x', config={})\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "t")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": SOURCE},
    ) as child:  # fmt: skip
        child.stdout.readline()
        with pytest.raises(LockstepError, match="being written"):
            load(tmp_path / "t")
        child.stdin.close()


def test_a_replaced_trace_is_noticed(tmp_path):
    old = load(small_trace(tmp_path / "t")).steps[0].tensors["logits"]
    keep = open(step_file(tmp_path / "t"), "rb")  # noqa: SIM115  keeps the inode from being used again
    small_trace(tmp_path / "t")
    with pytest.raises(LockstepError, match="replaced"):
        old.numpy()
    keep.close()


# --- Selections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("a*", "abc", True), ("*c", "abc", True), ("a*c", "abc", True), ("*b*", "abc", True), ("*", "", True),
        ("a*a", "a", False), ("abc", "abc", True), ("ab", "abc", False), ("*x*", "abc", False), ("a**c", "ac", True),
        ("*ab*ab*", "abab", True), ("*ab*ab*", "aab", False), ("*ab", "abab", True), ("*ab*b", "ab", False),
        ("a.c", "abc", False),
    ],
)  # fmt: skip
def test_patterns(pattern, name, expected):
    assert module.matches(pattern, name) is expected


@given(st.text("ab*", max_size=8), st.text("ab", max_size=10))
def test_patterns_against_a_slow_twin(pattern, name):
    def slow(p, n):
        if not p:
            return not n
        if p[0] == "*":
            return slow(p[1:], n) or (bool(n) and slow(p, n[1:]))
        return bool(n) and p[0] == n[0] and slow(p[1:], n[1:])

    assert module.matches(pattern, name) == slow(pattern, name)


def test_a_nasty_pattern_is_fast():
    begin_time = time.monotonic()
    assert not module.matches("*a" * 2000 + "b", "a" * 20000)
    assert time.monotonic() - begin_time < 2


@pytest.mark.parametrize(
    ("selection", "name", "step", "expected"),
    [
        ({}, "layer_0_attn_q_rope", 0, True),
        ({}, "mine", 0, True),
        ({}, "layer_0_attn_scores", 0, False),
        ({"points": "*"}, "layer_0_attn_scores", 0, False),
        ({"points": "attn_*"}, "layer_0_attn_probs", 0, False),
        ({"points": "*,attn_scores"}, "layer_0_attn_scores", 0, True),
        ({"points": "*,attn_scores"}, "layer_0_attn_probs", 0, False),
        ({"points": "layer_1_attn_scores"}, "layer_1_attn_scores", 0, True),
        ({"points": "layer_1_attn_scores"}, "layer_0_attn_scores", 0, False),
        ({"points": "attn_*,logits"}, "layer_7_attn_q_rope", 0, True),
        ({"points": "attn_*, logits"}, "logits", 0, True),
        ({"points": "attn_*,logits"}, "final_norm_output", 0, False),
        ({"points": "layer_7_*"}, "layer_7_attn_q_rope", 0, True),
        ({"layers": "0,2-4"}, "layer_3_attn_q_rope", 0, True),
        ({"layers": "0,2-4"}, "layer_1_attn_q_rope", 0, False),
        ({"layers": "0,2-4"}, "logits", 0, True),
        ({"steps": "0,5-7"}, "logits", 6, True),
        ({"steps": "0,5-7"}, "logits", 4, False),
    ],
)
def test_selection_wants(selection, name, step, expected):
    assert Selection(**selection).wants(name, step) is expected


@pytest.mark.parametrize(
    "bad",
    [
        {"layers": "a"},
        {"layers": "3-1"},
        {"steps": "1,,2"},
        {"rows": "last:0"},
        {"rows": "first:3"},
        {"rows": "-1"},
        {"points": ","},
    ],
)
def test_bad_selections(bad):
    with pytest.raises(LockstepError, match=next(iter(bad))):
        Selection(**bad)


def test_selected_rows():
    positions = np.array([0, 1, 2, 0, 1, 7])
    sequences = np.array([0, 0, 0, 1, 1, -1])
    assert Selection().rows(positions, sequences) is None
    assert Selection(rows="last:2").rows(positions, sequences).tolist() == [1, 2, 3, 4]
    assert Selection(rows="0,2-9").rows(positions, sequences).tolist() == [0, 2, 3]
    assert Selection(rows="last:1, 0").rows(positions, sequences).tolist() == [0, 2, 3, 4]
    assert Selection(rows="last:16").rows(np.zeros(0), np.zeros(0)).tolist() == []


def test_selection_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCKSTEP_POINTS", "attn_*,logits")
    monkeypatch.setenv("LOCKSTEP_LAYERS", "1")
    monkeypatch.setenv("LOCKSTEP_STEPS", "1")
    monkeypatch.setenv("LOCKSTEP_ROWS", "last:1")
    with writer(tmp_path / "t") as trace:
        for _ in range(2):
            with begin(trace) as step:
                for name in ("layer_0_attn_q_rope", "layer_1_attn_q_rope", "layer_1_layer_output", "logits"):
                    assert step.wants(name) == (step.index == 1 and name in ("layer_1_attn_q_rope", "logits"))
                    step.record(name, np.arange(3, dtype=np.float32), rows=[0, 2, 1])
    found = load(tmp_path / "t")
    assert found.meta["selection"] == {"points": "attn_*,logits", "layers": "1", "steps": "1", "rows": "last:1"}
    assert sorted(official_load(step_file(tmp_path / "t", 0))) == ["input_ids", "positions", "sequences"]
    assert list(found.steps[1].tensors) == ["layer_1_attn_q_rope", "logits"]
    assert {key: float(row) for key, row in found.rows("logits").items()} == {(0, 2): 1.0}
    monkeypatch.setenv("LOCKSTEP_ROWS", "lots")
    with pytest.raises(LockstepError, match="environment"):
        writer(tmp_path / "t")
    with writer(tmp_path / "t", selection=Selection()):
        pass  # a selection in the call is stronger than the environment


# --- Hostile files ----------------------------------------------------------------------------------------------------


def craft(path, header, data=b"", length=None) -> Path:
    """A trace whose only step file has this header (bytes, or an object) and data."""
    small_trace(path)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    step_file(path).write_bytes(length.to_bytes(8, "little") + text + data)
    return path


def entry(dtype="I32", shape=(1,), offsets=(0, 4)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


POSITIONS = {"positions": entry(), "sequences": entry(offsets=(4, 8))}
HOSTILE = {
    "empty": b"",
    "array": b"[]",
    "not_json": b"{]",
    "not_utf8": b'{"\xff":1}',
    "utf16": "{}".encode("utf-16"),
    "leading_blank": b" {}",
    "deep": b'{"a":' + b"[" * 200000 + b"]" * 200000 + b"}",
    "duplicate": json.dumps({**POSITIONS, "b": entry(offsets=(8, 12))}).replace('"b"', '"positions"').encode(),
    "duplicate_key": json.dumps({**POSITIONS, "a": entry(offsets=(8, 12))})
    .replace('"a": {', '"a": {"shape":[9],')
    .encode(),
    "nan": b'{"a":NaN}',
    "huge_number": b'{"a":' + b"9" * 10000 + b"}",
    "entry_is_list": {"a": []},
    "no_dtype": {"a": {"shape": [1], "data_offsets": [0, 4]}},
    "dtype_unknown": {"a": entry("F4")},
    "dtype_list": {"a": entry(["F32"])},
    "shape_negative": {"a": entry(shape=[-1])},
    "shape_negative_pair": {"a": entry(shape=[-1, -1])},
    "shape_float": {"a": entry(shape=[1.0])},
    "shape_bool": {"a": entry(shape=[True])},
    "shape_text": {"a": {"dtype": "I32", "shape": "1", "data_offsets": [0, 4]}},
    "shape_overflows_to_fit": {"a": entry(shape=[2**62, 2, 2, 1], offsets=(0, 0))},
    "shape_overflow_beside_zero": {**POSITIONS, "a": entry(shape=[1, 0, 2**62, 8], offsets=(8, 8))},
    "too_many_axes": {**POSITIONS, "a": entry(shape=[1] * 65, offsets=(8, 12))},
    "offsets_short": {"a": entry(offsets=(0, 3))},
    "offsets_reversed": {"a": entry(offsets=(4, 0))},
    "offsets_negative": {"a": entry(offsets=(-4, 0))},
    "offsets_three": {"a": entry(offsets=(0, 4, 4))},
    "offsets_beyond": {**POSITIONS, "a": entry(shape=[1, 100], offsets=(8, 408))},
    "offsets_huge": {"a": entry(shape=[2**60], offsets=(0, 2**62))},
    "offsets_overlap": {**POSITIONS, "a": entry(offsets=(4, 8))},
    "offsets_hole": {**POSITIONS, "a": entry(offsets=(12, 16))},
    "no_positions": {"sequences": entry()},
    "no_sequences": {"positions": entry()},
    "positions_f32": {"positions": entry("F32"), "sequences": entry(offsets=(4, 8))},
    "positions_2d": {"positions": entry(shape=[1, 1]), "sequences": entry(offsets=(4, 8))},
    "lengths_differ": {"positions": entry(), "sequences": entry(shape=[2], offsets=(4, 12))},
    "ids_differ": {**POSITIONS, "input_ids": entry(shape=[2], offsets=(8, 16))},
    "rows_missing": {**POSITIONS, "a": entry(shape=[2], offsets=(8, 16))},
    "rows_i64": {**POSITIONS, "a": entry(offsets=(8, 12)), "rows:a": entry("I64", offsets=(12, 20))},
    "rows_out_of_range": {**POSITIONS, "a": entry(offsets=(8, 12)), "rows:a": entry(offsets=(12, 16))},
    "keys_f32": {**POSITIONS, "a": entry(offsets=(8, 12)), "keys:a": entry("F32", [1, 1], (12, 16))},
    "keys_shape": {**POSITIONS, "a": entry(offsets=(8, 12)), "keys:a": entry("I32", [2, 1], (12, 20))},
    "scalar": {**POSITIONS, "a": entry(shape=[], offsets=(8, 12))},
    "name_empty": {**POSITIONS, "": entry(offsets=(8, 12))},
    "name_control": {**POSITIONS, "a\x1b[2J": entry(offsets=(8, 12))},
    "name_surrogate": b'{"\\ud800":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(tmp_path, case):
    path = craft(tmp_path / "t", HOSTILE[case], data=bytes(12) + b"\x09" + bytes(19))
    with pytest.raises(LockstepError) as caught:
        load(path)
    str(caught.value).encode()
    assert "step-000000.safetensors" in str(caught.value) or case.startswith("name_")


def test_a_well_formed_crafted_file_is_read(tmp_path):
    """The corpus above is refused for the faults in it, not for how it is made. The tail is ignored."""
    header = {**POSITIONS, "a": entry(offsets=(8, 12)), "rows:a": entry(offsets=(12, 16))}
    assert load(craft(tmp_path / "t", header, data=bytes(99))).rows("a")[0, 0] == 0


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, 50])
def test_hostile_header_lengths(tmp_path, length):
    with pytest.raises(LockstepError):
        load(craft(tmp_path / "t", {}, length=length))


@pytest.mark.parametrize("size", [0, 7, 8, 100, 4096])
def test_truncated_files(tmp_path, size):
    path = small_trace(tmp_path / "t")
    os.truncate(step_file(path), size)
    with pytest.raises(LockstepError):
        load(path)


def test_a_file_cut_after_loading(tmp_path):
    tensor = load(small_trace(tmp_path / "t")).steps[0].tensors["layer_0_attn_q_rope"]
    os.truncate(step_file(tmp_path / "t"), 131072)
    with pytest.raises(LockstepError, match="cut"):
        tensor.numpy()


def set_steps(value):
    return lambda meta: meta.update(steps=value)


def set_file(value):
    return lambda meta: meta["steps"][0]["files"][0].update(value)


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta.update(format="other"), lambda meta: meta.pop("format"), lambda meta: meta.pop("version"),
        lambda meta: meta.update(version=2), lambda meta: meta.update(version=True),
        lambda meta: meta.update(version="1"),
        lambda meta: meta.update(version=0), lambda meta: meta.update(closed=1), lambda meta: meta.update(points="a"),
        lambda meta: meta.update(points=[1]), lambda meta: meta.update(errors={}), lambda meta: meta.update(model=[]),
        lambda meta: meta.update(selection={"rows": 3}), lambda meta: meta.update(selection={"rows": "x"}),
        lambda meta: meta.update(tensors=[]), lambda meta: meta.update(tensors={"*": []}),
        lambda meta: meta.update(tensors={"*": {"axes": [1]}}), lambda meta: meta.update(tensors={"*": {"axes": []}}),
        lambda meta: meta.update(tensors={"*": {"axes": ["a", "a"]}}),
        lambda meta: meta.update(tensors={"logits": {"axes": ["token"]}}),
        lambda meta: meta.update(tensors={"*": {"shard": 3}}),
        lambda meta: meta.update(tensors={"*": {"shard": {"axis": "a", "count": 0}}}),
        lambda meta: meta.update(tensors={"*": {"shard": {"axis": "a", "count": 1, "index": 1}}}),
        lambda meta: meta.update(rank=-1), set_steps({}), set_steps([1]), set_steps([{}]),
        set_steps([{"phase": "prefill", "files": []}]),
        set_steps([{"phase": "x", "files": [{"file": "a.safetensors"}]}]),
        set_steps([{"phase": "prefill", "files": ["a"]}]), set_file({"file": "../x.safetensors"}),
        set_file({"file": 3}),
        set_file({"file": "/etc/passwd"}), set_file({"file": "trace.json"}), set_file({"file": "a\0.safetensors"}),
        set_file({"file": "missing.safetensors"}), set_file({"file": "x" * 300 + ".safetensors"}),
        set_file({"rank": -1}), set_file({"rank": 1.5}),
        lambda meta: meta["steps"].append(meta["steps"][0]),
    ],
)  # fmt: skip
def test_hostile_trace_json(tmp_path, change):
    path = small_trace(tmp_path / "t")
    rewrite_json(path, change)
    with pytest.raises(LockstepError):
        load(path)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 200000, b'{"format":"lockstep-trace","version":1,"version":1}']
)
def test_broken_trace_json(tmp_path, text):
    path = small_trace(tmp_path / "t")
    (path / "trace.json").write_bytes(text)
    with pytest.raises(LockstepError, match="trace.json"):
        load(path)


def test_what_is_not_a_trace(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "file", tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(LockstepError, match=str(place)):
            load(place)
    path = small_trace(tmp_path / "fifo")
    step_file(path).unlink()
    os.mkfifo(step_file(path))
    with pytest.raises(LockstepError, match="regular file"):
        load(path)


def test_files_elsewhere_are_not_opened(tmp_path):
    path = small_trace(tmp_path / "t")
    shutil.copy(step_file(path), tmp_path / "x.safetensors")
    for name in ("../x.safetensors", str(tmp_path / "x.safetensors")):
        rewrite_json(path, set_file({"file": name}))
        with pytest.raises(LockstepError, match="of this directory"):
            load(path)


def test_a_newer_version_is_refused_by_name_and_unknown_keys_are_kept(tmp_path):
    path = small_trace(tmp_path / "t")
    rewrite_json(path, lambda meta: meta.update(future={"a": [1]}))
    assert load(path).meta["future"] == {"a": [1]}
    rewrite_json(path, lambda meta: meta.update(version=7))
    with pytest.raises(LockstepError, match="version 7 is newer than 1"):
        load(path)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return small_trace(tmp_path_factory.mktemp("golden") / "t")


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_random_damage(golden, seed):
    """Any changed, dropped or added bytes: the trace is read or LockstepError is raised, and nothing else happens."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copytree(golden, Path(folder) / "t"))
        victim = rng.choice([step_file(path), step_file(path), path / "trace.json"])
        data = bytearray(victim.read_bytes())
        used = len(bytes(data[:131071]).rstrip()) if victim.suffix == ".safetensors" else len(data)
        for _ in range(rng.randrange(1, 4)):
            at = rng.choice([rng.randrange(min(used, len(data))), rng.randrange(8), rng.randrange(len(data))])
            kind = rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                data[at] = ord(rng.choice('0123456789{}[]",:-FIB '))
            elif kind == 2:
                del data[at : at + rng.randrange(1, 20)]
            else:
                data[at:at] = bytes(rng.choice(b'09{}[]",:-e') for _ in range(rng.randrange(1, 20)))
        victim.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = load(path)
                for step in found.steps:
                    for tensor in step.tensors.values():
                        tensor.numpy(), tensor.torch(), tensor.rows
                for name in found.names():
                    found.rows(name)
                found.sequences()
            except LockstepError as error:
                str(error).encode()


# --- Crashes ----------------------------------------------------------------------------------------------------------

CHILD = """
import os, sys
import numpy as np
from lockstep import TraceWriter, trace_step_file
trace_step_file.HEADER_BYTES = 3 * 4096  # continuation files come often
i = 0
with TraceWriter(sys.argv[1], producer="child", config={}) as writer:
    for n in range(10**6):
        with writer.begin_step(np.arange(4), np.arange(4) + 4 * n, np.zeros(4, int)) as step:
            os.write(1, f"{n} begun -1\\n".encode())
            for layer in range(120):
                name = f"layer_{layer}_x{'y' * (i % 50)}"
                step.record(name, np.full((2, 300 + i % 7), i, np.float32), rows=[3, 1])
                os.write(1, f"{n} {name} {i}\\n".encode())
                i += 1
"""


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
def test_kill(place):
    """SIGKILL at 20 random moments a file system: whatever record() had returned for is readable and right."""
    if not os.access(place, os.W_OK):
        pytest.skip(f"{place} is not writable")
    rng = random.Random(place)
    total = 0
    for _ in range(20):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            total += kill_once(Path(folder) / "t", rng.uniform(0, 0.06))
    assert total > 200


def kill_once(path: Path, after: float) -> int:
    """Kills a writing child `after` seconds from its first step on; returns how many tensors were checked."""
    env = {**os.environ, "PYTHONPATH": SOURCE}
    with subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, env=env) as child:
        lines = [child.stdout.readline()]
        timer = threading.Timer(after, child.send_signal, [signal.SIGKILL])
        timer.start()
        lines += child.stdout.read().splitlines(keepends=True)
        timer.cancel()
    assert child.returncode == -signal.SIGKILL
    with pytest.warns(UserWarning, match="not closed"):
        found = load(path)
    claims = [line.decode().split() for line in lines if line.endswith(b"\n")]
    for step, name, value in claims:
        assert int(step) < len(found.steps)
        if name != "begun":
            tensor = found.steps[int(step)].tensors[name]
            assert (tensor.numpy() == float(value)).all() and tensor.rows.tolist() == [3, 1]
    return len(claims)


def test_a_torn_last_step_of_an_unclosed_trace(tmp_path):
    """Other writers may list a file before it holds positions, or before it is there."""
    path = small_trace(tmp_path / "t")

    def tear(meta):
        meta["closed"] = False
        meta["steps"].append({"phase": "decode", "files": [{"file": "step-000001.safetensors"}]})

    rewrite_json(path, tear)
    for content in (None, (2).to_bytes(8, "little") + b"{}"):
        if content:
            step_file(path, 1).write_bytes(content)
        with pytest.warns(UserWarning, match="not closed"):
            assert len(load(path).steps) == 1
    rewrite_json(path, lambda meta: meta.update(closed=True))
    with pytest.raises(LockstepError, match="positions"):
        load(path)


# --- Full disks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small tmpfs (needs root): {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk(small_disk):
    """The error names file and missing bytes; earlier tensors are whole; what is small enough still goes in."""
    with writer(small_disk / "t") as trace, begin(trace) as step:
        for i in range(3):
            step.record(f"layer_{i}_x", np.full((3, 20000), i, np.float32))
        with pytest.raises(
            LockstepError, match=r"step-000000.safetensors: disk full while writing layer_3_x: \d+ bytes"
        ):
            step.record("layer_3_x", np.full((3, 20000), 3, np.float32), rows=[2, 1, 0])
        step.record("small", np.zeros((3, 4), np.float32))
    found = load(small_disk / "t")
    assert list(found.steps[0].tensors) == ["layer_0_x", "layer_1_x", "layer_2_x", "small"]
    assert all((found.steps[0].tensors[f"layer_{i}_x"].numpy() == i).all() for i in range(3))
    assert len(found.meta["errors"]) == 1 and "disk full" in found.meta["errors"][0]
    official_load(step_file(small_disk / "t"))


def test_missing_bytes_are_counted(small_disk):
    with writer(small_disk / "t") as trace, begin(trace) as step:
        free = shutil.disk_usage(small_disk).free
        with pytest.raises(LockstepError) as caught:
            step.record("x", np.zeros((3, 10**6), np.int8))
    missing = int(re.search(r"(\d+) bytes are missing", str(caught.value))[1])
    assert 0 <= 3 * 10**6 - free - missing < 4096  # the file's last page had some room left


def test_a_disk_too_full_for_a_step_or_for_trace_json(small_disk):
    with writer(small_disk / "t") as trace, begin(trace) as step:
        step.record("x", np.zeros((3, 1000), np.float32))
        filler = small_disk / "filler"
        with open(filler, "wb") as file, pytest.raises(OSError) as caught:
            while True:
                os.write(file.fileno(), bytes(4096))
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(LockstepError, match="disk full"):
            begin(trace)
        assert not list(small_disk.glob("t/*.tmp"))
        filler.unlink()
    found = load(small_disk / "t")
    assert list(found.steps[0].tensors) == ["x"] and len(found.steps) == 1
    assert "disk full" in found.meta["errors"][0]
