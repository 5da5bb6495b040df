"""A result in a notebook: its verdict, its findings and its worst points. Every word is escaped, colours are the
page's own (so that dark pages stay dark), and nothing is loaded or run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from lockstep.results_json import shown

if TYPE_CHECKING:
    from lockstep.results import Finding

_LONGEST = 400  # characters of a name or a sentence; the whole ones are in the result
_CELL = "padding:1px 8px;border-bottom:1px solid rgba(128,128,128,.4);text-align:left"


def html_of(headline: str, findings: Sequence[Finding], rows: Sequence[dict[str, str]]) -> str:
    """`rows` all have the keys of the first, which are the titles of the table."""
    verdict, _, rest = headline.partition(", ")
    mark = "✓" if verdict in ("same", "clean") else "✗"
    parts = [f"<p><strong>{mark} {_safe(verdict.upper())}</strong>, {_safe(rest)}</p>"]
    if findings:
        subjects = (f"{finding.side}: {finding.sentence}" if finding.side else finding.sentence for finding in findings)
        parts.append("<ul>" + "".join(f"<li>{_safe(subject)}</li>" for subject in subjects) + "</ul>")
    if rows:
        head = "".join(f'<th style="{_CELL}">{_safe(title)}</th>' for title in rows[0])
        body = "".join(
            "<tr>" + "".join(f'<td style="{_CELL}">{_safe(cell)}</td>' for cell in row.values()) + "</tr>"
            for row in rows
        )
        parts.append(f'<table style="border-collapse:collapse"><tr>{head}</tr>{body}</table>')
    return f'<div class="lockstep">{"".join(parts)}</div>'


def _safe(text: str) -> str:
    return escape(shown(text, _LONGEST))
