"""Lets the tests import the package from the source tree, and their own helpers from this directory."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "python"), str(HERE)]
