"""docs/accuracy.md and the table on the terminal."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from zoo.mutants import ALL
from zoo.verdict import DESCRIBED, UNEXPLAINED, WRONG, Score

FLOOR_KEYS = ("worst_row", "worst_head", "max")


@dataclass
class Acquittal:
    """A clean case."""

    id: str
    what: str
    complaints: list[str]
    is_odd: bool = False  # not clean, but a trace that is not what it claims


@dataclass
class Results:
    scores: list[Score] = field(default_factory=list)
    clean: list[Acquittal] = field(default_factory=list)
    odd: list[Acquittal] = field(default_factory=list)
    floors: dict[tuple[str, str, str], float] = field(default_factory=lambda: defaultdict(float))  # op, dtype, key
    smallest: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)  # op, dtype -> figure, mutant
    seconds: float = 0.0

    def add_floor(self, dtype: str, result: dict[str, Any]) -> None:
        for point in result["points"]:
            op = point["op"] + (", composed" if point["bridged"] else "")
            for key in FLOOR_KEYS:
                place = (op, dtype, key)
                self.floors[place] = max(self.floors[place], _error(point, key))

    def add_fault(self, score: Score, result: dict[str, Any]) -> None:
        """Of a mutant above the limit, how its first point looks in its worst row or head."""
        point = next((p for p in result["points"] if p["name"] == score.expected), None)
        if point is None or score.grade != "above":
            return
        figure = max(_error(point, key) for key in FLOOR_KEYS[:2])
        place = (point["op"], score.config.split()[1])
        if place not in self.smallest or figure < self.smallest[place][0]:
            self.smallest[place] = (figure, score.mutant.id)

    @property
    def is_right(self) -> bool:
        return not self.complaints()

    def complaints(self) -> list[str]:
        """What the issue's reach forbids: false alarms, missed points, wrong causes."""
        lines = [f"clean, {case.id}: {text}" for case in self.clean for text in case.complaints]
        lines += [f"{case.id}: {text}" for case in self.odd for text in case.complaints]
        for one in self.scores:
            where = f"{one.mutant.id} ({one.config}, {figure(one.effect)} times the limit)"
            if one.error:
                lines.append(f"{where}: {one.error}")
            elif not one.is_found:
                lines.append(f"{where}: expected {one.expected} first, found {one.found}")
            if one.accused:
                lines.append(f"{where}: accused right points {', '.join(one.accused[:4])}")
            if WRONG in one.outcomes:
                wanted = " + ".join(str(part.causes) for part in one.mutant.parts)
                lines.append(f"{where}: expected {wanted}, found {', '.join(one.causes)}")
        return lines

    def unexplained(self) -> list[str]:
        return [
            f"{one.mutant.id} ({one.config}): {', '.join(one.causes) or 'no finding'}"
            for one in self.scores
            if one.grade == "above" and UNEXPLAINED in one.outcomes and WRONG not in one.outcomes
        ]


def _error(point: dict[str, Any], key: str) -> float:
    """Noise units; what is not finite stands in the JSON as a string."""
    error = float((point.get(key) or {}).get("error") or 0.0)
    return math.inf if math.isnan(error) else error


def figure(value: float) -> str:
    if value >= 1e20:
        return "∞"
    return f"{value:.2g}" if value < 100 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def totals(results: Results) -> list[tuple[str, str, str]]:
    """What, the reach, the result."""
    scores, clean, odd = results.scores, results.clean, results.odd
    above, grey, below = ([one for one in scores if one.grade == grade] for grade in ("above", "grey", "below"))
    listed = [one for one in above if all(part.causes[0] is not None for part in one.mutant.parts)]
    subtle = [one for one in above if "subtle" in one.mutant.tags]
    outcomes = [outcome for one in above for outcome in one.outcomes]
    said, could = (sum(one.places[i] for one in scores) for i in (0, 1))
    return [
        ("clean runs with a false alarm", "0", share(clean, lambda one: bool(one.complaints))),
        ("mutants above the limit whose first faulty point is named", "100 %", share(above, lambda one: one.is_found)),
        ("mutants above it with a known cause, named first", "95 %", share(listed, lambda one: one.is_named)),
        ("unlisted bugs: unexplained with a true pattern, as they should", "", str(outcomes.count(DESCRIBED))),
        ("unexplained, and should not be", "", str(outcomes.count(UNEXPLAINED))),
        ("mutants with a wrong cause", "0", share(scores, lambda one: WRONG in one.outcomes)),
        ("mutants with a right point accused", "0", share(scores, lambda one: bool(one.accused))),
        ("subtle mutants above the limit, found and named", "all", share(subtle, lambda o: o.is_found and o.is_named)),
        ("mutants below the limit, called clean", "counted apart", share(below, lambda one: one.found is None)),
        ("mutants at the limit, found (either is right)", "", share(grey, lambda one: one.found is not None)),
        ("traces that are not what they claim, refused or accused", "", share(odd, lambda one: not one.complaints)),
        ("places (decode, later chunk, sequence, heads) said", "", f"{said} of {could}"),
    ]


def share(items: list[Any], has: Callable[[Any], bool]) -> str:
    count, total = sum(map(has, items)), len(items)
    return f"{count} of {total}" + (f" ({100 * count / total:.1f} %)" if total else "")


def text(results: Results) -> str:
    """For the terminal."""
    lines = [f"{what:<64} {found:<24} {reach and f'(reach: {reach})'}" for what, reach, found in totals(results)]
    lines += ["", *(f"WRONG  {line}" for line in results.complaints())]
    lines += [f"unexplained  {line}" for line in results.unexplained()]
    return "\n".join([*lines, f"{results.seconds:.0f} s"])


DOCUMENT = """# Accuracy

Generated by `make zoo`; do not edit. The [zoo](../tests/zoo) plants bugs in the pure PyTorch reference, one at a time,
in pairs, and in places (decode only, a later chunk, one sequence of a batch, one head, late positions), and lets
`lockstep replay` judge the traces. The mutants share no code with the judge. Correct runs must be acquitted.

Command: `{command}`. {runs} runs of {mutants} mutants, {clean} clean cases, {minutes:.1f} minutes.

| what | reach | result |
|---|---|---|
{totals}

## Deviations

{deviations}

## The gap

Noise units of the worst row, worst head and largest value of any point in any clean case, and the smallest worst row or
head of a mutant above the limit at the point where it must be found (such are found by one value or the scale term).

{gap}

## Clean cases

{acquittals}

## Traces that are not what they claim

| what | refused or accused, by name |
|---|---|
{odd}

## Mutants

The expected effect is a multiple of the [limit of detection](replay.md#limits), computed beforehand in float64. Behind
the arrow: the noise units that the named cause leaves. `✓` alone: unexplained with a true pattern, as it should. `–`:
called clean, below the limit. `?`: unexplained. `✗`: a deviation, listed above.

{table}
"""


def markdown(results: Results, command: str) -> str:
    complaints = [f"- {line}" for line in results.complaints()]
    complaints += [f"- unexplained: {line}" for line in results.unexplained()]
    return DOCUMENT.format(
        command=command,
        runs=len(results.scores),
        mutants=len({one.mutant.id for one in results.scores}),
        clean=len(results.clean),
        minutes=results.seconds / 60,
        totals="\n".join(f"| {what} | {reach} | {found} |" for what, reach, found in totals(results)),
        deviations="\n".join(complaints or ["None."]),
        gap="\n".join(_gap(results)),
        acquittals="\n".join(_clean_table(results.clean)),
        odd="\n".join(f"| {one.what} | {'no' if one.complaints else 'yes'} |" for one in results.odd),
        table="\n".join(_mutant_table(results.scores)),
    )


def _gap(results: Results) -> Iterable[str]:
    yield "| op | dtype | clean row | clean head | clean value | faulty, at least | by |"
    yield "|---|---|---|---|---|---|---|"
    for op, dtype in sorted({key[:2] for key in results.floors}):
        row, head, value = (figure(results.floors[op, dtype, key]) for key in FLOOR_KEYS)
        least, mutant = results.smallest.get((op, dtype), (None, ""))
        yield f"| {op} | {dtype} | {row} | {head} | {value} | {'' if least is None else figure(least)} | {mutant} |"


def _clean_table(clean: list[Acquittal]) -> Iterable[str]:
    groups: dict[str, list[Acquittal]] = defaultdict(list)
    for case in clean:
        groups[case.what].append(case)
    yield "| what | cases | acquitted |"
    yield "|---|---|---|"
    for what, cases in groups.items():
        yield f"| {what} | {len(cases)} | {sum(not case.complaints for case in cases)} |"


def _mutant_table(scores: list[Score]) -> Iterable[str]:
    configs = sorted({one.config for one in scores}, key=lambda config: ("tiny wide loud".index(config[:4]), config))
    by_id: dict[str, dict[str, Score]] = defaultdict(dict)
    for one in scores:
        by_id[one.mutant.id][one.config] = one
    yield f"| mutant | the bug | first point | cause | {' | '.join(configs)} |"
    yield f"|---|---|---|---|{'---|' * len(configs)}"
    for mutant in ALL:
        if mutant.id not in by_id:
            continue
        own = by_id[mutant.id]
        expected = next((one.expected for one in own.values() if one.expected), "–")
        causes = " + ".join(str(part.causes[0] or "*unlisted*") for part in mutant.parts)
        cells = (_cell(own[config]) if config in own else "" for config in configs)
        yield f"| {mutant.id} | {mutant.bug} | {expected} | {causes} | {' | '.join(cells)} |"


def _cell(one: Score) -> str:
    if not one.is_found or one.is_wrong:
        return f"{figure(one.effect)} ✗"
    if one.found is None:
        return f"{figure(one.effect)} –"
    if not one.is_named:
        return f"{figure(one.effect)} ?"
    left = "" if one.explained is None else f" → {figure(one.explained)}"
    return f"{figure(one.effect)}{left} ✓"
