"""Runs of the reference and the engine for the end-to-end tests; the reference runs here, which saves its start."""

import json
import random
from pathlib import Path

from lockstep import reference
from programs import lockstep


def prompt(length: int, vocab: int, seed: int = 0) -> str:
    """Random ids as `--tokens` takes them."""
    generator = random.Random(f"{seed}/{length}")
    return ",".join(str(generator.randrange(vocab)) for _ in range(length))


def prompts(lengths: list[int], vocab: int) -> list[str]:
    return [option for length in lengths for option in ("--tokens", prompt(length, vocab))]


def run_reference(model: Path, out: Path, *options: object) -> Path:
    assert reference.main([str(model), "--out", str(out), *map(str, options)]) == 0
    return out


def run_engine(model: Path, out: Path, *options: object, env: dict[str, str] | None = None) -> Path:
    done = lockstep("capture", model, "--out", out, *options, env=env)
    assert done.returncode == 0, done.stderr
    return out


def compare(reference_trace: Path, candidate: Path, out: Path, *options: object) -> tuple[int, dict]:
    """Exit code, and everything that was found."""
    done = lockstep("compare", reference_trace, candidate, "--json", out, *options)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(out.read_text())


def assert_close(result: dict, bound: float = 1e-4) -> None:
    """Every point within bound · max(1, rms of the reference's tensor)."""
    assert result["points"]
    for point in result["points"]:
        stats = point["reference"]
        rms = (stats["mean"] ** 2 + stats["std"] ** 2) ** 0.5
        assert point["max_abs"] <= bound * max(1.0, rms), (point["name"], point["max_abs"], rms)
        assert point["mask_mismatches"] == point["non_finite_mismatches"] == 0, point["name"]


def replay(trace: Path, out: Path, *options: object, model: Path) -> tuple[int, dict]:
    """Exit code, and everything that was found."""
    done = lockstep("replay", trace, "--model", model, "--json", out, *options)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(out.read_text())


def names(replayed: dict, verdict: str) -> list[str]:
    """Points of that verdict, in execution order."""
    return [point["name"] for point in replayed["points"] if point["verdict"] == verdict]
