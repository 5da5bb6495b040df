"""One engine in a process of its own: a JSON request a line on stdin, an answer a line on stdout.

    worker.py lockstep_engine MODEL THREADS

Every engine gets the same calls, `reset`, then `forward(ids) -> logits of the last`, by the clock of this file.
"""

import base64
import importlib
import json
import os
import sys
import time
from pathlib import Path


def logits(engine, prompt: list[int], forced: list[int]) -> list[str]:
    """Of the prompt's last token, and of each forced token after it."""
    engine.reset(len(prompt) + len(forced))
    rows = [engine.forward(prompt).copy()]
    rows += [engine.forward([token]).copy() for token in forced]
    return [base64.b64encode(row.tobytes()).decode() for row in rows]


def prefill(engine, prompt: list[int]) -> float:
    """Seconds."""
    engine.reset(len(prompt))
    start = time.perf_counter()
    engine.forward(prompt)
    return time.perf_counter() - start


def decode(engine, prompt: list[int], steps: int) -> float:
    """Seconds of `steps` greedy steps; one more before them is not timed."""
    engine.reset(len(prompt) + steps + 1)
    engine.forward(prompt)
    token = int(engine.forward([prompt[0]]).argmax())
    start = time.perf_counter()
    for _ in range(steps):
        token = int(engine.forward([token]).argmax())
    return time.perf_counter() - start


def main() -> None:
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, model, threads = sys.argv[1:]
    engine = importlib.import_module(name).Engine(Path(model), int(threads))
    calls = {"logits": logits, "prefill": prefill, "decode": decode}
    print(json.dumps(engine.name), file=answers, flush=True)
    for line in sys.stdin:
        call, *arguments = json.loads(line)
        print(json.dumps(calls[call](engine, *arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
