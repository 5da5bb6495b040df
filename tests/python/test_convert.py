"""Dumps of text, .npy and .npz, into traces and out of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lockstep import LockstepError, Selection, TraceWriter, convert, load
from lockstep.convert import format_text, main, parse_text

HIDDEN, HEADS, HEAD_DIM, TOKENS = 6, 4, 2, 3
EVERYTHING = Selection(points="*,attn_scores,attn_probs")


@pytest.fixture(autouse=True)
def no_selection(monkeypatch):
    for key in ("POINTS", "LAYERS", "STEPS", "ROWS"):
        monkeypatch.delenv(f"LOCKSTEP_{key}", raising=False)


def values(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def write_text(folder: Path, name: str, array: np.ndarray, first_line: str | None = None) -> None:
    folder.mkdir(exist_ok=True)
    lines = [] if first_line is None else [first_line]
    (folder / f"{name}.txt").write_text("\n".join(lines + [repr(float(x)) for x in array.ravel()]) + "\n")


def table(path, name) -> np.ndarray:
    """The joined rows of a point, in (sequence, position) order."""
    return np.stack(list(load(path).rows(name).values()))


def run(*arguments, code=0, capsys=None) -> str:
    """Runs the command, checks the exit code and that bad news is one line; returns stderr."""
    assert main([str(argument) for argument in arguments]) == code
    text = capsys.readouterr().err if capsys else ""
    assert not capsys or code == 0 or (text.startswith("lockstep: error: ") and text.count("\n") == 1), text
    return text


# --- Text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "shape: 1 3 2", "Shape: (1, 3, 2)", "# (1, 3, 2)", "1,3,2", "1 3 2", "1x3x2", "[1, 3, 2]", "(1, 3, 2)",
        "# shape=[1,3,2]", "torch.Size([1, 3, 2])", "# torch.Size([1, 3, 2]) float32", "tensor_shape: 1, 3, 2",
        "# layer_7_attn_q_rope (1, 3, 2)", "# 1 3 2", "layer_0_x shape: 1 3 2 dtype: f32", "dims: 1 3 2",
        "Name: layer_3\nShape: 1 3 2\nDtype: float32\nData:",
    ],
)  # fmt: skip
@pytest.mark.parametrize("separator", ["\n", " ", ", ", ",\n"])
def test_shape_lines(line, separator):
    found = parse_text("a.txt", line + "\n" + separator.join(["-1.5", "2e-3", "nan", "-inf", "1e9", ".5"]) + "\n")
    assert found.shaped and found.values.shape == (1, 3, 2) and found.values.dtype == np.float32
    np.testing.assert_array_equal(found.values.ravel(), np.array([-1.5, 2e-3, np.nan, -np.inf, 1e9, 0.5], np.float32))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5\n1\n2\n", [0.5, 1, 2]), ("1\n0.5\n0.25\n", [1, 0.5, 0.25]), ("3 4\n5 6 7\n", [3, 4, 5, 6, 7]),
        ("[[0.5, 1],\n [2, 3]]\n", [0.5, 1, 2, 3]), ("-nan 1\n", [np.nan, 1]), ("7", [7]),
        ("# made by x\n1.5\n", [1.5]),
    ],
)  # fmt: skip
def test_text_without_a_shape(text, expected):
    found = parse_text("a.txt", text)
    assert not found.shaped
    np.testing.assert_array_equal(found.values, np.array(expected, np.float32))


@pytest.mark.parametrize("text", ["1\n2\n3\n", "[1, 2, 3]", "1 2 3", "1\n2 3\n", "# shape: 3\n1 2 3", "ids:\n1\n2\n3"])
def test_integers_have_no_bare_shape(text):
    assert parse_text("input_ids.txt", text, integers=True).values.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shape: 1 3 2\n1.0 2.0", r"a.txt: expected 6 values as of shape \[1, 3, 2\], found 2"),
        ("1,3,2\n1.5 2.5", "expected 6 values.*found 2"),
        ("# (2,)\n1.0 2.0 3.0", "expected 2 values.*found 3"),
        ("shape: 99999999999 99999999999\n1.0", "found 1"),
        ("", "found none"),
        ("just prose\n", "found none"),
        ("1.0 ... 2.0", "found '...'"),
        ("1.0 two", "found 'two'"),
        ("1e300", "beyond its range"),
        ("# shape: 1, dtype: F31\n1", "unknown dtype F31"),
        ("# shape: 1, dtype: I8\n300", "range"),
        ("# shape: 1, dtype: I32\n1.5", "found"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(LockstepError, match=message):
        parse_text("a.txt", text)


@settings(max_examples=200, deadline=None)
@given(
    raw=st.binary(min_size=0, max_size=64),
    dtype=st.sampled_from(["F32", "F16", "BF16", "F64", "I32", "U8", "I64", "F8_E5M2"]),
)
def test_text_is_lossless(raw, dtype):
    """Any bits come back, but for the payload of NaNs, which text does not have."""
    kind = convert._numpy_dtype("", dtype)
    array = np.frombuffer(raw[: len(raw) // kind.itemsize * kind.itemsize], kind)
    if array.size % 2 == 0:
        array = array.reshape(-1, 2)
    back = parse_text("", format_text(array, dtype)).values
    assert back.dtype == array.dtype and back.shape == array.shape
    wide, wide_back = array.astype(np.float64), back.astype(np.float64)
    known = ~np.isnan(wide)
    assert np.array_equal(np.isnan(wide), np.isnan(wide_back))
    assert array[known].tobytes() == back[known].tobytes()


# --- Import -----------------------------------------------------------------------------------------------------------


def test_a_classic_dump(tmp_path):
    """Batch of 1, heads before tokens, a projection before its view, last-token logits, no input_ids."""
    dump = tmp_path / "dump"
    hidden, rope, raw = values(TOKENS, HIDDEN), values(TOKENS, HEADS, HEAD_DIM, seed=1), values(TOKENS, HEADS, HEAD_DIM)
    logits, normed = values(1, 9), values(TOKENS, HEADS, HEAD_DIM, seed=2)
    write_text(dump, "py_input_embeddings", hidden, f"shape: 1 {TOKENS} {HIDDEN}")
    write_text(dump, "py_layer_3_attn_q_rope", rope.swapaxes(0, 1), f"1,{HEADS},{TOKENS},{HEAD_DIM}")
    write_text(dump, "py_layer_3_attn_q_proj_raw", raw, f"# (1, {TOKENS}, {HEADS * HEAD_DIM})")
    write_text(dump, "py_layer_3_attn_q_normed", normed, f"{TOKENS} {HEADS} {HEAD_DIM}")
    write_text(dump, "py_logits", logits, "shape: 1 1 9")
    write_text(dump, "py_mine", values(TOKENS, 2, 2), f"shape: 1 {TOKENS} 2 2")
    (dump / "README.md").write_text("ignored")
    assert main(["import", str(dump), "--out", str(tmp_path / "t"), "--storage", "BF16"]) == 0
    np.testing.assert_array_equal(table(tmp_path / "t", "input_embeddings"), hidden)
    np.testing.assert_array_equal(table(tmp_path / "t", "layer_3_attn_q_rope"), rope)
    np.testing.assert_array_equal(table(tmp_path / "t", "layer_3_attn_q_proj_raw"), raw)
    np.testing.assert_array_equal(table(tmp_path / "t", "layer_3_attn_q_normed"), normed)
    np.testing.assert_array_equal(table(tmp_path / "t", "mine"), values(TOKENS, 2, 2))
    found = load(tmp_path / "t")
    assert list(found.rows("logits")) == [(0, TOKENS - 1)]
    assert found.steps[0].input_ids is None and found.meta["arithmetic"]["storage"] == "BF16"


@pytest.mark.parametrize("tokens", [1, 3])
def test_text_without_shapes_takes_them_from_elsewhere(tmp_path, tokens):
    dump = tmp_path / "dump"
    write_text(dump, "layer_0_attn_q_normed", values(tokens, HEADS, HEAD_DIM), f"shape: {tokens} {HEADS} {HEAD_DIM}")
    write_text(dump, "layer_0_attn_q_rope", values(tokens, HEADS, HEAD_DIM))
    write_text(dump, "layer_0_layer_output", values(tokens, HIDDEN))
    (dump / "input_ids.txt").write_text("\n".join(str(5 + i) for i in range(tokens)))
    assert main(["import", str(dump), "--out", str(tmp_path / "t")]) == 0
    assert table(tmp_path / "t", "layer_0_attn_q_rope").shape == (tokens, HEADS, HEAD_DIM)
    assert table(tmp_path / "t", "layer_0_layer_output").shape == (tokens, HIDDEN)
    assert load(tmp_path / "t").sequences() == [[5 + i for i in range(tokens)]]


def test_text_without_any_shape_is_one_row(tmp_path):
    write_text(tmp_path / "dump", "layer_output", values(7))
    assert main(["import", str(tmp_path / "dump"), "--out", str(tmp_path / "t")]) == 0
    assert table(tmp_path / "t", "layer_output").shape == (1, 7)


def test_both_prefixes_need_a_choice(tmp_path, capsys):
    for prefix in ("py_", "cpp_"):
        write_text(tmp_path / "dump", f"{prefix}logits", values(2, 4, seed=len(prefix)), "shape: 2 4")
    assert "--prefix" in run("import", tmp_path / "dump", "--out", tmp_path / "t", code=2, capsys=capsys)
    run("import", tmp_path / "dump", "--out", tmp_path / "t", "--prefix", "cpp_")
    np.testing.assert_array_equal(table(tmp_path / "t", "logits"), values(2, 4, seed=4))


@pytest.mark.parametrize("form", ["npy", "npz"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "bfloat16"])
def test_numpy_files(tmp_path, form, dtype):
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    dump, array = tmp_path / "dump", (values(1, TOKENS, HIDDEN) * 9).astype(kind)
    dump.mkdir()
    ids = np.array([[7, 8, 9]])
    if form == "npy":
        np.save(dump / "py_layer_0_layer_output.npy", array)
        np.save(dump / "py_input_ids.npy", ids)
    else:
        np.savez(dump / "all.npz", py_layer_0_layer_output=array, py_input_ids=ids)
    for source in [dump] + ([dump / "all.npz"] if form == "npz" else []):
        assert main(["import", str(source), "--out", str(tmp_path / "t")]) == 0
        found = load(tmp_path / "t")
        assert found.sequences() == [[7, 8, 9]]
        back = found.steps[0].tensors["layer_0_layer_output"].numpy()
        assert back.dtype == kind and back.tobytes() == array.tobytes()


HUGE_NPY = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999, 9), }"
HUGE_NPY = b"\x93NUMPY\x01\x00\x76\x00" + HUGE_NPY.ljust(117) + b"\n"
BAD_DUMPS = {
    "truncated_text": lambda folder: write_text(folder, "layer_0_attn_o_proj", values(2, 5), "shape: 3 5"),
    "rows_differ": lambda folder: write_text(folder, "layer_0_attn_o_proj", values(2, 5), "shape: 2 5"),
    "batch": lambda folder: write_text(folder, "layer_0_attn_o_proj", values(2, 3, 5), "shape: 2 3 5"),
    "scalar": lambda folder: np.save(folder / "x.npy", np.float32(3)),
    "pickle": lambda folder: np.save(folder / "x.npy", np.array([{}]), allow_pickle=True),
    "complex": lambda folder: np.save(folder / "x.npy", np.zeros(3, complex)),
    "text_dtype": lambda folder: np.save(folder / "x.npy", np.array(["a"] * 3)),
    "not_npy": lambda folder: (folder / "x.npy").write_bytes(b"hello"),
    "empty_npy": lambda folder: (folder / "x.npy").write_bytes(b""),
    "huge_npy": lambda folder: (folder / "x.npy").write_bytes(HUGE_NPY),
    "not_utf8": lambda folder: (folder / "x.txt").write_bytes(b"\xff\xfe1.0"),
    "prose": lambda folder: (folder / "notes.txt").write_text("hello\nworld\n"),
    "ids_count": lambda folder: (folder / "input_ids.txt").write_text("1 2"),
    "ids_fraction": lambda folder: (folder / "input_ids.txt").write_text("1 2 3.5"),
    "ids_nan": lambda folder: (folder / "input_ids.txt").write_text("1 2 nan"),
    "ids_huge": lambda folder: (folder / "input_ids.txt").write_text("1 2 9999999999"),
    "twice": lambda folder: np.save(folder / "layer_0_layer_output.npy", values(TOKENS, HIDDEN)),
    "same_sequence": lambda folder: write_text(folder, "layer_0_layer_output.seq0", values(3, 6), "shape: 3 6"),
    "bad_name": lambda folder: write_text(folder, "rows:x", values(3, 6), "shape: 3 6"),
    "alien_positions": lambda folder: (folder / "nothing.positions.txt").write_text("1"),
    "positions_missing": lambda folder: (folder / "layer_0_layer_output.positions.txt").write_text("0 1 7"),
    "positions_count": lambda folder: (folder / "layer_0_layer_output.positions.txt").write_text("0 1"),
    "sequences_differ": lambda folder: write_text(folder, "layer_0_layer_output.seq1", values(3, 5), "shape: 3 5"),
}


def bad_dump(folder: Path, case: str) -> None:
    """One good file and the faulty one."""
    write_text(folder, "layer_0_layer_output", values(TOKENS, HIDDEN), f"shape: {TOKENS} {HIDDEN}")
    BAD_DUMPS[case](folder)


@pytest.mark.parametrize("case", BAD_DUMPS)
@pytest.mark.filterwarnings("error")
def test_bad_dumps(tmp_path, capsys, case):
    """Exit code 2, one line that names the file, and the older trace is as it was."""
    bad_dump(tmp_path / "dump", case)
    write_text(tmp_path / "good", "logits", values(1, 2), "shape: 1 2")
    run("import", tmp_path / "good", "--out", tmp_path / "t")
    text = run("import", tmp_path / "dump", "--out", tmp_path / "t", code=2, capsys=capsys)
    assert str(tmp_path) in text or case in ("ids_count", "ids_huge", "bad_name")
    assert load(tmp_path / "t").names() == ["logits"]
    assert sorted(os.listdir(tmp_path)) == ["dump", "good", "t"]


def test_truncated_file_is_named_with_counts(tmp_path, capsys):
    bad_dump(tmp_path / "dump", "truncated_text")
    text = run("import", tmp_path / "dump", "--out", tmp_path / "t", code=2, capsys=capsys)
    assert "layer_0_attn_o_proj.txt: expected 15 values as of shape [3, 5], found 10" in text
    assert sorted(os.listdir(tmp_path)) == ["dump"]


def test_sources_that_are_none(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    (tmp_path / "file.txt").write_text("1.0")
    for source in ("nowhere", "empty", "broken.npz", "file.txt"):
        assert source in run("import", tmp_path / source, "--out", tmp_path / "t", code=2, capsys=capsys)
    assert not (tmp_path / "t").exists()


def test_out_is_not_overwritten_unless_a_trace(tmp_path, capsys):
    write_text(tmp_path / "dump", "logits", values(1, 2), "shape: 1 2")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    run("import", tmp_path / "dump", "--out", tmp_path / "mine", code=2, capsys=capsys)
    run("import", tmp_path / "dump", "--out", tmp_path / "file", code=2, capsys=capsys)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"] and (tmp_path / "file").read_text() == "x"
    run("import", tmp_path / "dump", "--out", tmp_path / "t")
    (tmp_path / "t/notes").write_text("kept")
    run("import", tmp_path / "dump", "--out", tmp_path / "t")
    assert (tmp_path / "t/notes").read_text() == "kept" and load(tmp_path / "t").names() == ["logits"]
    with TraceWriter(tmp_path / "t", producer="x", config={}):
        assert "being written" in run("import", tmp_path / "dump", "--out", tmp_path / "t", code=2, capsys=capsys)


# --- Export and round trips -------------------------------------------------------------------------------------------


def rich_trace(path: Path, sequences=(0,), dtype="float32", start=0) -> Path:
    """Prefill and a decode step a sequence, a permuted chunk, last-token logits, attention scores."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    with TraceWriter(path, producer="x", config={}, selection=EVERYTHING) as trace:
        for sequence in sequences:
            for count, first in ((TOKENS, start), (1, start + TOKENS)):
                places = np.arange(first, first + count)[::-1]
                phase = "prefill" if count > 1 else "decode"
                with trace.begin_step(places + 100 * sequence, places, np.full(count, sequence), phase) as step:
                    step.record("layer_0_attn_q_rope", values(count, HEADS, HEAD_DIM, seed=first).astype(kind))
                    step.record("layer_0_attn_scores", values(count, HEADS, first + count, seed=first))
                    step.record("logits", values(1, 9, seed=sequence), rows=[0])
                    step.record("mine", values(1, 2, seed=sequence), rows=[0])
    return path


def assert_same_tables(a, b, as_float=False) -> None:
    a, b = load(a), load(b)
    assert sorted(a.names()) == sorted(b.names()) and a.tokens() == b.tokens()
    for name in a.names():
        one, other = a.rows(name), b.rows(name)
        assert list(one) == list(other)
        for key, row in one.items():
            if "scores" in name:
                assert (other[key][..., row.shape[-1] :] == -np.inf).all()
                other[key] = other[key][..., : row.shape[-1]]
            row = row.astype(np.float32) if as_float else row
            assert row.dtype == other[key].dtype and row.tobytes() == other[key].tobytes()


@pytest.mark.parametrize("form", ["txt", "npy", "npz"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("sequences", [(0,), (0, 1, 5)])
@pytest.mark.parametrize("start", [0, 40])
def test_round_trip(tmp_path, form, dtype, sequences, start):
    trace = rich_trace(tmp_path / "t", sequences, dtype, start)
    assert main(["export", str(trace), "--format", form, "--out", str(tmp_path / "out"), "--prefix", "py_"]) == 0
    names = os.listdir(tmp_path / "out")
    assert names == ["tensors.npz"] if form == "npz" else all(name.startswith("py_") for name in names)
    assert main(["import", str(tmp_path / "out"), "--out", str(tmp_path / "back")]) == 0
    assert_same_tables(trace, tmp_path / "back", as_float=dtype == "bfloat16" and form != "txt")


def test_exported_files(tmp_path):
    """Names, order and content, as other tools see them."""
    trace = rich_trace(tmp_path / "t", (0, 1))
    run("export", trace, "--format", "txt", "--out", tmp_path / "out", "--points", "logits, mi*")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "input_ids.seq0.txt", "input_ids.seq1.txt", "logits.seq0.txt", "logits.seq1.txt",
        "mine.positions.seq0.txt", "mine.positions.seq1.txt", "mine.seq0.txt", "mine.seq1.txt",
    ]  # fmt: skip
    assert (tmp_path / "out/mine.positions.seq0.txt").read_text() == "# shape: 2, dtype: I32\n2\n3\n"
    assert (tmp_path / "out/input_ids.seq1.txt").read_text() == "# shape: 4, dtype: I32\n100\n101\n102\n103\n"
    loaded = np.loadtxt(tmp_path / "out/logits.seq1.txt", dtype=np.float32)
    np.testing.assert_array_equal(loaded, np.stack([values(1, 9, seed=1)[0]] * 2))


def test_export_into_a_named_npz(tmp_path):
    run("export", rich_trace(tmp_path / "t"), "--format", "npz", "--out", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as archive:
        assert "layer_0_attn_q_rope" in archive.files


def test_export_keeps_other_files_and_replaces_its_own(tmp_path):
    trace = rich_trace(tmp_path / "t")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    (tmp_path / "out/logits.npy").write_text("old")
    run("export", trace, "--format", "npy", "--out", tmp_path / "out")
    assert (tmp_path / "out/mine").read_text() == "x" and np.load(tmp_path / "out/logits.npy").shape == (2, 9)


def test_export_refuses(tmp_path, capsys):
    trace = rich_trace(tmp_path / "t")
    text = run("export", trace, "--format", "txt", "--out", tmp_path / "out", "--points", "zzz", code=2, capsys=capsys)
    assert "zzz" in text
    run("export", tmp_path / "nowhere", "--format", "txt", "--out", tmp_path / "out", code=2, capsys=capsys)
    (tmp_path / "file").write_text("x")
    run("export", trace, "--format", "txt", "--out", tmp_path / "file", code=2, capsys=capsys)
    with TraceWriter(tmp_path / "bad", producer="x", config={}) as writer:
        with writer.begin_step([1], [0], [0]) as step:
            step.record("../escaped", np.zeros((1, 2)))
        with writer.begin_step([1], [1], [0]) as step:
            step.record("ragged", np.zeros((1, 2)))
        with writer.begin_step([1], [2], [0]) as step:
            step.record("ragged", np.zeros((1, 3)))
    for points in ("*escaped", "ragged"):
        run(
            "export",
            tmp_path / "bad",
            "--format",
            "npy",
            "--out",
            tmp_path / "out",
            "--points",
            points,
            code=2,
            capsys=capsys,
        )
    assert not (tmp_path / "out").exists() and (tmp_path / "file").read_text() == "x"
    assert sorted(os.listdir(tmp_path)) == ["bad", "file", "t"]


def test_an_unclosed_trace_is_exported_with_a_warning(tmp_path, capsys):
    trace = rich_trace(tmp_path / "t")
    meta = json.loads((trace / "trace.json").read_text())
    (trace / "trace.json").write_text(json.dumps({**meta, "closed": False}))
    assert "warning" in run("export", trace, "--format", "npy", "--out", tmp_path / "out", capsys=capsys)


def test_command_line(tmp_path):
    """The module runs as a command, without torch; usage errors exit with 2."""
    env = {**os.environ, "PYTHONPATH": str(Path(convert.__file__).parents[1])}
    command = [sys.executable, "-m", "lockstep.convert"]
    trace = rich_trace(tmp_path / "t")
    arguments = ["export", trace, "--format", "txt", "--out", tmp_path / "out"]
    done = subprocess.run(command + arguments, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
    assert subprocess.run([*command, "export"], env=env, capture_output=True).returncode == 2
    done = subprocess.run(
        [*command, "import", tmp_path / "x", "--out", tmp_path / "y"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr and "x: expected" in done.stderr
