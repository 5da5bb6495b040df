"""What users get: the installed package, a build without the engine, and the wheel.

Building takes minutes the first time. The two builds stay beside the program's own build, so that a second run only
builds what has changed.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import lockstep as package
import numpy as np
import pytest
from programs import LOCKSTEP, ROOT

BUILD = LOCKSTEP.parents[1]  # the tree of the program under test
BUILDS = BUILD.parent / "packaging"
VERSION = package.__version__
DEPENDENCIES = ("libicu",)  # what a build without the engine must do without


def run(*command: object, returns: int = 0, cwd: Path | None = None) -> str:
    """Runs the command outside of the source's environment; its output."""
    hidden = {"PYTHONPATH", "LOCKSTEP_PYTHON", "LOCKSTEP_PROGRAM", "CMAKE_PREFIX_PATH"}
    done = subprocess.run(
        [str(word) for word in command],
        env={key: value for key, value in os.environ.items() if key not in hidden}
        | {"CMAKE_BUILD_PARALLEL_LEVEL": "2"},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert done.returncode == returns, f"{command} returned {done.returncode}:\n{done.stdout}"
    return done.stdout


def doctor(program: Path, cwd: Path, *options: object) -> dict[str, list[str]]:
    """The lines of a doctor that found nothing missing, by their first word."""
    lines = run(program, "doctor", *options, cwd=cwd).splitlines()
    out: dict[str, list[str]] = {}
    for line in lines:
        key, _, value = line.strip().partition(" ")
        out.setdefault(key, []).append(value.strip())
    assert out["self-test"][0].startswith("passed")
    return out


def write_trace(path: Path, error: float = 0.0) -> Path:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    x[1, 1] += error
    with (
        package.TraceWriter(path, producer="test", config={}) as trace,
        trace.begin_step(np.arange(3), np.arange(3), np.zeros(3, dtype=np.int32)) as step,
    ):
        step.record("input_embeddings", x)
    return path


@pytest.fixture
def traces(tmp_path: Path) -> tuple[Path, Path]:
    return write_trace(tmp_path / "a.trace"), write_trace(tmp_path / "b.trace", error=0.5)


# --- cmake --install -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", BUILD, "--prefix", out)
    return out


def test_consumer_of_the_installed_package(prefix: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "packaging" / "consumer", tmp_path / "source")
    build = tmp_path / "build"
    run("cmake", "-S", tmp_path / "source", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    cache = (build / "CMakeCache.txt").read_text()
    assert f"lockstep_DIR:PATH={prefix}" in cache  # and no other installation
    out = run(build / "consumer", tmp_path)
    assert "tokenizer.json: expected the tokenizer.json of a Hugging Face checkpoint" in out
    assert "input_embeddings" in out
    assert out.splitlines()[-1] == f"version {VERSION}, same 0, different 1, by the C API 1"


def test_installed_files_name_no_place_of_the_build(prefix: Path) -> None:
    files = list(prefix.rglob("*.cmake"))
    assert files
    for path in files:
        text = path.read_text()
        assert str(ROOT) not in text and str(BUILD) not in text, path


def test_installed_program(prefix: Path, tmp_path: Path) -> None:
    program = prefix / "bin" / "lockstep"
    assert VERSION in run(program, "--version", cwd=tmp_path)
    found = doctor(program, tmp_path, "--python", sys.executable)
    assert found["lockstep"] == [VERSION, str(prefix / "share" / "lockstep" / "python" / "lockstep")]


# --- Without the engine ----------------------------------------------------------------------------------------------


def test_build_without_the_engine(traces: tuple[Path, Path], tmp_path: Path) -> None:
    build = BUILDS / "without-engine"
    options = ("-DLOCKSTEP_ENGINE=OFF", "-DLOCKSTEP_TESTS=OFF", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS=-O0 -g0")
    # A machine without ICU: it must not even be looked for.
    absent = ("-DCMAKE_DISABLE_FIND_PACKAGE_ICU=ON",)
    run("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *options, *absent)
    run("cmake", "--build", build)
    for name in ("lockstep", "liblockstep_c.so", "points"):
        needed = run("ldd", build / "src" / name)
        assert "libstdc++" in needed
        assert not any(library in needed for library in DEPENDENCIES), needed

    program, (a, b) = build / "src" / "lockstep", traces
    assert "SAME" in run(program, "compare", a, a).upper()
    assert "input_embeddings" in run(program, "compare", a, b, returns=1)
    found = doctor(program, tmp_path, "--python", sys.executable)
    assert found["engine"] == ["not built (LOCKSTEP_ENGINE=OFF)"]


# --- The wheel -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment on top of this one, with the wheel in it."""
    scratch = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    where = f"--config-settings=build-dir={BUILDS / 'wheel'}"
    run(*pip, "wheel", ROOT, "--no-build-isolation", "--no-deps", "--wheel-dir", scratch, where)
    (wheel,) = scratch.glob("lockstep-*.whl")

    out = scratch / "environment"
    run(sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", out)
    purelib = Path(run(out / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # "System" means the interpreter below this environment, so this one's own packages are named, too.
    (purelib / "below.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(*pip, "--python", out / "bin" / "python", "install", "--no-index", "--no-deps", wheel)
    return out


def test_program_of_the_wheel(environment: Path, tmp_path: Path) -> None:
    program = environment / "bin" / "lockstep"
    assert VERSION in run(program, "--version", cwd=tmp_path)
    found = doctor(program, tmp_path)
    assert found["python"][0].startswith(str(environment / "bin" / "python"))
    assert found["lockstep"][1].startswith(str(environment))


COMPARE = """
import json, sys
import lockstep
assert lockstep.__file__.startswith(sys.prefix), lockstep.__file__
a, b = sys.argv[1:]
try:
    lockstep.compare(a, a + "/missing")
except lockstep.LockstepError as error:
    refused = str(error)
tolerant = lockstep.compare(a, [b], atol=1.0, points="input_*")
print(json.dumps([lockstep.compare(a, a).data, lockstep.compare([a], b).data, tolerant.data, refused]))
"""


def test_compare_of_the_wheel(environment: Path, traces: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = traces
    out = run(environment / "bin" / "python", "-c", COMPARE, a, b, cwd=tmp_path)
    same, different, tolerant, refused = json.loads(out)
    assert same["schema"] == "lockstep-compare/1" and same["points"][0]["bit_identical"]
    assert different["points"][0]["max_abs"] == 0.5
    assert tolerant["points"][0]["within_user"] == 1.0
    assert "missing" in refused


def test_c_library_and_header_of_the_wheel(environment: Path, tmp_path: Path) -> None:
    code = (
        "import ctypes, pathlib, lockstep; here = pathlib.Path(lockstep.__file__).parent; "
        "assert (here / 'include/lockstep/capture.hpp').is_file(); "
        "library = ctypes.CDLL(str(here / 'liblockstep_c.so.0')); "
        "library.lockstep_version.restype = ctypes.c_char_p; print(library.lockstep_version().decode())"
    )
    assert run(environment / "bin" / "python", "-c", code, cwd=tmp_path).strip() == VERSION


# --- Without the compiled part ---------------------------------------------------------------------------------------


def test_compare_without_the_compiled_part(traces: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(package, "_native", raising=False)  # other tests have it
    monkeypatch.setitem(sys.modules, "lockstep._native", None)
    with pytest.raises(package.LockstepError, match="install the wheel, or use `lockstep compare`"):
        package.compare(*traces)
    with pytest.raises(package.LockstepError, match="install the wheel, or use `lockstep replay`"):
        package.replay(traces[0], "model")
