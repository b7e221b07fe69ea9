"""What the rooms of the tour share: the page that grows, the terminal that speaks, and models captured to stores."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

import activarium as act
from activarium.results import Report

SENTENCES, SEED = 40, 31  # sentences per family; the seed draws held-out ones
Made = TypeVar("Made")
SITES = ("embed", "blocks.*.resid_post", "blocks.*.mlp.act", "logits")


@dataclass
class Tour:
    """What the tour has collected so far.

    Attributes:
        out: Folder that stores and page are written to.
        console: Where the findings are printed.
        parts: Section title → Result, widget or text, for the page.
        models: Those that were captured, by name, for rooms that run them again.
    """

    out: Path
    console: Console
    parts: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)

    def say(self, title: str, words: Sequence[str]) -> None:
        """Print findings and put them on the page."""
        self.console.print(f"\n[bold]{title}[/bold]")
        for line in words:
            self.console.print(f"  • {line}", markup=False, highlight=False)
        self.parts[title] = "\n\n".join(words)

    def keep(self, title: str, report: Report, name: str) -> None:
        """Put one part of a report on the page, with where it came from."""
        self.parts[title] = report[name].with_(provenance=report.provenance)

    def table(self, title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
        """Print a table."""
        made = Table(title=title, title_justify="left")
        for i, name in enumerate(head):
            made.add_column(name, justify="left" if i == 0 else "right")
        for line in lines:
            made.add_row(*line)
        self.console.print(made)

    def captured(self, name: str, data: Sequence[Any]) -> tuple[Any, Any]:
        """Load, prove, capture to a store, open it again and check every byte."""
        model = self.models[name] = act.load(name)
        path = self.out / "demo" / f"{name}.acts"
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        act.capture(model, list(data), SITES, to=path, progress=False)
        seconds = time.perf_counter() - started
        store = act.open(path)
        store.verify()
        rows = sum(len(table) for table in store.rows.values())
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e6
        self.console.rule(f"[bold]{name}")
        line = f"{len(data)} inputs, {rows:,} rows of {len(list(store))} sites in {seconds:.1f} s; {size:.1f} MB in {path}; every checksum holds."
        proof = model.certificate.summary()
        self.say(
            f"{name} · captured", [line, f"The sites are {proof['verdict']}; the largest gap of any check is {proof['worst_gap']:.1g}."]
        )
        return model, store


def heard(call: Callable[[], Made]) -> tuple[Made, list[str]]:
    """What a call makes, with the warnings it gave, as words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = call()
    return made, [*dict.fromkeys(f"Warning given: {w.message}" for w in caught)]
