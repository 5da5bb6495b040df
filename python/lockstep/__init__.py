"""Lockstep compares C++ transformer engines with PyTorch, layer by layer.

Importing the package costs nothing: numpy and torch are imported by the modules that need them, when they need them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lockstep.errors import LockstepError

if TYPE_CHECKING:
    from lockstep._compare import compare
    from lockstep.trace import Selection, Step, StepWriter, Tensor, Trace, TraceWriter, load

__version__ = "0.1.0"

__all__ = [
    "LockstepError",
    "Selection",
    "Step",
    "StepWriter",
    "Tensor",
    "Trace",
    "TraceWriter",
    "__version__",
    "compare",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("lockstep._compare" if name == "compare" else "lockstep.trace"), name)
    raise AttributeError(f"module 'lockstep' has no attribute {name!r}")
