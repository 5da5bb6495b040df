"""The point table has one source, in C++; what is generated from it must be current (`make points`)."""

import subprocess
import sys
from pathlib import Path

from programs import POINTS, ROOT

sys.path.insert(0, str(ROOT / "tools"))
from update_docs_points import PAGE, page_with_table  # noqa: E402


def generated(form: str) -> str:
    return subprocess.run([POINTS, form], check=True, capture_output=True, text=True).stdout


def test_python_table_is_current() -> None:
    assert (ROOT / "python" / "lockstep" / "points.json").read_text() == generated("json")


def test_documentation_is_current() -> None:
    page = Path(PAGE).read_text()
    assert page == page_with_table(page, generated("markdown"))
