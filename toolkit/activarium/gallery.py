"""What there is, read from the folders: the lines of `activarium list` and the README's table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from activarium import data
from activarium._registry import Entry, Registry, class_name
from activarium.errors import InputError

PACKAGE = Path(__file__).parent
START, END = "<!-- gallery: written by `activarium gallery` -->", "<!-- gallery ends -->"

# The rooms are read as folders here, not imported: listing must work without the packages that a room needs.
ANALYSES = Registry("activarium.analyses", PACKAGE / "analyses", "analysis")
WIDGETS = Registry("activarium.widgets", PACKAGE / "widgets", "widget", class_name)


@dataclass(frozen=True)
class Line:
    """One line of the gallery.

    Attributes:
        name: What to call it by.
        first_line: The question it answers.
        notebook: Its page in the book, relative to the repository.
    """

    name: str
    first_line: str
    notebook: str


def entries() -> dict[str, Entry]:
    """Every analysis and widget by its public name."""
    return ANALYSES.entries | WIDGETS.entries


def everything() -> dict[str, list[Line]]:
    """Heading → lines: analyses, widgets, bundled models."""
    return {
        "Analyses": [Line(e.name, e.first_line, notebook(e)) for e in ANALYSES],
        "Widgets": [Line(e.name, e.first_line, notebook(e)) for e in WIDGETS],
        "Bundled models": [Line(name, _about(name), "") for name in data.models()],
    }


def notebook(entry: Entry) -> str:
    """Where its notebook lies: a thing keeps one name in every room."""
    kind = "widgets" if entry.module.startswith("activarium.widgets") else "analyses"
    stem = entry.path.stem.removeprefix("_")
    return "/".join(["notebooks", kind, *entry.room.split("."), f"{stem}.ipynb"]).replace("//", "/")


def card(model: str) -> str:
    """The model card of a bundled model."""
    path = data.folder(model) / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else f"{model} has no card."


def table() -> str:
    """The gallery as Markdown."""
    parts = []
    for title, lines in everything().items():
        if lines:
            body = "\n".join(f"| {_linked(line)} | {_cell(line.first_line)} |" for line in lines)
            parts.append(f"| {title} | |\n|---|---|\n{body}")
    return "\n\n".join(parts)


def refresh(readme: Path) -> bool:
    """Write the table between its two markers; True if anything changed.

    Raises:
        InputError: The file or its markers are missing.
    """
    old = _text(readme)
    new = _with_table(old, readme)
    if new != old:
        readme.write_text(new, encoding="utf-8")
    return new != old


def is_current(readme: Path) -> bool:
    """Does the file already hold the table that `refresh` would write?"""
    return _with_table(_text(readme), readme) == _text(readme)


def _with_table(text: str, readme: Path) -> str:
    if START not in text or END not in text:
        raise InputError(f"{readme} lacks the two marker lines of the gallery. Put these where the table should stand:\n{START}\n{END}")
    head, rest = text.split(START, 1)
    return f"{head}{START}\n\n{table()}\n\n{END}{rest.split(END, 1)[1]}"


def _text(readme: Path) -> str:
    if not readme.is_file():
        raise InputError(f"There is no file {readme}. Run this at the root of the repository, or pass --readme.")
    return readme.read_text(encoding="utf-8")


def _linked(line: Line) -> str:
    known = line.notebook and (PACKAGE.parents[1] / line.notebook).is_file()
    return f"[`{line.name}`]({line.notebook})" if known else f"`{line.name}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _about(model: str) -> str:
    """First sentence of a model's card: the first paragraph that is neither front matter nor a heading."""
    words = re.sub(r"\A---\n.*?\n---\n", "", card(model), flags=re.DOTALL)
    paragraphs = [" ".join(p.split()) for p in words.split("\n\n") if p.strip() and not p.lstrip().startswith(("#", "|", "```", "-"))]
    sentence = re.split(r"(?<=[.!?])\s", paragraphs[0], maxsplit=1)[0] if paragraphs else ""
    return sentence if len(sentence) < 200 else sentence[:197] + "…"
