"""trace.json: how it is written, read and checked."""

import json
import os
from pathlib import Path
from typing import Any

from lockstep.errors import LockstepError
from lockstep.selection import Selection
from lockstep.trace_layout import FORMAT, VERSION, check_name, expect, is_count, open_regular

_MAX_TRACE_JSON = 256 << 20


def to_json(meta: dict) -> bytes:
    """One key a line, so that people can read it. Raises LockstepError for values that JSON does not have."""
    try:
        lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in meta.items()]
    except (TypeError, ValueError, RecursionError) as error:
        raise LockstepError(f"trace.json: expected values that JSON can hold: {error}") from None
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read_trace_json(path: Path) -> bytes:
    fd, status = open_regular(path)
    with os.fdopen(fd, "rb") as file:
        if status.st_size > _MAX_TRACE_JSON:
            raise LockstepError(f"{path}: expected at most {_MAX_TRACE_JSON} bytes, found {status.st_size}")
        return file.read(_MAX_TRACE_JSON)


def check_meta(meta: Any, where: str) -> dict:
    """trace.json has the types that the rest of the reader relies on."""
    expect(isinstance(meta, dict) and meta.get("format") == FORMAT, where, f'"format": "{FORMAT}"', meta)
    version = meta.get("version")
    expect(is_count(version) and version >= 1, where, "a version number", version)
    if version > VERSION:
        raise LockstepError(f"{where}: trace format version {version} is newer than {VERSION}; upgrade lockstep")
    for key in ("producer", "model", "arithmetic", "selection", "weights", "tensors"):
        expect(isinstance(meta.get(key, {}), dict), f"{where}: {key}", "an object", meta.get(key))
    for key in ("points", "not_observable", "errors"):
        expect(_is_texts(meta.get(key, [])), f"{where}: {key}", "a list of strings", meta.get(key))
    expect(isinstance(meta.get("closed", False), bool), f"{where}: closed", "true or false", meta.get("closed"))
    expect(is_count(meta.get("rank", 0)), f"{where}: rank", "an integer >= 0", meta.get("rank"))
    _check_selection(meta.get("selection", {}), where)
    for name, entry in meta.get("tensors", {}).items():
        _check_tensor_entry(f"{where}: tensors: {name!a}", entry)
    _check_steps(meta.get("steps", []), where)
    return meta


def _check_selection(selection: dict, where: str) -> None:
    strings = {key: selection.get(key, "") for key in ("points", "layers", "steps", "rows")}
    for key, value in strings.items():
        expect(isinstance(value, str), f"{where}: selection: {key}", "a string", value)
    Selection(**strings)


def _check_tensor_entry(where: str, entry: Any) -> None:
    expect(isinstance(entry, dict), where, "an object", entry)
    axes = entry.get("axes", ["token"])
    expect(_is_texts(axes) and len(set(axes)) == len(axes) > 0, where, "axes with different names", axes)
    expect(isinstance(entry.get("partial", False), bool), where, "partial true or false", entry.get("partial"))
    shard = entry.get("shard", {"axis": "", "count": 1})
    expect(isinstance(shard, dict) and isinstance(shard.get("axis"), str), where, "shard {axis, index, count}", shard)
    count, index = shard.get("count"), shard.get("index", 0)
    expect(is_count(count) and is_count(index) and index < count, where, "shard with index < count", shard)


def _check_steps(steps: Any, where: str) -> None:
    expect(isinstance(steps, list), f"{where}: steps", "a list", steps)
    seen: set[str] = set()
    for index, step in enumerate(steps):
        here = f"{where}: step {index}"
        expect(isinstance(step, dict), here, "an object", step)
        expect(step.get("phase") in ("prefill", "decode"), here, 'phase "prefill" or "decode"', step.get("phase"))
        files = step.get("files")
        expect(isinstance(files, list) and len(files) > 0, here, "a list of files", files)
        for entry in files:
            expect(isinstance(entry, dict), here, "{file, rank}", entry)
            expect(is_count(entry.get("rank", 0)), here, "a rank >= 0", entry.get("rank"))
            name = entry.get("file")
            _check_file_name(name, here)
            expect(name not in seen, here, "each file once", name)
            seen.add(name)


def _check_file_name(name: Any, where: str) -> None:
    """A name in this directory: a trace must not make its reader open files elsewhere."""
    expect(isinstance(name, str), where, "a file name", name)
    check_name(name)
    expect("/" not in name and name.endswith(".safetensors"), where, "a .safetensors file of this directory", name)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
