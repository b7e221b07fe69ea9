"""A training series, wherever it comes from: one value per layer at each step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from activarium import data
from activarium.errors import InputError, NotFinite
from activarium.results import Series

FILE = "massive_series.json"
FEWEST = 8  # AICc of five numbers and the noise needs more than seven points

Given = Series | Mapping[int, Sequence[float]] | str | Path


def recorded_series(source: Given) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Steps in order, and per layer the values at them.

    Raises:
        InputError: No such file, another format, too few steps, the same step twice, a layer whose values are all equal.
        NotFinite: A value is NaN or infinite.
    """
    steps, layers = _read(source)
    order = np.argsort(steps, kind="stable")
    steps, layers = steps[order], {name: values[order] for name, values in layers.items()}
    if len(steps) < FEWEST:
        raise InputError(f"A curve of five numbers needs at least {FEWEST} steps; this series has {len(steps)}. Record more checkpoints.")
    if not layers:
        raise InputError("This series has no layers. Give at least one ratio per step.")
    if steps[0] < 0 or (np.diff(steps) == 0).any():
        twice = steps[:-1][np.diff(steps) == 0]
        found = f"step {twice[0]:g} stands twice" if len(twice) else f"the first is {steps[0]:g}"
        raise InputError(f"Steps count from 0, each once; {found}. Give one value per step.")
    for name, values in layers.items():
        if not np.isfinite(values).all():
            raise NotFinite(f"{name} is {values[~np.isfinite(values)][0]} at step {steps[~np.isfinite(values)][0]:g}. Leave that step out.")
        if np.ptp(values) == 0:
            raise InputError(f"{name} is {values[0]:g} at every step: a constant has no curve. Leave that layer out.")
    return steps, layers


def _read(source: Given) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    if isinstance(source, Series):
        return np.asarray(source.x, dtype=np.float64), {name: np.asarray(v, dtype=np.float64) for name, v in source.curves.items()}
    if isinstance(source, Mapping):
        return _table(list(source), list(source.values()))
    path = _file(source)
    try:
        points = json.loads(path.read_text(encoding="utf-8"))["series"]
        return _table([p["step"] for p in points], [p["ratio"] for p in points])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f'{path.name} is not a massive-activation series: {error!r}. Wanted {{"series": [{{"step": 0, "ratio": [one per layer]}}, …]}}.'
        ) from error


def _file(source: str | Path) -> Path:
    bundled = {name: data.folder(name) / FILE for name in data.models()}
    with_series = {name: path for name, path in bundled.items() if path.is_file()}
    path = with_series.get(str(source), Path(source))
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"There is no series at {str(source)!r}. Give the path of a {FILE}, or a bundled model: {', '.join(with_series)}.")
    return path


def _table(steps: Sequence[Any], rows: Sequence[Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise InputError(f"Every step needs one ratio per layer; found steps with {widths[0]} and with {widths[-1]}. Give as many at each.")
    values = np.array(rows, dtype=np.float64).reshape(len(rows), -1)
    return np.array(steps, dtype=np.float64), {f"block {i}": values[:, i] for i in range(values.shape[1])}
