"""Runs the zoo: `make zoo`, or

    .venv/bin/python tests/zoo/run.py [--only PATTERN] [--sample] [--models tiny,wide] [--dtypes f32,bf16] [--out FILE]

Traces are written here, one after the other, judged in the background by `lockstep replay`, and deleted.
"""

from __future__ import annotations

import argparse
import fnmatch
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from zoo import ROOT, clean, models, verdict  # noqa: E402 - the path is set up above
from zoo.clean import Clean  # noqa: E402
from zoo.context import Mutant  # noqa: E402
from zoo.models import Models  # noqa: E402
from zoo.mutants import ALL  # noqa: E402
from zoo.oddities import ODDITIES, Oddity  # noqa: E402
from zoo.play import play, write_trace  # noqa: E402
from zoo.report import Acquittal, Results, markdown, text  # noqa: E402
from zoo.runs import RUNS  # noqa: E402
from zoo.verdict import LOCKSTEP  # noqa: E402

EVERY_NAME, EVERY_DTYPE = ("tiny", "wide", "loud"), ("f32", "bf16")
DEFAULT_OUT = ROOT / "docs" / "accuracy.md"


class Background:
    """Judges traces one at a time while the next ones are made, and deletes them."""

    def __init__(self, directory: Path):
        self.directory, self.pool, self.count = directory, ThreadPoolExecutor(1), 0
        self.waiting: list[Future[None]] = []

    def next_trace(self) -> Path:
        self.count += 1
        return self.directory / f"{self.count}.trace"

    def submit(self, trace: Path, work: Callable[[], None]) -> None:
        def then_delete() -> None:
            try:
                work()
            finally:
                shutil.rmtree(trace, ignore_errors=True)
                trace.with_suffix(".json").unlink(missing_ok=True)

        while len(self.waiting) > 4:  # so many traces are on the disk
            self.waiting.pop(0).result()
        self.waiting.append(self.pool.submit(then_delete))

    def finish(self) -> None:
        for future in self.waiting:
            future.result()
        self.pool.shutdown()


class Zoo:
    """Puts mutants, clean cases and oddities before the judge and gathers the results."""

    def __init__(self, directory: Path, say: Callable[[str], None]):
        self.models, self.judge, self.results, self.say = Models(directory), Background(directory), Results(), say

    def add_mutant(self, mutant: Mutant, model: str, dtype: str) -> None:
        loaded = self.models.load(model, dtype)
        played = play(loaded, RUNS[mutant.run], mutant)
        options = clean.CAPTURES[mutant.capture][1] if mutant.capture else {}
        trace = write_trace(self.judge.next_trace(), played, **options)

        def work() -> None:
            one, result, error = verdict.expectation(mutant, played), *judged(trace, loaded.directory)
            if result is None:
                one.error = error
            else:
                one = verdict.score(mutant, played, result)
                self.results.add_fault(one, result)
            self.results.scores.append(one)
            found = f"{one.found or '-'}: {', '.join(one.causes) or '-'}"
            self.say(f"{'ok  ' if one.is_right else 'BAD '} {mutant.id} ({one.config}) {one.grade}: {error or found}")

        self.judge.submit(trace, work)

    def add_clean(self, case: Clean) -> None:
        trace = case.make(self.models, self.judge.next_trace())

        def work() -> None:
            result, error = judged(trace, self.models.checkpoint(case.model))
            complaints = [error] if result is None else clean.acquits(case, result)
            self._acquit(Acquittal(case.id, case.what, complaints))
            if result is not None and case.says != "layouts":  # its ops are right in another basis only
                self.results.add_floor(next(d for d in clean.DTYPES if d in case.id.split()), result)

        self.judge.submit(trace, work)

    def add_oddity(self, oddity: Oddity) -> None:
        trace = oddity.make(self.models, self.judge.next_trace())

        def work() -> None:
            exit_code, printed, found = verdict.ask(trace, self.models.checkpoint(oddity.model))
            self._acquit(Acquittal(oddity.id, oddity.what, oddity.complaints(exit_code, printed, found), is_odd=True))

        self.judge.submit(trace, work)

    def _acquit(self, case: Acquittal) -> None:
        (self.results.odd if case.is_odd else self.results.clean).append(case)
        self.say(f"{'BAD ' if case.complaints else 'ok  '} {case.id}: {'; '.join(case.complaints) or 'as expected'}")


def judged(trace: Path, model: Path) -> tuple[dict[str, Any] | None, str]:
    """The judge's JSON, or None and why there is none."""
    try:
        return verdict.judge(trace, model), ""
    except (RuntimeError, ValueError, OSError) as error:
        return None, f"{type(error).__name__}: {error}"


Placed = tuple[Mutant, str, str]  # in a model and a dtype


def run(
    cases: Iterable[Clean],
    mutants: Iterable[Placed],
    oddities: Iterable[Oddity] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Results:
    started = time.monotonic()
    models.eager()
    with tempfile.TemporaryDirectory(prefix="lockstep-zoo-") as directory:
        zoo = Zoo(Path(directory), say)
        for case in cases:
            zoo.add_clean(case)
        for oddity in oddities:
            zoo.add_oddity(oddity)
        for mutant, model, dtype in mutants:
            zoo.add_mutant(mutant, model, dtype)
        zoo.judge.finish()
    zoo.results.seconds = time.monotonic() - started
    return zoo.results


def placed(mutants: list[Mutant], names: tuple[str, ...], dtypes: tuple[str, ...]) -> Iterator[Placed]:
    """Model by model, so that one is in the caches at a time."""
    for name in names:
        for dtype in dtypes:
            for mutant in mutants:
                if name in mutant.models and dtype in mutant.dtypes:
                    yield mutant, name, dtype


def sampled() -> tuple[list[Clean], list[Placed]]:
    """The fixed sample of continuous integration: each mutant in one model and dtype, which take turns."""
    chosen, turns = [], [("tiny", "bf16"), ("tiny", "f32"), ("wide", "bf16"), ("tiny", "bf16")]
    for i, mutant in enumerate(m for m in ALL if m.sample):
        order = turns[i % len(turns) :] + turns[: i % len(turns)] + [("loud", "f32"), ("wide", "f32")]
        name, dtype = next((n, d) for n, d in order if n in mutant.models and d in mutant.dtypes)
        chosen.append((mutant, name, dtype))
    return [case for case in clean.everything() if case.sample], chosen


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="PATTERN", help="mutants and clean cases whose id matches")
    parser.add_argument("--sample", action="store_true", help="the sample of continuous integration")
    parser.add_argument("--no-clean", action="store_true", help="mutants only")
    parser.add_argument("--no-mutants", action="store_true", help="clean cases only")
    parser.add_argument("--models", default=",".join(EVERY_NAME))
    parser.add_argument("--dtypes", default=",".join(EVERY_DTYPE), help="of the mutants")
    parser.add_argument("--quiet", action="store_true", help="no line for each run")
    parser.add_argument("--out", type=Path, help="where the report goes (default for a full run: docs/accuracy.md)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if not LOCKSTEP.exists():
        print(f"{LOCKSTEP}: not there; `make build` first, or set LOCKSTEP_PROGRAM", file=sys.stderr)
        return 2
    if arguments.sample:
        cases, mutants = sampled()
    else:
        names, dtypes = tuple(arguments.models.split(",")), tuple(arguments.dtypes.split(","))
        cases = [case for case in clean.everything() if case.model in names]
        mutants = list(placed(list(ALL), names, dtypes))
    oddities = list(ODDITIES)
    if patterns := arguments.only:

        def wanted(id: str) -> bool:
            return any(fnmatch.fnmatchcase(id, pattern) for pattern in patterns)

        cases, oddities = ([case for case in some if wanted(case.id)] for some in (cases, oddities))
        mutants = [one for one in mutants if wanted(one[0].id)]
    if arguments.no_clean:
        cases, oddities = [], []
    if arguments.no_mutants:
        mutants = []

    silent = arguments.quiet
    results = run(cases, mutants, oddities, say=lambda line: None if silent else print(line, flush=True))
    print(text(results))
    is_full = len(sys.argv) == 1 or sys.argv[1:] == ["--quiet"]
    out = arguments.out or (DEFAULT_OUT if is_full else None)
    if out:
        command = "make zoo" if is_full else " ".join(["tests/zoo/run.py", *sys.argv[1:]])
        out.write_text(markdown(results, command))
        print(f"written: {out}")
    return 0 if results.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
