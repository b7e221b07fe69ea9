"""What the massive numbers of all layers add up to: persistent dimensions, their birth and death, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from activarium.analyses.massive.sequences import Columns
from activarium.results import Ranking, Series

SHARE, RUN = 0.9, 3  # persistent: in this share of the sequences at this many consecutive layers

_COLUMNS = {
    "dim": np.int64,
    "birth": np.int64,
    "death": np.int64,
    "layers": np.int64,
    "sign": object,
    "mean": np.float64,
    "variation": np.float64,
    "share of sequences": np.float64,
    "where": object,
    "persistent": np.bool_,
}


def persistent(table: Mapping[str, Columns], numbers: np.ndarray, sequences: int) -> Ranking:
    """Every dimension with a hit: when it is born and dies, its sign, how constant it is, whether it is persistent.

    Args:
        table: Site → columns of its hits, layers in order.
        numbers: Block number of each site.
        sequences: How many sequences were looked at.
    """
    dims = sorted({int(d) for columns in table.values() for d in columns["dim"]})
    rows = [_dimension(dim, list(table.values()), numbers, sequences) for dim in dims]
    rows.sort(key=lambda r: (-r["hits"], r["dim"]))
    columns = {name: np.array([r[name] for r in rows], dtype=kind) for name, kind in _COLUMNS.items()}
    hits = np.array([r["hits"] for r in rows], dtype=np.int64)
    return Ranking(tuple(f"dim {r['dim']}" for r in rows), hits, columns, title="Dimensions with massive activations", unit="hits")


def _dimension(dim: int, layers: list[Columns], numbers: np.ndarray, sequences: int) -> dict[str, Any]:
    here = [columns["dim"] == dim for columns in layers]
    values = np.concatenate([c["value"][h] for c, h in zip(layers, here, strict=True)])
    seen = np.array([len(np.unique(c["example"][h])) for c, h in zip(layers, here, strict=True)], dtype=np.int64)
    classes, count = np.unique(np.concatenate([c["where"][h] for c, h in zip(layers, here, strict=True)]).astype(str), return_counts=True)
    alive = numbers[seen > 0]
    return {
        "dim": dim,
        "hits": len(values),
        "birth": int(alive.min()),
        "death": int(alive.max()),
        "layers": int((seen > 0).sum()),
        "sign": "+" if (values > 0).all() else "-" if (values < 0).all() else "±",
        "mean": float(values.mean()),
        "variation": _variation([(c["value"][h], c["where"][h]) for c, h in zip(layers, here, strict=True)]),
        "share of sequences": float(seen.max() / sequences),
        "where": str(classes[count.argmax()]),
        "persistent": _longest_run(seen >= SHARE * sequences) >= RUN,
    }


def _variation(layers: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Standard deviation over |mean| of the signed value: near 0 means a constant, whatever the input.

    Taken within one layer and one class of rows, since these differ by design, then averaged by number of hits; NaN where
    no layer and class has two hits.
    """
    groups = [v[where == kind] for v, where in layers for kind in np.unique(where.astype(str))]
    pairs = [(len(g), g.std() / abs(g.mean())) for g in groups if len(g) > 1 and g.mean()]
    return float(np.average([v for _, v in pairs], weights=[n for n, _ in pairs])) if pairs else float("nan")


def _longest_run(flags: np.ndarray) -> int:
    best = run = 0
    for flag in flags.tolist():
        run = run + 1 if flag else 0
        best = max(best, run)
    return best


def lifetime_words(
    stack: str, dimensions: Ranking, largest: Ranking, series: Series, counted: Mapping[str, Any], absolute: float, ratio: float
) -> list[str]:
    """The finding in sentences, also when there is none."""
    where = f"{stack}: " if stack else ""
    rule = f"|h| > {absolute:g} and at least {ratio:g} times the sequence's median"
    sun = "Sun's criteria" if (absolute, ratio) == (100.0, 1000.0) else "the chosen criteria"
    said = [f"{where}none by {sun} ({rule}) in {counted['sequences']} sequences."]
    if counted["hits"]:
        said = [
            f"{where}{counted['hits']:,} massive activations by {sun} ({rule}), in {counted['sequences with a hit']:.0%} of the sequences."
        ]
        said += [where + _life(dimensions, i) for i in range(min(3, len(dimensions.names)))]
    peak = int(series.curves["mean"].argmax())
    said.append(
        f"{where}the largest ratio is {largest.values[0]:,.0f} times the median ({largest.names[0]}, value {largest.columns['value'][0]:.4g}); "
        f"averaged over sequences it peaks at block {series.x[peak]} with {series.curves['mean'][peak]:,.0f}."
    )
    if counted["median zero"]:
        said.append(
            f"{where}{counted['median zero']} sequences and layers have more zeros than other numbers: their median is 0, their ratio infinite."
        )
    return said


def _life(dimensions: Ranking, i: int) -> str:
    c = {name: column[i] for name, column in dimensions.columns.items()}
    steady = "" if np.isnan(c["variation"]) else f", variation {c['variation']:.1%}"
    lasting = "persistent" if c["persistent"] else "not persistent"
    return (
        f"dim {c['dim']} ({c['sign']}, {lasting}): born at block {c['birth']}, last seen at block {c['death']}, mean {c['mean']:.4g}{steady}, "
        f"mostly at rows of the class {c['where']!r}."
    )
