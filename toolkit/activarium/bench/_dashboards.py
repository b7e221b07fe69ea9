"""Dashboards: encoding rows once, and making every page from the codes; the most memory that takes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from activarium.bench._memory import peak
from activarium.bench._timing import Row, absent
from activarium.rows import Rows

EXAMPLE = 128  # tokens of one


def dashboards(small: bool) -> list[Row]:
    """Seconds to encode, to make all pages from codes, to open them and read one; MiB of memory and disk."""
    rows, features, k, width = (20_000, 256, 8, 32) if small else (1_000_000, 4096, 32, 64)
    shape = f"{features} features, {rows:,} rows, k {k}"
    with tempfile.TemporaryDirectory() as folder:
        coded, encoding = _encoded(rows, features, k, width)
        made = _Timed(lambda: _build(coded, Path(folder) / "pages.features"))
        most = peak(made)
        opened = _Timed(lambda: _opened(Path(folder) / "pages.features", features // 2))
        opened()
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 2**20
    codes = sum(len(part.values) for part in coded.parts)
    per = f"{codes / rows:.1f} codes in a row, {rows / made.processor:,.0f} rows/s in processor time; two passes, co-firing, one folder"
    found = [
        _row(f"encoding once, d_in {width}, {shape}", encoding, f"{rows / encoding.processor:,.0f} rows/s in processor time"),
        _row(f"all pages from codes that are there, {shape}", made, per),
        _row(f"pages opened, columns read, one page read, {shape}", opened, "the first time, its file's hash included"),
        Row(f"pages on the disk, {shape}", size, "MiB"),
    ]
    what = f"peak memory while pages are made, {shape}"
    held = codes * 8 / 2**20
    note = f"the codes alone would take {held:,.0f} MiB"
    return [*found, absent(what, "this system does not tell") if most is None else Row(what, most, "MiB", note=note)]


class _Timed:
    """A call that remembers how long it took."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call, self.wall, self.processor = call, 0.0, 0.0

    def __call__(self) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        made = self._call()
        self.wall, self.processor = time.perf_counter() - wall, time.process_time() - processor
        return made


def _row(what: str, timed: _Timed, note: str) -> Row:
    return Row(what, 1000 * timed.wall, "ms", note=note, processor=1000 * timed.processor)


@dataclass(frozen=True, eq=False)
class _Codes:
    """Codes in memory, so that the passes over them are timed and nothing else."""

    parts: list[Any]
    chosen: np.ndarray
    width: int
    index: Rows

    def pieces(self, rows: int = 4096) -> Iterator[tuple[np.ndarray, Any]]:
        first = 0
        for part in self.parts:
            yield self.chosen[first : first + len(part)], part
            first += len(part)


def _encoded(rows: int, features: int, k: int, width: int) -> tuple[_Codes, _Timed]:
    """Rows of a few of many directions, coded by a dictionary of more."""
    from activarium.dictionaries import SAE, Codes, Design

    sae = SAE(Design(width, features, kind="topk", k=k), seed=4).requires_grad_(False)
    generator = torch.Generator().manual_seed(12)
    step, parts, timed = 4096, [], _Timed(lambda: None)
    for first in range(0, rows, step):
        x = torch.randn(min(step, rows - first), width, generator=generator)
        one = _Timed(lambda x=x: Codes.concatenate([sae.codes(block) for block in x.split(1024)]))
        parts.append(one())
        timed.wall, timed.processor = timed.wall + one.wall, timed.processor + one.processor
    number = np.arange(rows)
    words = np.array([f" w{i}" for i in range(5000)], dtype=object)[number * 7919 % 5000]
    index = Rows({"example": number // EXAMPLE, "position": number % EXAMPLE, "text": words})
    return _Codes(parts, number, features, index), timed


def _build(coded: _Codes, path: Path) -> None:
    from activarium.dashboards import build
    from activarium.recording import Recording

    build(coded, Recording({}, {"": coded.index}), path, progress=False)


def _opened(path: Path, feature: int) -> None:
    from activarium.dashboards import open_pages

    pages = open_pages(path)
    assert len(pages.columns["fires"]) == len(pages)
    assert pages.page(feature)["histogram"]["counts"].sum() == pages.columns["fires"][feature]
