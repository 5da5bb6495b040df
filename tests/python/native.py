"""Lets the package under test find its compiled part, built beside the program (the wheel has it inside)."""

import subprocess
import sys
from functools import cache

import lockstep
from programs import LOCKSTEP, ROOT


@cache
def use_native() -> None:
    """Builds what has changed; the first time takes some seconds."""
    build = LOCKSTEP.parents[1]
    configure = ("cmake", "-S", ROOT, "-B", build, "-DLOCKSTEP_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}")
    for command in (configure, ("cmake", "--build", build, "--target", "_native")):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
        assert done.returncode == 0, done.stdout
    lockstep.__path__.append(str(LOCKSTEP.parent))
