"""docs/accuracy.md and the table on the terminal."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from zoo import noise
from zoo.mutants import ALL
from zoo.noise import op_kind
from zoo.verdict import DESCRIBED, NAMED, UNEXPLAINED, WRONG, Score

FLOOR_KEYS = ("worst_row", "worst_head", "max")


@dataclass
class Acquittal:
    """A clean case."""

    id: str
    what: str
    complaints: list[str]


@dataclass
class Results:
    scores: list[Score] = field(default_factory=list)
    clean: list[Acquittal] = field(default_factory=list)
    floors: dict[tuple[str, str, str], float] = field(default_factory=lambda: defaultdict(float))  # op, dtype, key
    smallest: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)  # op, dtype -> figure, mutant
    seconds: float = 0.0

    def add_floor(self, dtype: str, result: dict[str, Any]) -> None:
        for point in result["points"]:
            for key in FLOOR_KEYS:
                place = (point["op"], dtype, key)
                self.floors[place] = max(self.floors[place], (point.get(key) or {}).get("error") or 0.0)

    def add_fault(self, score: Score, result: dict[str, Any]) -> None:
        """Of a mutant above the limit, how its first point looks in its worst row or head."""
        point = next((p for p in result["points"] if p["name"] == score.expected), None)
        if point is None or score.grade != "above":
            return
        figure = max((point.get(key) or {}).get("error") or 0.0 for key in FLOOR_KEYS[:2])
        place = (point["op"], score.config.split()[1])
        if place not in self.smallest or figure < self.smallest[place][0]:
            self.smallest[place] = (figure, score.mutant.id)

    @property
    def is_right(self) -> bool:
        return not self.complaints()

    def complaints(self) -> list[str]:
        """What the issue's reach forbids: false alarms, missed points, wrong causes."""
        lines = [f"clean, {case.id}: {text}" for case in self.clean for text in case.complaints]
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


def figure(value: float) -> str:
    if value >= 1e20:
        return "∞"
    return f"{value:.2g}" if value < 100 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def share(count: int, total: int) -> str:
    return f"{count} of {total}" + (f" ({100 * count / total:.1f} %)" if total else "")


def totals(results: Results) -> list[tuple[str, str, str]]:
    """What, the reach, the result."""
    scores = results.scores
    above = [one for one in scores if one.grade == "above"]
    listed = [one for one in above if all(part.causes[0] is not None for part in one.mutant.parts)]
    below = [one for one in scores if one.grade == "below"]
    said, could = (sum(one.places[i] for one in scores) for i in (0, 1))
    outcomes = [outcome for one in above for outcome in one.outcomes]
    return [
        ("clean runs with a false alarm", "0", share(sum(bool(c.complaints) for c in results.clean), len(results.clean))),
        ("mutants above the limit whose first faulty point is named", "100 %", share(sum(one.is_found for one in above), len(above))),
        ("mutants with a known cause whose cause is named first", "95 %", share(sum(one.is_named for one in listed), len(listed))),
        ("parts of mutants that stay unexplained with a true pattern, as they should", "", str(outcomes.count(DESCRIBED))),
        ("parts that stay unexplained and should not", "", str(outcomes.count(UNEXPLAINED))),
        ("wrong causes", "0", str(sum(WRONG in one.outcomes for one in scores))),
        ("mutants with a right point accused", "0", str(sum(bool(one.accused) for one in scores))),
        ("mutants below the limit, called clean", "all, or the true point", share(sum(one.found is None for one in below), len(below))),
        ("mutants at the limit (either answer is right), found", "", share(sum(one.found is not None for one in scores if one.grade == "grey"), sum(one.grade == "grey" for one in scores))),
        ("places (decode, later chunk, sequence, heads) said", "", share(said, could)),
        ("subtle mutants above the limit, found and named", "all", share(sum(one.is_found and one.is_named for one in above if "subtle" in one.mutant.tags), sum("subtle" in one.mutant.tags for one in above))),
    ]  # fmt: skip


def text(results: Results) -> str:
    """For the terminal."""
    lines = [
        f"{what:<76} {found:<24} {'(reach: ' + reach + ')' if reach else ''}" for what, reach, found in totals(results)
    ]
    lines += ["", *(f"WRONG  {line}" for line in results.complaints())]
    lines += [f"unexplained  {line}" for line in results.unexplained()]
    return "\n".join([*lines, f"{results.seconds:.0f} s"])


def markdown(results: Results, command: str) -> str:
    configs = sorted(
        {one.config for one in results.scores}, key=lambda c: ("tiny wide loud".index(c.split()[0]), c[::-1])
    )
    parts = [
        "# Accuracy",
        "",
        "Generated by `make zoo`; do not edit. The [zoo](../tests/zoo) plants bugs in the pure PyTorch reference, one at a time, in "
        "pairs, and in places (decode only, a later chunk, one sequence of a batch, one head, late positions), and lets "
        "`lockstep replay` judge the traces. The mutants share no code with the judge. Correct runs must be acquitted.",
        "",
        f"Command: `{command}`. {len(results.scores)} runs of {len({s.mutant.id for s in results.scores})} mutants, "
        f"{len(results.clean)} clean cases, {results.seconds / 60:.1f} minutes.",
        "",
        "| what | reach | result |",
        "|---|---|---|",
        *(f"| {what} | {reach} | {found} |" for what, reach, found in totals(results)),
        "",
        "## Deviations",
        "",
        *(
            [f"- {line}" for line in results.complaints() + [f"unexplained: {u}" for u in results.unexplained()]]
            or ["None."]
        ),
        "",
        "## The gap",
        "",
        "Noise units of the worst row and the worst head: the largest of any point in any clean case, and the smallest of a mutant above "
        "the limit at the point that it must be found at (some are found by a single value or by the scale term instead).",
        "",
        *_gap(results),
        "",
        "## Clean cases",
        "",
        *_clean_table(results.clean),
        "",
        "## Mutants",
        "",
        f"Expected effect as a multiple of the limit of detection ({noise.ROW_LIMIT:g} noise units in a row or a head, "
        f"{noise.VALUE_LIMIT:g} in a single value, or a scale of {noise.SCALE_ERRORS:g} standard errors and {noise.SCALE_LIMIT:g}), computed beforehand "
        "in float64 → the noise units that the named cause leaves (✓), or ✓ alone where it stays unexplained with a true pattern. "
        "`–`: below the limit and called clean. `?`: unexplained. `✗`: a deviation, listed above.",
        "",
        f"| mutant | the bug | first point | cause | {' | '.join(configs)} |",
        f"|---|---|---|---|{'---|' * len(configs)}",
        *_mutant_rows(results.scores, configs),
        "",
    ]
    return "\n".join(parts)


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


def _mutant_rows(scores: list[Score], configs: list[str]) -> Iterable[str]:
    by_id: dict[str, dict[str, Score]] = defaultdict(dict)
    for one in scores:
        by_id[one.mutant.id][one.config] = one
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


def summary(scores: list[Score]) -> str:
    """One line on the way."""
    named = sum(one.is_named for one in scores)
    effects = [one.effect for one in scores if one.grade == "above"]
    median = statistics.median(effects) if effects else 0.0
    return f"{len(scores)} runs, {named} {NAMED}, median effect {figure(median)}"


__all__ = ["Acquittal", "Results", "markdown", "op_kind", "summary", "text", "totals"]
