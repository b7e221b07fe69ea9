"""Timing side by side: calls in turns, medians, ratios, and the speed of the disk they end on."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Times = dict[str, list[tuple[float, float]]]  # call → wall and processor seconds of every round


@dataclass
class Row:
    """One line of the table.

    Attributes:
        what: What was timed, with its shape.
        value: The ratio, or milliseconds; None where it could not be measured, and `note` says why.
        unit: `×` (ratio to the reference), `ms` or `MiB`.
        goal: What we want it to be.
        spread: Lowest and highest value over the rounds.
        seconds: Median seconds of each call.
        processor: The same ratio in processor seconds: what is left of it when other programs keep the cores busy.
        note: What a reader should know beside the number.
        part: Which part of the bench it belongs to, as `--only` names it.
    """

    what: str
    value: float | None
    unit: str
    goal: str = ""
    spread: tuple[float, float] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    note: str = ""
    processor: float | None = None
    part: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"       —     {self.what}\n      {self.note}"
        spread = f" ({self.spread[0]:.3g} to {self.spread[1]:.3g})" if self.spread else ""
        times = ", ".join(f"{name} {1000 * s:,.1f} ms" for name, s in self.seconds.items())
        times += f"; in processor time {self.processor:.3f} {self.unit}" if self.processor is not None else ""
        rest = "".join(f"\n      {line}" for line in (times, self.note) if line)
        return f"{self.value:8.3f} {self.unit}{spread}   {self.what}{'   goal ' + self.goal if self.goal else ''}{rest}"


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int, warm: bool = True) -> Times:
    """Seconds of each call, taken in turns so that a busy machine slows all of them; every second round backwards."""
    for call in calls.values() if warm else ():
        call()
    times: Times = {name: [] for name in calls}
    gc.disable()  # a collection walks over all of torch, and would fall on whichever call comes next
    for i in range(rounds):
        if i % 50 == 0:
            gc.collect()
        for name in list(calls)[:: -1 if i % 2 else 1]:
            wall, processor = time.perf_counter(), time.process_time()
            calls[name]()
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    gc.enable()
    return times


def medians(times: Times) -> dict[str, tuple[float, float]]:
    """Median wall seconds and median processor seconds of each call."""
    return {name: (statistics.median(w for w, _ in found), statistics.median(p for _, p in found)) for name, found in times.items()}


def ratio(what: str, times: Times, over: str, under: str, goal: str = "", note: str = "") -> Row:
    """Median of one call over median of another."""
    each = [a / b for (a, _), (b, _) in zip(times[over], times[under], strict=True)]
    (top, busy), (bottom, idle) = medians(times)[over], medians(times)[under]
    return Row(what, top / bottom, "×", goal, (min(each), max(each)), {over: top, under: bottom}, note, busy / idle)


def beyond(what: str, call: tuple[float, float], plain: tuple[float, float], goal: str) -> Row:
    """Milliseconds that a call takes beyond the plain one."""
    wall, processor = (1000 * (a - b) for a, b in zip(call, plain, strict=True))
    return Row(what, wall, "ms", goal, seconds={"run": call[0], "plain": plain[0]}, processor=processor)


def absent(what: str, why: str, goal: str = "") -> Row:
    """A line for what could not be measured here."""
    return Row(what, None, "", goal, note=why)


def markdown(rows: Iterable[Row], machine: Mapping[str, Any]) -> str:
    """The table as a README shows it, with the machine it was taken on."""
    lines = [" · ".join(f"{k} {v}" for k, v in machine.items()), "", "| what | measured | goal | |", "|---|---|---|---|"]
    for row in rows:
        spread = f" ({row.spread[0]:.3g} to {row.spread[1]:.3g})" if row.spread else ""
        found = "—" if row.value is None else f"{row.value:.3g} {row.unit}{spread}"
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (row.what, found, row.goal, row.note)) + " |")
    return "\n".join(lines)


def disk_speed(place: Path, size: int = 256 << 20) -> float:
    """MiB/s of one large write that reaches the disk."""
    block = os.urandom(8 << 20)
    path = place / "speed"
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return size / 2**20 / seconds
