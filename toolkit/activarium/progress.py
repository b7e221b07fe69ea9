"""What long work shows: a line that says what it does, and a bar with its speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def say(loud: bool, *lines: str) -> None:
    """Print the lines that are not empty."""
    if loud:
        from rich.console import Console

        for line in filter(None, lines):
            Console(soft_wrap=True).print(line, markup=False, highlight=False)


@contextmanager
def progress_bar(show: bool, doing: str, total: int, unit: str = "examples") -> Iterator[Any]:
    """A progress bar with its speed: call what it gives with (count, rows, bytes), or with the count alone, and with `note=` to say more."""
    if not show:
        yield lambda *_, **__: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn(f"{doing} {unit}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn()]
    with Progress(*columns) as bar:
        task, started, sums = bar.add_task(doing, total=total, speed=""), time.perf_counter(), [0, 0, 0]

        def advance(count: int, rows: int = 0, size: int = 0, note: str = "") -> None:
            sums[:] = sums[0] + rows, sums[1] + size, sums[2] + count
            seconds = max(time.perf_counter() - started, 1e-9)
            captured = f"{sums[0] / seconds:,.0f} rows/s  {sums[1] / seconds / 2**20:,.1f} MiB/s"
            speed = captured if sums[0] else f"{sums[2] / seconds:,.0f} {unit}/s"
            bar.update(task, advance=count, speed=f"{speed}  {note}" if note else speed)

        yield advance
