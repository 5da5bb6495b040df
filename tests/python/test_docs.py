"""The documentation against the program: each command has a page that names its options, and no link is dead."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from programs import ROOT, lockstep

DOCS = ROOT / "docs"
# Commands whose page is not docs/COMMAND.md.
PAGES = {
    "import": "import-export.md",
    "export": "import-export.md",
    "record": "golden.md",
    "check": "golden.md",
}
# Options of other programs that a page names.
FOREIGN = {"--build", "--parallel", "--quiet"}


@cache
def help_of(*command: str) -> str:
    done = lockstep(*command, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def commands() -> tuple[str, ...]:
    listed = help_of().partition("Subcommands:\n")[2]
    return tuple(re.findall(r"^  (\w+)", listed, re.MULTILINE))


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text))


@cache
def options_of(command: str) -> frozenset[str]:
    return frozenset(options_in(help_of(command)) - {"--help"})


def page_of(command: str) -> Path:
    return DOCS / PAGES.get(command, f"{command}.md")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_help_lists_commands() -> None:
    assert {"debug", "reference", "compare", "replay", "show", "doctor"} <= set(commands())
    assert "--more-reference" in options_of("compare") and "--implementation" in options_of("reference")


def test_each_option_stands_on_its_command_s_page() -> None:
    missing = []
    for command in commands():
        page = page_of(command)
        assert page.exists(), f"lockstep {command} has no page; write {named(page)}"
        missing += [f"{named(page)}: {option}" for option in options_of(command) - options_in(page.read_text())]
    assert not missing, f"options that --help lists and the page does not name: {sorted(missing)}"


def test_no_command_s_page_names_an_option_that_does_not_exist() -> None:
    known = FOREIGN.union(*map(options_of, commands()))
    pages = {page_of(command) for command in commands()} | {DOCS / "tutorial.md", DOCS / "tricky-cases.md"}
    unknown = [
        f"{named(page)}: {option}"
        for page in sorted(pages)
        if page.exists()
        for option in options_in(page.read_text()) - known
    ]
    assert not unknown, f"options that no command has: {unknown}"


def pages() -> list[Path]:
    """Every markdown file of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split() if (ROOT / name).exists()]
    return [path for path in ROOT.rglob("*.md") if not {"build", ".venv"} & set(path.relative_to(ROOT).parts)]


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path, text: str) -> list[str]:
    prose = re.sub(r"```.*?```|`[^`\n]*`", lambda code: "`" if code[0][0] == "`" else "", text, flags=re.DOTALL)
    dead = []
    for target in re.findall(r"\]\(([^()\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            dead.append(f"{named(page)}: {target}")
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text()):
            dead.append(f"{named(page)}: {target} (no such heading)")
    return dead


def test_relative_links_resolve() -> None:
    assert len(pages()) > 10
    dead = [link for page in pages() for link in dead_links(page, page.read_text())]
    assert not dead, f"dead links: {dead}"


@pytest.mark.parametrize("target", ["nowhere.md", "../nowhere", "compare.md#no-such-heading"])
def test_a_dead_link_is_found(target: str) -> None:
    assert dead_links(DOCS / "README.md", f"See [`a page`]({target}) and [b](compare.md#classes).") != []


def test_the_index_lists_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    missing = [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index]
    assert not missing, f"docs/README.md does not link {missing}"
