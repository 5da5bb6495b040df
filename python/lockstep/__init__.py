"""Lockstep compares C++ transformer engines with PyTorch, layer by layer.

Importing the package costs nothing: numpy and torch are imported by the modules that need them, when they need them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lockstep.errors import LockstepError

if TYPE_CHECKING:
    from lockstep._capture import capture
    from lockstep._compare import compare, replay
    from lockstep.results import Comparison, Finding, OpError, PointDifference, Replay
    from lockstep.trace import Selection, Step, StepWriter, Tensor, Trace, TraceWriter, load

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Finding",
    "LockstepError",
    "OpError",
    "PointDifference",
    "Replay",
    "Selection",
    "Step",
    "StepWriter",
    "Tensor",
    "Trace",
    "TraceWriter",
    "__version__",
    "capture",
    "compare",
    "load",
    "replay",
]

_MODULES = {
    "capture": "_capture",
    **dict.fromkeys(("compare", "replay"), "_compare"),
    **dict.fromkeys(("Comparison", "Finding", "OpError", "PointDifference", "Replay"), "results"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lockstep' has no attribute {name!r}")
    try:
        return getattr(import_module(f"lockstep.{_MODULES.get(name, 'trace')}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise LockstepError(f"lockstep.{name}: expected the package torch, found none; pip install torch") from error
