"""How fast `lockstep compare` goes over two traces that differ everywhere, beside the machine's read bandwidth.

    PYTHONPATH=python python bench/compare_throughput.py [--layers 28] [--tokens 512] [--dir /var/tmp/compare-bench]

Writes two bf16 traces in the shape of Qwen3-0.6B (about 0.94 GB each; one bit of half of the values differs), reads
them once into the page cache, and measures in one run: the read bandwidth (a sum over 1 GiB on two threads), the wall
time of the whole command (start of the process included), and numpy taking the same figures of some of the points.
Medians of five.
"""

import argparse
import json
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
from lockstep.trace import TraceWriter, load

ROOT = Path(__file__).parent.parent
SIZES = {"hidden": 1024, "q_head": 16, "kv_head": 8, "head_dim": 128, "intermediate": 3072, "vocab": 151936}
RUNS = 5
TOLERANCES = (1e-5, 1e-4, 1e-3, 1e-2)


def point_shapes(layers: int) -> dict[str, list[int]]:
    """Name and row shape of every point."""
    table = json.loads((ROOT / "python/lockstep/points.json").read_text())
    table = table["points"] if isinstance(table, dict) else table
    shapes = {}
    for layer in range(layers):
        for point in table:
            if point["on_request"] or (not point["per_layer"] and layer > 0):
                continue
            name = f"layer_{layer}_{point['name']}" if point["per_layer"] else point["name"]
            shapes[name] = [SIZES[axis] for axis in point["axes"][1:]]
    return shapes


def write_traces(directory: Path, layers: int, tokens: int) -> tuple[Path, Path]:
    paths = directory / "reference.trace", directory / "candidate.trace"
    if all((path / "trace.json").exists() for path in paths):
        return paths
    rng = np.random.default_rng(0)
    config = {"num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    positions = np.arange(tokens)
    writers = [TraceWriter(path, producer="bench", config=config, storage="BF16") for path in paths]
    steps = [writer.begin_step(positions, positions, np.zeros(tokens, np.int32)) for writer in writers]
    for name, shape in point_shapes(layers).items():
        values = rng.standard_normal((tokens, *shape), dtype=np.float32).astype(ml_dtypes.bfloat16)
        other = values.view(np.uint16) ^ rng.integers(0, 2, values.shape, dtype=np.uint16)
        steps[0].record(name, values)
        steps[1].record(name, other.view(ml_dtypes.bfloat16))
    for step, writer in zip(steps, writers, strict=True):
        step.end()
        writer.close()
    return paths


def seconds(action) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read_bandwidth() -> float:
    """Bytes a second of two threads that each add up half of a buffer far larger than the last-level cache."""
    halves = np.split(np.ones(1 << 27, np.int64), 2)
    with ThreadPoolExecutor(2) as pool:
        return (1 << 30) / seconds(lambda: list(pool.map(np.sum, halves)))


def numpy_figures(a: np.ndarray, b: np.ndarray) -> None:
    """What the comparison tells of a point: a and b [tokens, …] in bf16."""
    a, b = (side.astype(np.float64).reshape(len(side), -1) for side in (a, b))
    for side in (a, b):
        side.mean(), side.std(), side.min(), side.max(), np.isnan(side).sum(), np.isinf(side).sum()
    difference, size = np.abs(a - b), np.abs(b)
    difference.max(), difference.mean(), difference.argmax()
    relative = difference[size != 0] / size[size != 0]
    relative.max(), relative.mean()
    for tolerance in TOLERANCES:
        np.count_nonzero(difference <= tolerance + tolerance * size)
    aa, bb, ab, dd = (np.einsum("ij,ij->i", x, y) for x, y in ((a, a), (b, b), (a, b), (difference, difference)))
    np.argmax(np.sqrt(dd / bb)), np.argmin(ab / np.sqrt(aa * bb)), ab.sum() / np.sqrt(aa.sum() * bb.sum())


def numpy_bandwidth(paths: tuple[Path, Path]) -> float:
    """Over one layer and its neighbours in the file, without the reading: the arrays are in memory."""
    sides = [load(path).steps[0].tensors for path in paths]
    names = [name for name in sides[0] if name.startswith("layer_0_")]
    arrays = [[side[name].numpy() for side in sides] for name in names]
    size = sum(array.nbytes for pair in arrays for array in pair)
    return size / seconds(lambda: [numpy_figures(candidate, reference) for reference, candidate in arrays])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp/compare-bench"))
    parser.add_argument("--program", type=Path, default=ROOT / "build/release/src/lockstep")
    options = parser.parse_args()

    options.dir.mkdir(parents=True, exist_ok=True)
    paths = write_traces(options.dir, options.layers, options.tokens)
    files = [file for path in paths for file in path.glob("*.safetensors")]
    size = sum(len(file.read_bytes()) for file in files)
    command = [str(options.program), "compare", *map(str, paths)]
    ours = size / seconds(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=False))
    bandwidth = read_bandwidth()
    theirs = numpy_bandwidth(paths)
    print(f"two traces: {size / 1e9:.2f} GB together, all values in the page cache")
    print(f"read bandwidth, 2 threads: {bandwidth / 1e9:.1f} GB/s")
    print(f"lockstep compare: {ours / 1e9:.1f} GB/s = {100 * ours / bandwidth:.0f} % of it, {size / ours:.3f} s")
    print(f"numpy, the same figures: {theirs / 1e9:.2f} GB/s, {ours / theirs:.0f} times slower")


if __name__ == "__main__":
    main()
