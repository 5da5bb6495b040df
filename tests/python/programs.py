"""Where the tests find what was built, and how they run it."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LOCKSTEP = Path(os.environ.get("LOCKSTEP_PROGRAM", ROOT / "build" / "release" / "src" / "lockstep")).absolute()
POINTS = LOCKSTEP.parent / "points"
SAMPLER = LOCKSTEP.parent.parent / "tests" / "sampler_program"
C_LIBRARY = LOCKSTEP.parent / "liblockstep_c.so"
TINY = ROOT / "models" / "tiny-qwen3"
QWEN3_TOKENIZER = ROOT.parent / "shared" / "data" / "qwen3-tokenizer"  # too large for this repository: may be absent


def lockstep(
    *arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """Runs the program; stdout and stderr as text."""
    return subprocess.run(
        [str(LOCKSTEP), *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
