"""Measures the engines in turns on one checkpoint after another, after seeing that they compute the same.

Decode: tokens/s from a context of 128. Prefill: tokens/s of a prompt of 512. Each round asks every engine for both,
and a ratio is the median of the rounds' ratios, so that what else runs on the machine touches all alike.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROJECT = ROOT / ".venv" / "bin" / "python"
PEERS = HERE / ".venv" / "bin" / "python"
INTERPRETERS = {
    "lockstep_engine": PROJECT,
    "transformers_engine": PROJECT,
    "transformers_eager_engine": PROJECT,
    "llama_engine": PEERS,
}
OURS = "lockstep_engine"
REFERENCE = "transformers_engine"

CONTEXT, STEPS, PROMPT = 128, 16, 512
TOKENS = {"decode": STEPS, "prefill": PROMPT}
FORCED = 8  # decode steps that are checked
# Relative L2 of two bf16 engines' logits: roundings in other places stay near 1 %, a real difference is of order 1.
CLOSE = 0.05


class Worker:
    def __init__(self, engine: str, model: Path, threads: int):
        self.engine = engine
        # Each engine's own way of waiting for its threads.
        env = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        env["OMP_NUM_THREADS"] = str(threads)
        self.process = subprocess.Popen(
            [INTERPRETERS[engine], HERE / "worker.py", engine, model, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.name = self.answer()

    def answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.engine} ended with {self.process.wait()}; its message stands above")
        return json.loads(line)

    def ask(self, *call: Any) -> Any:
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def tokens(count: int, vocab: int) -> list[int]:
    generator = random.Random(count)
    return [generator.randrange(vocab) for _ in range(count)]


def check(workers: list[Worker], vocab: int) -> dict[str, dict[str, float]]:
    """How near each engine's logits are to the reference's, over a prompt and forced steps. Exits if one is far."""
    prompt, forced = tokens(CONTEXT, vocab), tokens(FORCED, vocab)
    rows = {}
    for worker in workers:
        answers = worker.ask("logits", prompt, forced)
        rows[worker.engine] = np.stack([np.frombuffer(base64.b64decode(row), np.float32) for row in answers])
    reference = rows[REFERENCE]
    found = {}
    for engine, logits in rows.items():
        distance = np.linalg.norm(logits - reference, axis=1) / np.linalg.norm(reference, axis=1)
        agree = int((logits.argmax(axis=1) == reference.argmax(axis=1)).sum())
        found[engine] = {"relative_l2": float(distance.max()), "greedy_agree": agree, "greedy_compared": FORCED + 1}
        if not distance.max() < CLOSE:
            raise SystemExit(
                f"{engine}: logits differ from {REFERENCE}'s by {distance.max():.3g} (relative L2), "
                f"expected below {CLOSE}: engines that compute something else cannot be compared"
            )
    return found


def measure(workers: list[Worker], vocab: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Tokens/s of each round, engine by engine. A round before them warms up."""
    context, prompt = tokens(CONTEXT, vocab), tokens(PROMPT, vocab)
    speeds = {worker.engine: {"decode": [], "prefill": []} for worker in workers}
    for round_number in range(rounds + 1):
        # In another order each time: whoever comes after the slowest finds the processor as warm as the others did.
        for worker in workers[round_number % len(workers) :] + workers[: round_number % len(workers)]:
            seconds = {
                "decode": worker.ask("decode", context, STEPS),
                "prefill": worker.ask("prefill", prompt),
            }
            if round_number == 0:
                continue
            for what, value in seconds.items():
                speeds[worker.engine][what].append(TOKENS[what] / value)
        print(f"  round {round_number} of {rounds}", file=sys.stderr)
    return speeds


def summary(speeds: dict[str, list[float]], ours: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    return {
        what: {
            "tokens_per_second": statistics.median(values),
            "samples": values,
            "lockstep_ratio": statistics.median(a / b for a, b in zip(ours[what], values, strict=True)),
        }
        for what, values in speeds.items()
    }


def run(model: Path, threads: int, rounds: int) -> dict[str, Any]:
    print(f"{model}: loading", file=sys.stderr)
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    workers = [Worker(engine, model, threads) for engine in INTERPRETERS]
    agreement = check(workers, vocab)
    speeds = measure(workers, vocab, rounds)
    result = {"model": model.name, "threads": threads, "rounds": rounds, "engines": []}
    for worker in workers:
        figures = summary(speeds[worker.engine], speeds[OURS])
        result["engines"].append({"engine": worker.engine, "name": worker.name, **agreement[worker.engine], **figures})
        worker.close()
    return result


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"| shape | engine | decode at {CONTEXT} | Lockstep is | prefill {PROMPT} | Lockstep is | logits |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for engine in result["engines"]:
            cells = [result["model"], engine["name"]]
            for what in ("decode", "prefill"):
                figures = engine[what]
                cells += [f"{figures['tokens_per_second']:.1f} tok/s", f"{figures['lockstep_ratio']:.2f} ×"]
            cells.append(
                f"{100 * engine['relative_l2']:.1f} % off, {engine['greedy_agree']}/{engine['greedy_compared']}"
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="checkpoints, each with its model.gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    for model in args.models:
        results.append(run(model, args.threads, args.rounds))
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
