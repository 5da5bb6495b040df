"""The Python API on the bundled model: examples of the docstrings and of docs/python.md, results, traces."""

import ast
import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import lockstep
import numpy as np
import pytest
import torch
from c_api import Model
from native import use_native
from programs import ROOT, TINY
from runs import run_engine, run_reference
from transformers import Qwen3ForCausalLM

EXAMPLES = {"lockstep": lockstep, "torch": torch, "Qwen3ForCausalLM": Qwen3ForCausalLM}
FAULT = "layer_2_mlp_down_proj"
QUERIES = "layer_2_attn_q_rope"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The directory of the examples: models/, py.trace, cpp.trace and bad.trace."""
    use_native()
    directory = tmp_path_factory.mktemp("examples")
    (directory / "models").symlink_to(ROOT / "models")
    run_reference(TINY, directory / "py.trace", "--tokens", "72,101,108,108,111", "--decode", 2)
    run_engine(TINY, directory / "cpp.trace", "--from", directory / "py.trace")
    (tokens,) = lockstep.load(directory / "py.trace").sequences()

    def scale(tensor):
        tensor.array()[...] *= 1.5

    with Model(TINY) as model:
        model.set_tap(scale, FAULT)
        model.set_debug(directory / "bad.trace")
        model.forward(tokens, vocab=2048)
    return directory


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


# --- Examples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["compare", "replay", "load", "capture"])
def test_docstring(function, monkeypatch):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(lockstep, function), function, globs=dict(EXAMPLES))
    assert test.examples
    report = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


def test_blocks_of_the_page(capsys):
    text = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert FAULT in capsys.readouterr().out


def test_importing_is_cheap():
    code = "import sys, lockstep; assert not {'numpy', 'torch', 'pandas'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "python")}, check=True)


def test_the_stub_has_what_the_module_has():
    from lockstep import _native

    tree = ast.parse((ROOT / "python" / "lockstep" / "_native.pyi").read_text())
    for node in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        signature = getattr(_native, node.name).__doc__.splitlines()[0]
        assert re.findall(r"(\w+): ", signature) == [argument.arg for argument in node.args.args]
    public = {name for name in dir(_native) if not name.startswith("_")}
    assert public == {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


# --- Results -------------------------------------------------------------------------------------------------------


def test_a_comparison_is_typed():
    result = lockstep.compare("py.trace", Path("bad.trace"), model=TINY)
    assert (result.verdict, result.exit_code) == (result.data["verdict"], result.data["exit_code"]) == ("different", 1)
    assert json.loads(result.to_json()) == result.data
    assert "\nVERDICT: " in result.text and FAULT in result.text
    (finding,) = result.findings
    assert (finding.side, finding.point, finding.layers, finding.names) == (
        "candidate",
        "mlp_down_proj",
        (2,),
        (FAULT,),
    )
    assert finding.error > finding.clean > finding.explained > 0
    assert finding.sentence in repr(result)
    assert (result.first_faulty.name, result.first_faulty.side) == (FAULT, "candidate")
    by_name = {point.name: point for point in result.points}
    assert by_name[FAULT].candidate_op is not None and by_name[FAULT].candidate_op.verdict == "faulty"
    assert by_name[FAULT].reference_op.verdict == "clean"
    assert by_name[FAULT].layer == 2 and by_name["logits"].layer is None
    assert by_name[QUERIES].worst.element.head is not None and by_name["logits"].worst.element.head is None
    assert len(result.tokens.rows) == 7 and len(result.tokens.rows[0].reference.top_ids) == 5
    with pytest.raises(AttributeError):
        result.verdict = "same"


def test_frames():
    result = lockstep.compare("py.trace", "bad.trace", model=TINY)
    frame = result.to_pandas()
    assert list(frame.name) == [point.name for point in result.points]
    assert frame.dtypes["layer"] == "Int64" and frame.layer.isna().sum() == 3
    assert frame.dtypes["max_abs"] == frame.dtypes["bound"] == frame.dtypes["candidate_op_error"] == "float64"
    assert frame.dtypes["fails"] == "bool" and frame.fails.sum() == 1
    identical = lockstep.compare("py.trace", "py.trace").to_pandas()
    assert np.isinf(identical.snr_db).all() and identical.candidate_op_error.isna().all()
    assert list(result.replay.candidate.to_pandas().query("verdict == 'faulty'").name) == [FAULT]


def test_not_a_number_is_a_float(tmp_path):
    for name, value in (("a", 1.0), ("b", np.nan)):
        write(tmp_path / name, "input_embeddings", [[value, np.inf]])
    (point,) = lockstep.compare(tmp_path / "a", tmp_path / "b").points
    assert point.non_finite_mismatches == 1 and isinstance(point.reference.min, float)


def write(path, name, rows):
    values = np.array(rows, np.float32)
    count = len(values)
    with (
        lockstep.TraceWriter(path, producer="test", config={}) as trace,
        trace.begin_step(range(count), range(count), [0] * count) as step,
    ):
        step.record(name, values)


def test_markup_and_control_characters_stay_words(tmp_path):
    name = '<script>alert("x")</script>\x9b\x7f\u202eevil' + "y" * 1000
    for side, value in (("a", 1.0), ("b", 2.0)):
        write(tmp_path / side, name, [[value]])
    result = lockstep.compare(tmp_path / "a", tmp_path / "b")
    page = result._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page and "DIFFERENT" in page
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", page + repr(result).replace("\n", ""))
    assert len(page) < 4000 and result.points[0].name == name


def test_bad_input_is_told_apart_from_a_difference():
    with pytest.raises(lockstep.LockstepError, match="missing"):
        lockstep.compare("py.trace", "missing")
    with pytest.raises(lockstep.LockstepError, match="py.trace"):
        lockstep.replay("py.trace", "py.trace")
    assert lockstep.compare("py.trace", "bad.trace", points="attn_*", layers="0").verdict == "same"
    assert lockstep.compare("py.trace", "cpp.trace", atol=0.0, rtol=0.0).verdict == "different"
    assert lockstep.replay(["cpp.trace"], TINY, points="logits").points[0].name == "logits"


# --- Traces --------------------------------------------------------------------------------------------------------


def base_of(array):
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


def test_views_copy_nothing():
    import mmap

    trace = lockstep.load("bad.trace")  # one step
    tensor = trace.steps[0].tensors[QUERIES]
    assert isinstance(base_of(tensor.numpy()), mmap.mmap)
    assert isinstance(base_of(trace[QUERIES]), mmap.mmap)
    with pytest.raises(ValueError, match="read-only"):
        trace[QUERIES][...] = 0
    private = tensor.torch()
    private.zero_()
    assert tensor.numpy().any()


def test_16_bit_views(tmp_path):
    values = torch.randn(3, 4)
    for dtype in (torch.bfloat16, torch.float16):
        with (
            lockstep.TraceWriter(tmp_path / "t", producer="test", config={}) as trace,
            trace.begin_step(None, range(3), [0] * 3) as step,
        ):
            step.record("x", values.to(dtype))
        tensor = lockstep.load(tmp_path / "t").steps[0].tensors["x"]
        assert torch.equal(tensor.torch(), values.to(dtype)) and tensor.torch().dtype == dtype
        assert not tensor.numpy().flags.owndata and str(tensor.numpy().dtype) == str(dtype).removeprefix("torch.")


def test_rows_of_all_steps_are_joined():
    trace = lockstep.load("py.trace")
    rows = trace.rows(QUERIES)
    assert len(trace.steps) == 3 and trace[QUERIES].shape == (7, 6, 48)
    assert [tuple(key) for key in trace.index(QUERIES).tolist()] == list(rows)
    assert all(np.array_equal(a, b) for a, b in zip(trace[QUERIES], rows.values(), strict=True))
    assert QUERIES in trace and "nothing" not in trace and "next_token" not in trace.points
    with pytest.raises(lockstep.LockstepError, match="no tensor 'nothing'"):
        trace["nothing"]


def test_a_join_sorts_and_leaves_padding_and_older_rows_out(tmp_path):
    with lockstep.TraceWriter(tmp_path / "t", producer="test", config={}) as trace:
        for positions, sequences, values in (([1, 0, 9], [0, 0, -1], [1, 0, 9]), ([1, 0], [0, 1], [5, 7])):
            with trace.begin_step(None, positions, sequences) as step:
                step.record("x", np.array(values, np.float32)[:, None])
    trace = lockstep.load(tmp_path / "t")
    assert trace["x"][:, 0].tolist() == [0, 5, 7] and trace.index("x").tolist() == [[0, 0], [0, 1], [1, 0]]
