"""Calls the judge on one trace and scores what it says against what was planted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep.points import parse_name
from programs import LOCKSTEP, lockstep

from zoo.context import Mutant, Part
from zoo.play import Played

__all__ = ["LOCKSTEP", "Score", "consequences", "expectation", "judge", "score"]

NAMED, DESCRIBED, UNEXPLAINED, WRONG = "named", "described", "unexplained", "wrong"


def judge(trace: Path, model: Path) -> dict[str, Any]:
    """The judge's JSON. Raises RuntimeError if it could not tell."""
    exit_code, said, found = ask(trace, model)
    if exit_code not in (0, 1):
        raise RuntimeError(f"exit code {exit_code}: {said.strip()[-300:]}")
    return json.loads(found)


def ask(trace: Path, model: Path) -> tuple[int, str, str]:
    """Exit code, what was printed, and the JSON (empty if none was written)."""
    out = trace.with_suffix(".json")
    done = lockstep("replay", trace, "--model", model, "--json", out)
    return done.returncode, done.stdout + done.stderr, out.read_text() if out.exists() else ""


@dataclass
class Score:
    """One mutant in one model and dtype."""

    mutant: Mutant
    config: str  # "tiny f32"
    grade: str  # "above" the limit of detection, "grey" or "below"
    expected: str | None  # the point that must be named first, if one must
    effect: float  # of that point, or the largest; 1 is the limit of detection
    found: str | None = None  # what was named first
    causes: list[str] = field(default_factory=list)  # as named, a finding each
    explained: float | None = None  # noise units that the first cause leaves
    outcomes: list[str] = field(default_factory=list)  # a part each
    accused: list[str] = field(default_factory=list)  # points that are right, and were called faulty
    places: tuple[int, int] = (0, 0)  # patterns of the place that were said, of those that could be
    error: str = ""

    @property
    def is_found(self) -> bool:
        return not self.error and (self.grade != "above" or self.found == self.expected)

    @property
    def is_named(self) -> bool:
        return bool(self.outcomes) and all(outcome in (NAMED, DESCRIBED) for outcome in self.outcomes)

    @property
    def is_wrong(self) -> bool:
        return WRONG in self.outcomes or bool(self.accused)

    @property
    def is_right(self) -> bool:
        """Nothing to complain about."""
        return self.is_found and not self.is_wrong and (self.grade != "above" or self.is_named)


def expectation(mutant: Mutant, played: Played) -> Score:
    """What must come out, known before the judge is asked."""
    above, largest = played.graded("above"), max((e.over_limit() for e in played.effects.values()), default=0.0)
    grade = "above" if above else "grey" if played.graded("grey") else "below"
    effect = played.effects[above[0]].over_limit() if above else largest
    config = f"{played.loaded.name} {played.loaded.dtype}"
    return Score(mutant, config, grade, above[0] if above else None, effect)


def score(mutant: Mutant, played: Played, result: dict[str, Any]) -> Score:
    one = expectation(mutant, played)
    faulty = [point["name"] for point in result["points"] if point["verdict"] == "faulty"]
    one.found = result["first_faulty"]
    innocent = set(faulty) - set(played.effects) - consequences(mutant, played)
    one.accused = [name for name in faulty if name in innocent]
    if one.expected and one.found in played.effects and played.order(one.found) < played.order(one.expected):
        one.expected = one.found  # a point of the same mutant whose effect is at the limit
    said, could = 0, 0
    for part in mutant.parts:
        outcome, finding = _outcome(part, mutant, played, result["findings"])
        if outcome is None:
            continue
        one.outcomes.append(outcome)
        if finding:
            one.causes.append(finding["cause"] or "+".join(sorted(_ids(finding))))
            if one.explained is None and finding["cause"]:
                one.explained = float(finding.get("explained") or 0.0)
            place = _place(part)
            said, could = said + len(place & _ids(finding)), could + len(place)
    one.places = (said, could)
    return one


def consequences(mutant: Mutant, played: Played) -> set[str]:
    """Points that may be called faulty, too: the context is defined by q, k and v, whatever became of the scores."""
    touched = (parse_name(name) for name in played.effects)
    return {f"layer_{layer}_attn_context" for point, layer in touched if point in ("attn_scores", "attn_probs")}


Finding = dict[str, Any]


def _outcome(part: Part, mutant: Mutant, played: Played, findings: list[Finding]) -> tuple[str | None, Finding | None]:
    """The worst outcome of a part's findings, and the first finding; None if there is nothing that must be found."""
    own = {name for name in played.effects if _belongs(name, part, mutant, played)}
    about = [finding for finding in findings if own & set(finding["points"])]
    order = {WRONG: 0, UNEXPLAINED: 1, DESCRIBED: 2, NAMED: 3}
    causes = {*part.causes, *(cause for cause, _ in part.twins if played.twins.get(cause, 1.0) < 1)}
    outcomes = [_of_finding(part, causes, finding) for finding in about]
    if outcomes:
        return min(outcomes, key=order.__getitem__), about[0]
    must = any(played.effects[name].grade == "above" for name in own)
    return (UNEXPLAINED if must else None), None


def _of_finding(part: Part, causes: set[str | None], finding: dict[str, Any]) -> str:
    cause = finding["cause"]
    if cause is not None:
        return NAMED if cause in causes else WRONG
    is_true = None in part.causes and bool(_ids(finding) & set(part.patterns))
    return DESCRIBED if is_true else UNEXPLAINED


def _belongs(name: str, part: Part, mutant: Mutant, played: Played) -> bool:
    (point, layer), layers = parse_name(name), played.loaded.model.config.num_hidden_layers
    return point in (*part.points, *mutant.seen_at) and part.where.has_layer(layer, layers)


def _ids(finding: dict[str, Any]) -> set[str]:
    return {pattern["id"] for pattern in finding["patterns"]}


def _place(part: Part) -> set[str]:
    """The patterns that say where the part applies."""
    where, place = part.where, set()
    if where.phase == "decode":
        place.add("decode-only")
    if where.later_chunk:
        place.add("later-chunk-only")
    if where.sequence is not None:
        place.add("one-sequence")
    if where.heads is not None:
        place.add("some-heads")
    return place
