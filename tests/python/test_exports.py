"""What machines and CI pages read: JSON by its schema, JUnit's XML, Markdown; that they and the table agree; hostile
traces through all of them."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
import unicodedata
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from c_api import Model
from lockstep.trace import TraceWriter, load
from programs import LOCKSTEP, ROOT, TINY, lockstep
from referencing import Registry, Resource
from runs import prompt, run_engine, run_reference
from safetensors.numpy import load_file, save_file

VOCAB = 2048
LENGTH = 20
SCHEMAS = {p.name: json.loads(p.read_text()) for p in (ROOT / "docs" / "schema").glob("*.json")}
REGISTRY = Registry().with_resources([(name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items()])
HOSTILE = [
    "<script>alert(1)</script>",
    "a|b`c`\\|[x](http://example.org) @all #1 ]]> &amp; \"'",
    "\x7f\u009b2J\u0085",  # the format itself refuses the control characters below 32
    "\u202eabc\u200f\u2066\ufeff",
    "\ufffe\uffff",
    "層_ウィジェット_😀",
    "layer_1_" + "x" * 3_000,
]
LONG = "layer_0_" + "y" * 10_000


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(SCHEMAS[name], registry=REGISTRY)


def write_trace(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    rows = len(next(iter(tensors.values()), range(2)))
    with (
        TraceWriter(path, producer="<b>|`x`@me\x1b", config={}, storage="F32") as trace,
        trace.begin_step(list(range(rows)), list(range(rows)), [0] * rows, "prefill") as step,
    ):
        for name, array in tensors.items():
            step.record(name, array)
    return path


def rename(trace: Path, old: str, new: str) -> None:
    """Gives a tensor a name that the writer would refuse, as a foreign program might."""
    path = next(trace.glob("step-*.safetensors"))
    tensors = load_file(path)
    tensors[new] = tensors.pop(old)
    save_file(tensors, path)


def random(seed: int, rows: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 8)).astype(np.float32)


def outputs(directory: Path, command: str, *arguments: object, code: int) -> tuple[str, dict, ElementTree.Element, str]:
    """Text, JSON, JUnit and Markdown of one command, each valid in itself."""
    files = {kind: directory / f"out.{kind}" for kind in ("json", "junit", "markdown")}
    options = [word for kind, path in files.items() for word in (f"--{kind}", path)]
    done = lockstep(command, *arguments, *options, "--all")
    assert done.returncode == code, done.stdout + done.stderr
    result = json.loads(files["json"].read_text())
    validator(f"{command}-1.json").validate(result)
    check_markdown(files["markdown"].read_bytes())
    junit = ElementTree.parse(files["junit"]).getroot()
    check_junit(junit, code)
    return done.stdout, result, junit, files["markdown"].read_text()


def check_junit(root: ElementTree.Element, code: int) -> None:
    """The structure of Jenkins' junit-10.xsd."""
    assert root.tag == "testsuites" and [child.tag for child in root] == ["testsuite"]
    suite = root[0]
    assert set(suite.attrib) == {"name", "tests", "failures", "errors", "skipped", "time"}
    cases = suite.findall("testcase")
    assert [child.tag for child in suite] == ["properties"] + ["testcase"] * len(cases)
    assert int(suite.get("tests")) == len(cases) and suite.get("errors") == "0"
    for kind in ("failure", "skipped"):
        attribute = suite.get("failures" if kind == "failure" else kind)
        assert int(attribute) == sum(case.find(kind) is not None for case in cases)
    assert (int(suite.get("failures")) > 0) == (code == 1)
    for case in cases:
        assert set(case.attrib) == {"classname", "name", "time"} and case.get("name")
        tags = [child.tag for child in case]
        assert tags in (
            [],
            ["system-out"],
            ["failure"],
            ["failure", "system-out"],
            ["skipped"],
            ["skipped", "system-out"],
        )
        for failure in case.findall("failure"):
            assert set(failure.attrib) == {"message", "type"} and failure.get("message")


def check_markdown(data: bytes) -> None:
    """Outside code spans stand our own words and figures only."""
    assert len(data) < 60_000
    text = data.decode()
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cn") for c in text.replace("\n", "")), text
    columns = 0
    for line in text.splitlines():
        assert line.count("`") % 2 == 0, line
        rest = re.sub("`[^`]*`", "CODE", line)
        assert re.fullmatch(r"[\w .,:;|()<#\-+…]*", rest), rest
        assert "http" not in rest and "<b" not in rest and not re.search(r"#\d", rest), rest
        columns = (columns or line.count("|")) if line.startswith("|") else 0
        assert line.count("|") == columns, line


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    directory = tmp_path_factory.mktemp("traces")
    reference = run_reference(TINY, directory / "py.trace", "--tokens", prompt(LENGTH, VOCAB), "--decode", 2)
    return reference, run_engine(TINY, directory / "cpp.trace", "--from", reference)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """The queries of one layer are negated behind RoPE."""
    out = tmp_path_factory.mktemp("faulty") / "bad.trace"

    def change(tensor):
        if tensor.layer == 1:
            tensor.array()[:] *= -1

    with Model(TINY) as model:
        model.set_tap(change, "attn_q_rope")
        model.set_debug(out)
        model.forward([int(i) for i in prompt(LENGTH, VOCAB).split(",")], VOCAB)
        model.set_debug(None)
    return out


# ---- the formats agree


def table(text: str) -> dict[str, dict[str, str]]:
    """Rows of the table by (layer, point), cells by their titles."""
    lines = iter(text.splitlines())
    titles = next(line for line in lines if line.startswith("  class"))
    assert titles.split()[3:] == ["shape", "max_abs", "cos_sim", "token_l2", *["op", "err", "ref", "op", "err", "cand"]]
    rows = {}
    for line in lines:
        if line.startswith("=="):
            break
        diff_class, layer, point, _, figures = re.fullmatch(
            r"[* ] ([A-Z]+(?: DIFF)?) +(\S+) +(\S+) +(\(.*?\)) +(.*)", line
        ).groups()
        rows[layer, point] = {"class": diff_class, "fails": line[0] == "*", "figures": figures.split()}
    return rows


def cell(error: float) -> str:
    if error == 0 or error >= 99.95:
        return "0" if error == 0 else f"{error:.0f}" if error < 9999.5 else f"{error:.1e}"
    return f"{error:.2f}" if error < 9.995 else f"{error:.1f}"


@pytest.mark.parametrize("wrong", [False, True])
def test_text_json_junit_and_markdown_agree(traces, faulty, tmp_path, wrong):
    candidate = faulty if wrong else traces[1]
    text, result, junit, markdown = outputs(tmp_path, "compare", traces[0], candidate, "--model", TINY, code=int(wrong))
    rows = table(text)
    assert len(rows) == len(result["points"])
    cases = {(case.get("classname"), case.get("name")): case for case in junit.iter("testcase")}
    local = {
        side: {point["name"]: point for point in result["replay"][side]["points"]}
        for side in ("reference", "candidate")
    }
    for point in result["points"]:
        group = f"layer_{point['layer']}" if point["layer"] >= 0 else "model"
        label = f"L{point['layer']}" if point["layer"] >= 0 else "Input" if "input" in point["name"] else "Final"
        row, case = rows[label, point["point"]], cases[f"lockstep.{group}", point["point"]]
        expected = [f"{point['max_abs']:.2e}", f"{point['cosine']:.6f}"]
        expected.append(f"{point['worst']['token_relative_l2']:.2e}")
        for side in local.values():
            verdict = side[point["name"]]["verdict"]
            expected += [
                cell(side[point["name"]]["worst_row"]["error"]),
                {"clean": "clean"}.get(verdict, verdict.upper()),
            ]
        assert (row["class"], row["fails"], row["figures"]) == (point["class"], point["fails"], expected)
        assert (case.find("failure") is not None) == point["fails"]
        out = case.find("system-out").text.splitlines()
        assert out[0] == point["class"]
        assert out[1:5:1] == [
            f"max_abs {expected[0]}",
            f"max_rel {point['max_rel']:.2e}",
            f"cos_sim {expected[1]}",
            f"token_l2 {expected[2]}",
        ]
        assert [line.split()[-2] for line in out[5:]] == [expected[3], expected[5]]
    for name, *figures in re.findall(
        r"^\| `(layer_\S+|logits)` \| [A-Z ]+ \| (\S+) \| (\S+) \| (\S+) \|", markdown, re.M
    ):
        point = next(p for p in result["points"] if p["name"] == name)
        assert figures == [
            f"{point['max_abs']:.2e}",
            f"{point['cosine']:.6f}",
            f"{point['worst']['token_relative_l2']:.2e}",
        ]
    verdict = next(line for line in text.splitlines() if line.startswith("VERDICT: "))
    assert markdown.startswith(f"## Lockstep: {result['verdict']}\n") and verdict.split()[1] in markdown
    sentences = [f["sentence"] for side in result["replay"].values() for f in side["findings"]]
    assert bool(sentences) == wrong
    messages = " ".join(failure.get("message") for failure in junit.iter("failure"))
    for sentence in sentences:
        assert sentence in " ".join(text.split()) and sentence in messages
    assert f"next tokens: {result['next_tokens']['agree']} of {result['next_tokens']['compared']} agree" in text


def test_replay_alone(faulty, traces, tmp_path):
    text, result, junit, markdown = outputs(tmp_path, "replay", faulty, "--model", TINY, code=1)
    assert result["first_faulty"] == "layer_1_attn_q_rope" in text and "`layer_1_attn_q_rope`" in markdown
    assert len(junit[0].findall("testcase")) == len(result["points"])
    assert [case.get("name") for case in junit.iter("testcase") if case.find("failure") is not None] == ["attn_q_rope"]
    for point in result["points"]:
        assert cell(point["worst_row"]["error"]) in text and cell(point["max"]["error"]) in text
    text, result, _, markdown = outputs(tmp_path, "replay", traces[1], "--model", TINY, code=0)
    assert "## Lockstep replay: clean" in markdown and "VERDICT: CLEAN" in text


def test_debug_has_the_same_options(traces, tmp_path):
    directory = traces[0].parent
    files = [tmp_path / name for name in ("r.json", "r.xml", "r.md")]
    options = ("--json", files[0], "--junit", files[1], "--markdown", files[2])
    done = lockstep("debug", TINY, "--skip-python", "--skip-cpp", "--out", directory, *options)
    assert done.returncode == 0, done.stderr
    validator("compare-1.json").validate(json.loads(files[0].read_text()))
    check_junit(ElementTree.parse(files[1]).getroot(), 0)
    check_markdown(files[2].read_bytes())
    done = lockstep("debug", TINY, "--skip-python", "--skip-cpp", "--out", directory, "--markdown", "-")
    assert done.stdout == files[2].read_text()


# ---- the schema


def test_schemas_are_strict():
    def strict(schema):
        if isinstance(schema, dict):
            if schema.get("type") == "object":
                assert schema["additionalProperties"] is False
            assert all(strict(value) for value in schema.values())
        if isinstance(schema, list):
            assert all(strict(value) for value in schema)
        return True

    for name, schema in SCHEMAS.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert strict(schema) and schema["$id"] == name
        assert name in (ROOT / "docs" / f"{name.split('-')[0]}.md").read_text()


def test_a_broken_document_is_rejected(traces, tmp_path):
    _, result, _, _ = outputs(tmp_path, "compare", *traces, "--model", TINY, code=0)
    check = validator("compare-1.json")

    def edited(change) -> dict:
        copy = json.loads(json.dumps(result))
        change(copy)
        return copy

    assert check.is_valid(edited(lambda r: None))
    assert not check.is_valid(edited(lambda r: r.update(schema="lockstep-compare/2")))
    assert not check.is_valid(edited(lambda r: r.pop("points")))
    assert not check.is_valid(edited(lambda r: r["points"][3].update(surprise=1)))
    assert not check.is_valid(edited(lambda r: r["points"][3].update(max_abs="nan")))
    assert not check.is_valid(edited(lambda r: r["replay"]["candidate"]["points"][0].update(verdict="fine")))
    assert not check.is_valid(edited(lambda r: r["tokens"]["rows"][0]["reference"].pop("gap")))


# ---- bad input


def test_hostile_names(tmp_path):
    tensors = {name: random(i) for i, name in enumerate(HOSTILE)}
    a = write_trace(tmp_path / "a.trace", tensors)
    b = write_trace(tmp_path / "b\n|`.trace", {name: -array for name, array in tensors.items()})
    for trace in (a, b):
        rename(trace, HOSTILE[0], LONG)
    text, result, junit, markdown = outputs(tmp_path, "compare", a, b, code=1)
    assert {point["name"] for point in result["points"]} == {LONG, *HOSTILE[1:]}
    assert len(junit[0].findall("testcase")) == len(HOSTILE)
    for output in (text, markdown):
        assert not any(unicodedata.category(c) in ("Cc", "Cf") for c in output.replace("\n", ""))
        assert "\\x7f\\u{009b}2J" in output and "\\u{202e}abc" in output and "x" * 700 not in output
    assert "\\x1b" in text  # of the producer


def test_names_that_no_trace_can_hold():
    """Control characters and what is no UTF-8, from results made by hand (src/report/golden_test.cc)."""
    check_junit(ElementTree.parse(ROOT / "tests" / "golden" / "hostile.xml").getroot(), 1)
    for page in (ROOT / "tests" / "golden").glob("*.md"):
        check_markdown(page.read_bytes())


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
def test_nan_and_infinity_everywhere(tmp_path, fill, sides):
    traces = []
    for side, bad in enumerate(sides):
        tensors = {name: random(i) for i, name in enumerate(("layer_0_attn_q_rope", "layer_0_layer_output", "logits"))}
        if bad:
            tensors = {name: np.full_like(array, fill) for name, array in tensors.items()}
        traces.append(write_trace(tmp_path / f"{side}.trace", tensors))
    code = lockstep("compare", *traces).returncode
    assert code == 1 if sides[0] != sides[1] else code in (0, 1)
    _, result, _, _ = outputs(tmp_path, "compare", *traces, code=code)
    assert all(point["elements"] == 0 for point in result["points"])


def test_one_point_only(traces, tmp_path):
    for option in ("logits", "attn_q_rope"):
        _, result, junit, _ = outputs(
            tmp_path, "compare", *traces, "--model", TINY, "--points", option, "--layers", "1", code=0
        )
        assert len(result["points"]) == 1
        _, replayed, _, _ = outputs(
            tmp_path, "replay", traces[1], "--model", TINY, "--points", option, "--layers", "1", code=0
        )
        assert len(replayed["points"]) == 1


def test_nothing_in_common_writes_nothing(tmp_path):
    a = write_trace(tmp_path / "a.trace", {"mine": random(0)})
    b = write_trace(tmp_path / "b.trace", {"yours": random(0)})
    done = lockstep("compare", a, b, "--json", tmp_path / "r.json", "--junit", tmp_path / "r.xml")
    assert done.returncode == 2 and "no point in common" in done.stderr and done.stdout == ""
    assert not (tmp_path / "r.json").exists() and not (tmp_path / "r.xml").exists()


def test_missing_points_and_rows(traces, tmp_path):
    trace = load(traces[1])
    step = trace.steps[0]
    some = {n: t.numpy() for n, t in step.tensors.items() if n != "next_token" and "layer_1" not in n}
    config = trace.meta["model"]["config"]
    with (
        TraceWriter(tmp_path / "few.trace", producer="few", config=config, storage="F32") as writer,
        writer.begin_step(step.input_ids, step.positions, step.sequences, step.phase) as copy,
    ):
        for name, array in some.items():
            copy.record(name, array)
    few = tmp_path / "few.trace"
    code = lockstep("compare", traces[0], few).returncode
    _, result, junit, _ = outputs(tmp_path, "compare", traces[0], few, code=code)
    assert len(result["only_reference"]) == 18 == len(list(junit.iter("skipped")))


@pytest.mark.parametrize("kind", ["json", "junit", "markdown"])
def test_unwritable_output(traces, tmp_path, kind):
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "no" / "such" / "file", tmp_path / "directory", "/dev/full"):
        done = lockstep("compare", *traces, f"--{kind}", path)
        assert done.returncode == 2 and "cannot be written" in done.stderr and str(path) in done.stderr
    assert os.listdir(tmp_path) == ["directory"] and Path("/dev/full").is_char_device()
    assert lockstep("compare", *traces, f"--{kind}", "/dev/null").returncode == 0
    assert Path("/dev/null").is_char_device()


def test_a_full_standard_output(traces):
    with open("/dev/full", "w") as full:
        done = subprocess.run([LOCKSTEP, "compare", *traces], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "standard output: cannot be written" in done.stderr


# ---- terminals


def on_terminal(columns: int, *arguments: object, cwd: Path | None = None, **environment: str) -> str:
    """What the command prints on a terminal of that width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | environment
    quiet = subprocess.DEVNULL
    command = [str(LOCKSTEP), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=slave, stderr=quiet, stdin=quiet, env=env, cwd=cwd)
    os.close(slave)
    data = b""
    while chunk := read(master):
        data += chunk
    os.close(master)
    process.wait(60)
    return data.decode().replace("\r\n", "\n")


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""


def width(line: str) -> int:
    line = re.sub("\x1b\\[[0-9]*m", "", line)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


def test_the_report_stays_within_the_terminal(traces, tmp_path):
    tensors = {name: random(i) for i, name in enumerate([*HOSTILE, "長い" * 100])}
    hostile = write_trace(tmp_path / "長い.trace", tensors)
    for columns in (40, 41, 57, 80, 100, 133, 300):
        for arguments in (
            ("compare", hostile, hostile),
            ("compare", *traces, "--model", TINY),
            ("compare", *traces, "--all"),
            ("replay", traces[1], "--model", TINY),
        ):
            lines = on_terminal(columns, *arguments).splitlines()
            assert len(lines) > 8
            assert max(map(width, lines)) <= columns, (columns, max(lines, key=width))


def test_color_on_terminals_only(traces):
    assert "\x1b[32m" in on_terminal(80, "compare", *traces)
    assert "\x1b" not in on_terminal(80, "compare", *traces, NO_COLOR="1")
    assert "\x1b" not in lockstep("compare", *traces).stdout


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_clean_run_is_one_screen(tmp_path, dtype):
    reference = run_reference(TINY, tmp_path / "py.trace", "--tokens", prompt(LENGTH, VOCAB), "--dtype", dtype)
    run_engine(TINY, tmp_path / "cpp.trace", "--from", reference, "--dtype", dtype)
    for model in ([], ["--model", TINY]):
        text = on_terminal(80, "compare", "py.trace", "cpp.trace", *model, cwd=tmp_path)
        assert "VERDICT: " in text and len(text.splitlines()) <= 24, text
