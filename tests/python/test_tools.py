"""The bootstrap on a machine where nothing may be installed."""

import os
import subprocess

from programs import ROOT


def test_without_root_the_exact_apt_line_is_printed(tmp_path):
    fakes = {"id": "echo 1000", "dpkg-query": "exit 1", "sudo": "exit 1"}
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [ROOT / "tools" / "bootstrap"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "apt-get update && apt-get install --no-install-recommends -y" in done.stderr
    assert "libicu-dev" in done.stderr and "libcli11-dev" in done.stderr
