"""An atlas of a model: how large, how sparse and how heavy-tailed every site is, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from activarium.errors import InputError
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report, Result
from activarium.summaries import Count, Magnitudes, Moments, Summary, Survey, TopRows, context
from activarium.workflows.batch_plan import BATCH_TOKENS
from activarium.workflows.cluster import Cluster
from activarium.workflows.survey import survey

SHOWN = 40  # features and rows listed
LEFT_OUT = ("logits", "head_out", "pixels")  # as wide as the vocabulary, computed from others, no rows of the model


def atlas(
    source: Any,
    data: Any = None,
    *,
    sites: str | Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    batch_tokens: int = BATCH_TOKENS,
    on: str | Cluster | None = None,
    progress: bool = True,
) -> Report:
    """How large, how sparse and how heavy-tailed is every site of this model?

    One pass gathers `Count`, `Moments`, `Magnitudes` and the largest rows (`TopRows`) of every row-wise site.

    Args:
        source: A loaded model with `data`, a Recording (a capture, a store), or a Survey that holds those four summaries.
        data: For a model: texts, tokens, images, or what `model.inputs` made of them.
        sites: Names and patterns; by default every row-wise site but the logits.
        exclude: Row kinds that are left out (`bos special cls register …`). Pads are never rows.
        batch_tokens: For a model: most rows that run together, padding included.
        on: Where the work is spread, as in `act.survey`.
        progress: Show a progress bar.

    Returns:
        A report with a grid `site layer` for each stack and quantity: `size` (RMS), `outliers` (largest magnitude / median
        magnitude), `zeros` (percent that are exactly zero), `tails` (median kurtosis of the features, 3 for a Gaussian) and
        `dead` (percent of features that are zero in every row); then `sites` (everything as one table), `features` (those
        with the largest mean magnitude, against the median of their site) and `rows` (where each site is largest).

    Raises:
        InputError: There is no row-wise site, or a survey lacks a summary.

    Example:
        >>> import activarium as act
        >>> report = act.atlas(act.wrap(*act.testing.tiny("gpt2")), ["ba ce di"], progress=False)
        >>> report["size"].axes
        ('site', 'layer')
    """
    found = (
        source
        if isinstance(source, Survey)
        else _surveyed(source, data, sites, exclude=exclude, batch_tokens=batch_tokens, on=on, progress=progress)
    )
    table = [_Line(found, site) for site in found]
    parts: dict[str, Result] = {}
    for stack in dict.fromkeys(line.stack for line in table if line.layer is not None):
        inside = [line for line in table if line.stack == stack and line.layer is not None]
        parts |= {f"{stack} {name}".strip(): grid for name, grid in _grids(inside).items()}
    parts |= {"sites": _sites(table), "features": _features(table), "rows": _rows(found, table)}
    rows = max(line.count.rows for line in table)
    return Report(
        parts,
        _words(table, rows),
        title=f"Atlas of {(found.provenance.get('model') or {}).get('name', 'a recording')}",
        diagnostics={"rows": rows, "sites": len(found), "left out": ", ".join(found.provenance.get("exclude", [])) or "nothing"},
        provenance={k: v for k, v in found.provenance.items() if k != "spaces"},
    )


def _surveyed(source: Any, data: Any, sites: Any, **options: Any) -> Survey:
    if sites is None:
        sites = [name for name in (source if isinstance(source, Recording) else source.sites) if _row_wise(source, name)]
        if not sites:
            raise InputError(f"{getattr(source, 'name', 'This recording')} has no row-wise site to survey. Choose from its sites: sites=….")
    names = [sites] if isinstance(sites, str) else sites
    wanted: dict[str, list[Summary]] = {name: [Count(), Moments(), Magnitudes(), TopRows(1, magnitude=True)] for name in names}
    return survey(source, wanted, data, **options)


def _row_wise(source: Any, name: str) -> bool:
    axes = source[name].axes if isinstance(source, Recording) else source.sites[name].axes.split()
    return axes[0] in ("row", "example") and name.rpartition(".")[2] not in LEFT_OUT


class _Line:
    """What is told of one site."""

    def __init__(self, found: Survey, site: str) -> None:
        def held(kind: type[Any]) -> Any:
            for summary in found[site].values():
                if isinstance(summary, kind):
                    return summary
            raise InputError(f"This survey has no {kind.__name__} of {site}. Survey it with Count, Moments, Magnitudes and TopRows.")

        self.site = site
        self.count, self.moments, self.magnitudes, self.top = held(Count), held(Moments), held(Magnitudes), held(TopRows)
        before, self.layer, self.leaf = _parted(site)
        self.stack = before

    @property
    def size(self) -> float:
        return float(self.moments.mean_square.mean().sqrt())

    @property
    def outliers(self) -> float:
        median = self.magnitudes.median
        return self.magnitudes.largest / median if median > 0 else float("nan")

    @property
    def zeros(self) -> float:
        return 100 - self.count.percent

    @property
    def tails(self) -> float:
        kurtosis = self.moments.kurtosis
        known = kurtosis[kurtosis.isfinite()]
        return float(known.median()) if len(known) else float("nan")

    @property
    def dead(self) -> float:
        return 100 * self.count.dead / self.count.width


QUANTITIES: dict[str, tuple[str, str, Callable[[_Line], float]]] = {
    "size": ("Root mean square", "model units", lambda line: line.size),
    "outliers": ("Largest magnitude / median magnitude", "ratio", lambda line: line.outliers),
    "zeros": ("Numbers that are exactly zero", "percent", lambda line: line.zeros),
    "tails": ("Median kurtosis of the features (3 for a Gaussian)", "kurtosis", lambda line: line.tails),
    "dead": ("Features that are zero in every row", "percent", lambda line: line.dead),
}


def _parted(site: str) -> tuple[str, int | None, str]:
    """Stack, layer and the rest of a site's name; outside the blocks there is no layer."""
    before, found, rest = site.rpartition("blocks.")
    number, _, leaf = rest.partition(".")
    return (before.rstrip("."), int(number), leaf) if found and number.isdigit() else ("", None, site)


def _grids(lines: Sequence[_Line]) -> dict[str, Grid]:
    leaves = list(dict.fromkeys(line.leaf for line in lines))
    layers = sorted({line.layer for line in lines if line.layer is not None})
    place = {(line.leaf, line.layer): line for line in lines}
    made = {}
    for name, (title, unit, value) in QUANTITIES.items():
        values = [[value(place[leaf, layer]) if (leaf, layer) in place else np.nan for layer in layers] for leaf in leaves]
        made[name] = Grid(np.array(values), ("site", "layer"), {"site": leaves, "layer": [str(i) for i in layers]}, title=title, unit=unit)
    return made


def _sites(table: Sequence[_Line]) -> Ranking:
    order = sorted(table, key=lambda line: -np.nan_to_num(line.outliers))
    columns = {name: np.array([value(line) for line in order]) for name, (_, _, value) in QUANTITIES.items()}
    columns |= {"rows": np.array([line.count.rows for line in order]), "width": np.array([line.count.width for line in order])}
    outliers = columns.pop("outliers")
    return Ranking(
        tuple(line.site for line in order), outliers, columns, title="Sites, the heaviest outliers first", unit="largest / median"
    )


def _features(table: Sequence[_Line]) -> Ranking:
    """Features whose mean magnitude stands out from the features of their site."""
    entries = []
    for line in table:
        size = line.moments.mean_magnitude
        middle = float(size.median())
        for i in size.topk(min(3, len(size))).indices.tolist() if middle > 0 else []:
            entries.append((float(size[i]) / middle, line.site, i, float(size[i])))
    entries = sorted(entries, key=lambda e: (-e[0], e[1], e[2]))[:SHOWN]
    columns = {"mean magnitude": np.array([e[3] for e in entries])}
    names = tuple(f"{site} {feature}" for _, site, feature, _ in entries)
    ratios = np.array([e[0] for e in entries])
    return Ranking(names, ratios, columns, title="Features that stand out from their site", unit="mean magnitude / median feature")


def _rows(found: Survey, table: Sequence[_Line]) -> Ranking:
    """The row and feature in which each site is largest."""
    names, values, columns = [], [], {"example": [], "position": [], "context": []}
    columns: dict[str, list[Any]]
    for line in sorted(table, key=lambda one: -np.nan_to_num(one.outliers))[:SHOWN]:
        feature = line.top.largest_feature
        for value, example, position in line.top.of(feature):
            rows = found.rows_of(line.site)
            names.append(f"{line.site} {line.top.feature_name(feature)}")
            values.append(value)
            for name, entry in zip(columns, (example, position, context(rows, example, position) if rows else ""), strict=True):
                columns[name].append(entry)
    made = {name: np.array(column, dtype=object if name == "context" else np.int64) for name, column in columns.items()}
    return Ranking(tuple(names), np.array(values), made, title="Where each site is largest", unit="|value|, model units")


def _words(table: Sequence[_Line], rows: int) -> tuple[str, ...]:
    worst = max(table, key=lambda line: np.nan_to_num(line.outliers))
    sparse = max(table, key=lambda line: line.zeros)
    strange = [line.site for line in table if line.magnitudes.infinite or line.magnitudes.nan]
    said = [
        f"{len(table)} sites, {rows:,} rows: the heaviest outlier is at {worst.site}, {worst.outliers:,.0f} times its median magnitude.",
        f"The sparsest site is {sparse.site}: {sparse.zeros:.1f} % of its numbers are exactly zero."
        if sparse.zeros >= 1
        else "No site has a notable share of exact zeros.",
    ]
    if not all(line.magnitudes.exact for line in table):
        said.append(
            "Medians and largest magnitudes are those of bins, exact to one part in 128; run in bfloat16 or float16 for exact ones."
        )
    return (*said, *([f"NaN or infinity at {', '.join(strange)}."] if strange else []))
