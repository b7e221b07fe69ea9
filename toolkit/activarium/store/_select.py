"""Rows by what they are: token, label, example, phase, kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from activarium._recorded import plain
from activarium.activations import Activations
from activarium.errors import InputError, unknown
from activarium.rows import Rows
from activarium.store._derived import Captured
from activarium.store._format import digest
from activarium.store._stored import Picked, Stored, picked

if TYPE_CHECKING:
    import pandas


def select(recording: Captured, where: Mapping[str, Any]) -> Captured:
    """See `Captured.select`."""
    if not where:
        raise InputError("select needs at least one column: where={'kind': 'token'}.")
    spaces = [s for s, rows in recording.rows.items() if all(c in rows for c in where)]
    if not spaces:
        known = sorted({c for rows in recording.rows.values() for c in rows.columns})
        lacking = next((c for c in where if c not in known), None)
        if lacking is None:
            raise InputError(f"No row space has all of the columns {', '.join(where)}. Select by one after the other.")
        raise unknown("row column", lacking, known)
    index = {s: np.flatnonzero(_mask(recording.rows[s], where)) for s in spaces}
    if not any(len(i) for i in index.values()):
        raise InputError(f"No row has {plain(where)}. {_what_there_is(recording.rows[spaces[0]], where)}")
    rows = {s: _taken(recording.rows[s], i) for s, i in index.items()}
    names = [n for n in recording if recording._space(n) in index]
    makers = {n: partial(_made, recording, n, index[recording._space(n)], rows[recording._space(n)]) for n in names}
    aliases = {a: n for a, n in recording._aliases.items() if n in makers}
    attention = recording.attention if all(_whole(recording.rows[s], i) for s, i in index.items()) else {}
    kept = {b: spec for b, spec in attention.items() if {f"{b}.q_rot", f"{b}.k_rot"} <= {*makers, *aliases}}
    marks = b"".join(s.encode() + i.tobytes() for s, i in index.items())
    origin = {**recording.provenance, "id": digest(str(recording.provenance.get("id")).encode() + marks), "selected": plain(where)}
    return Captured(makers, rows, origin, aliases, kept, {n: recording._space(n) for n in makers})


def _made(recording: Captured, name: str, index: np.ndarray, rows: Rows) -> Activations:
    site = recording[name]
    parts = picked(site, index)
    kind = Stored if parts and all(isinstance(p, Picked) for p in parts) else Activations
    nothing = site._parts[0][:0] if hasattr(site._parts[0], "__getitem__") else site._parts[0].span(0, 0)  # type: ignore[index,union-attr]
    return kind(parts or nothing, site.axes, site=name, index=rows, provenance=recording.provenance)


def _taken(rows: Rows, index: np.ndarray) -> Rows:
    """Columns of the chosen rows, each made when somebody looks at it."""
    return Rows({name: lambda name=name: rows[name][index] for name in rows.columns})


def _mask(rows: Rows, where: Mapping[str, Any]) -> np.ndarray:
    mask = np.ones(len(rows), bool)
    for column, wanted in where.items():
        mask &= _fits(rows[column], wanted, column)
    return mask


def _fits(values: np.ndarray, wanted: Any, column: str) -> np.ndarray:
    if callable(wanted):
        answer = np.asarray(wanted(values))
        if answer.dtype != bool or answer.shape != values.shape:
            raise InputError(
                f"The function for {column!r} gave {answer.dtype} of shape {answer.shape}; wanted one true or false for each of {len(values)} rows."
            )
        return answer
    several = isinstance(wanted, Collection) and not isinstance(wanted, (str, bytes, Mapping))
    return _series(values).isin(list(wanted) if several else [wanted]).to_numpy()


def _whole(rows: Rows, index: np.ndarray) -> bool:
    """Are all rows of every chosen example chosen?"""
    example = rows["example"]
    return int(np.isin(example, example[index]).sum()) == len(index)


def _what_there_is(rows: Rows, where: Mapping[str, Any]) -> str:
    lines = []
    for column in where:
        found = [v.item() if hasattr(v, "item") else v for v in _series(rows[column]).unique()[:7]]
        lines.append(f"{column!r} holds {', '.join(map(repr, found[:6]))}{', …' if len(found) > 6 else ''}")
    return "; ".join(lines) + "."


def _series(values: np.ndarray) -> pandas.Series:
    import pandas

    return pandas.Series(values)
