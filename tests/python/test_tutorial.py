"""docs/tutorial.md, as a reader would follow it: its blocks run in order, in a copy of what they need.

- ```sh       runs in one shell, which keeps its directory and variables; it must end with 0, or N of ```sh exit=N
- ```diff     is applied to my-engine
- ```console  is what the block before it printed. A line that holds only … leaves out any text. White space counts as
              one blank, as the program wraps to the terminal's width. Figures with a point or an exponent may differ,
              whole numbers may not.

When the program's words change, the failure shows what it prints now: paste that into the page.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from programs import LOCKSTEP, ROOT
from runs import replay

PAGE = ROOT / "docs" / "tutorial.md"
EXAMPLE = "examples/small-engine"


@dataclass
class Block:
    kind: str
    options: str
    text: str
    line: int


def blocks(page: str) -> Iterator[Block]:
    for match in re.finditer(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield Block(match[1], match[2] or "", match[3], page.count("\n", 0, match.start()) + 1)


def normal(text: str) -> str:
    """Figures are #, white space is one blank."""
    return " ".join(re.sub(r"\d+(\.\d+(e[+-]\d+)?|e[+-]\d+)", "#", text).split())


def shows(page: str, printed: str) -> bool:
    """Whether the parts between … stand in what was printed, in that order, and nothing else does where no … is."""
    parts = [re.escape(normal(part)) for part in re.split(r"^…$", page, flags=re.MULTILINE)]
    return re.fullmatch(".*".join(parts), normal(printed)) is not None


def script(given: list[Block], out: Path) -> str:
    """Runs all blocks; what block N printed goes to out/N, its exit code to out/N.code."""
    lines = []
    for n, block in enumerate(given):
        if block.kind == "diff":
            (out / f"{n}.diff").write_text(block.text)
            command = f"patch -d my-engine -p1 --fuzz=0 < '{out}/{n}.diff'"
        elif block.kind == "sh":
            command = block.text.rstrip("\n")
        else:
            continue
        lines.append(f"{{\n{command}\n}} > '{out}/{n}' 2> '{out}/{n}.err'\necho $? > '{out}/{n}.code'\n")
    return "".join(lines)


def the_workplace(path: Path) -> Path:
    """Where the page starts, without the build and the environment that a developer may not have in these places."""
    shutil.copytree(ROOT / EXAMPLE, path / EXAMPLE)
    for name in ("models", "include"):
        (path / name).symlink_to(ROOT / name)
    (path / "build" / "release").mkdir(parents=True)
    (path / "build" / "release" / "src").symlink_to(LOCKSTEP.parent)
    (path / ".venv" / "bin").mkdir(parents=True)
    (path / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (path / ".venv" / "bin" / "python").chmod(0o755)
    return path


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Block], Path, Path]:
    """The page's blocks, the directory in which they were run, and where their outputs are."""
    given = list(blocks(PAGE.read_text()))
    path = tmp_path_factory.mktemp("tutorial")
    place, out = the_workplace(path / "lockstep"), path / "out"
    out.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "TRACE"}
    subprocess.run(
        ["bash", "-c", script(given, out)],
        cwd=place,
        env=environment | {"LOCKSTEP_PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    return given, place, out


def test_every_block_of_the_tutorial(followed: tuple[list[Block], Path, Path]) -> None:
    given, place, out = followed
    assert [block.kind for block in given].count("console") >= 5
    printed = ""
    for n, block in enumerate(given):
        where = f"{PAGE.name}, the block at line {block.line}"
        if block.kind == "console":
            assert shows(block.text, printed), f"{where}: expected\n{block.text}\nfound\n{printed}"
            continue
        printed = (out / str(n)).read_text()
        code, expected = int((out / f"{n}.code").read_text()), int(block.options.removeprefix("exit=") or 0)
        assert code == expected, f"{where}: ended with {code}:\n{printed}{(out / f'{n}.err').read_text()}"

    for path in (ROOT / EXAMPLE).iterdir():  # the page has made the example as it is kept
        assert (place / "my-engine" / path.name).read_bytes() == path.read_bytes(), path.name


def run_engine(place: Path, model: Path, trace: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [place / "my-engine" / "build" / "small_engine", model, "3", "1", "2", "3", "4"],
        env={**os.environ, "TRACE": str(trace)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_engine_is_right_on_other_checkpoints(
    followed: tuple[list[Block], Path, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    model = make_checkpoint(tmp_path / "model", dtype=dtype, tie_word_embeddings=False)
    config = json.loads((model / "config.json").read_text())
    if dtype == torch.float16:  # as transformers 4 wrote it
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        (model / "config.json").write_text(json.dumps(config))
    done = run_engine(followed[1], model, tmp_path / "cpp.trace")
    assert done.returncode == 0, done.stderr
    code, found = replay(tmp_path / "cpp.trace", tmp_path / "out.json", model=model)
    assert code == 0 and found["counts"]["clean"] == len(found["points"])


def test_the_engine_refuses_what_it_cannot_run(followed: tuple[list[Block], Path, Path], tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    for key, value in (("attention_bias", True), ("use_sliding_window", True), ("rope_scaling", {"type": "yarn"})):
        (model / "config.json").write_text(json.dumps(config | {key: value}))
        done = run_engine(followed[1], model, tmp_path / "cpp.trace")
        assert done.returncode == 2 and "not supported" in done.stderr, key


def test_what_a_page_may_leave_open() -> None:
    printed = "one 1.5e+07 two\n  three, layer 0..4\nVERDICT: SAME\n"
    assert shows("one 2.6e+07 two three, layer 0..4 VERDICT: SAME", printed)
    assert shows("…\nthree,\nlayer 0..4\n…\nSAME\n", printed)
    assert not shows("one 1.5e+07 two three, layer 0..5 VERDICT: SAME", printed)
    assert not shows("three,\n…\n", printed)
    assert not shows("…\nSAME\n…\nthree\n…\n", printed)
