"""The direction of the data, and what must not meet (README, "How it is built"), as a test."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# Which parts' headers a part may include, beside its own.
MAY_INCLUDE = {
    "base": set(),
    "trace": {"base"},
    "checkpoint": {"base"},
    "tokenizer": {"base"},
    "engine": {"base", "trace", "checkpoint", "tokenizer"},
    "bench": {"base", "trace", "checkpoint", "engine"},
    "compare": {"base", "trace"},
    "inspect": {"base", "trace", "compare"},
    "replay": {"base", "trace", "checkpoint"},
    "diagnose": {"base", "trace", "checkpoint", "replay"},
    # A golden is a reference without values: pairing, completeness and the bound of rounding are the comparison's.
    "golden": {"base", "trace", "compare"},
    "report": {"base", "trace", "compare", "inspect", "replay", "diagnose", "golden"},
    "capi": set(),
    "cli": set(),
    "bindings": set(),
}

# Public headers, and the part that they belong to. capture.hpp depends on nothing, so everybody may include it.
PUBLIC = {
    "capture.hpp": "base",
    "detail.h": "base",
    "dtype.h": "base",
    "error.h": "base",
    "version.h": "base",
    "points.h": "trace",
    "trace.h": "trace",
    "checkpoint.h": "checkpoint",
    "tokenizer.h": "tokenizer",
    "engine.h": "engine",
    "generate.h": "engine",
    "sampler.h": "engine",
    "bench.h": "bench",
    "place.h": "trace",
    "compare.h": "compare",
    "inspect.h": "inspect",
    "replay.h": "replay",
    "diagnose.h": "diagnose",
    "golden.h": "golden",
    "report.h": "report",
    "lockstep.h": "capi",
}
PUBLIC_ONLY = {"capi", "cli", "bindings"}

INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


def sources() -> list[Path]:
    return sorted(p for p in (ROOT / "src").rglob("*") if p.suffix in {".cc", ".h"})


def violations(part: str, text: str) -> list[str]:
    """What `text`, a source of `part`, includes and must not."""
    bad = []
    for name in INCLUDE.findall(text):
        folder, _, header = name.partition("/")
        if folder == "lockstep":
            allowed = part in PUBLIC_ONLY or PUBLIC[header] in MAY_INCLUDE[part] | {part, "base"}
        else:
            allowed = folder in MAY_INCLUDE[part] | {part}
        if not allowed:
            bad.append(name)
    return bad


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_include_directions(path: Path) -> None:
    part = path.relative_to(ROOT / "src").parts[0]
    # Tests may write traces and checkpoints with the helpers of other parts' tests.
    if path.stem.endswith("_test") or "test_" in path.stem:
        return
    assert violations(part, path.read_text()) == []


def test_public_headers_belong_to_a_part() -> None:
    assert {p.name for p in (ROOT / "include" / "lockstep").iterdir()} == set(PUBLIC)


def test_public_headers_hold_no_third_party_type() -> None:
    allowed = re.compile(r"#include (\"lockstep/\w+\.h(pp)?\"|<[a-z_0-9]+>|<sys/\w+\.h>|<\w+\.h>)")
    third_party = {"<omp.h>", "<zlib.h>"}
    for path in (ROOT / "include" / "lockstep").iterdir():
        for line in re.findall(r"^#include.*$", path.read_text(), re.MULTILINE):
            assert allowed.match(line) and line.split()[1] not in third_party, f"{path.name}: {line}"


def test_the_check_can_fail() -> None:
    assert violations("compare", '#include "lockstep/engine.h"\n') == ["lockstep/engine.h"]
    assert violations("engine", '#include "compare/metrics.h"\n') == ["compare/metrics.h"]
    assert violations("cli", '#include "base/json.h"\n') == ["base/json.h"]


def test_versions_agree() -> None:
    def found(path: str, pattern: str) -> str:
        match = re.search(pattern, (ROOT / path).read_text(), re.MULTILINE)
        assert match, f"{path}: no version"
        return match[1]

    versions = {
        found("CMakeLists.txt", r"project\(lockstep VERSION ([\d.]+)"),
        found("include/lockstep/version.h", r'LOCKSTEP_VERSION "([\d.]+)"'),
        found("python/lockstep/__init__.py", r'__version__ = "([\d.]+)"'),
        found("pyproject.toml", r'^version = "([\d.]+)"'),
        found("CHANGELOG.md", r"^## ([\d.]+)"),
    }
    assert len(versions) == 1, versions
