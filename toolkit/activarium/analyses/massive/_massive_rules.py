"""Massive rules: the published outlier criteria side by side on the same stream, with how far they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from activarium.activations import Activations
from activarium.analyses.layer_sites import column, describe_row, layer_number, layer_sites
from activarium.analyses.massive.rules import agreement, long_vectors, outlier_columns, row_measures, sink_rows
from activarium.analyses.massive.stacks import Layer, check_thresholds, dimensions_of, layer_of, numbers_of
from activarium.errors import InputError, unknown
from activarium.recording import Recording, matching
from activarium.results import Ranking, Report, Result, Series

KEPT = 1000  # rows that are listed


def massive_rules(
    recording: Recording,
    *,
    layer: int | None = None,
    dims: Sequence[int] | None = None,
    absolute: float = 100.0,
    ratio: float = 1000.0,
    phi: float = 20.0,
    energy: float = 0.098,
    spread: float = 3.0,
    epsilon: float = 0.3,
) -> Report:
    """Do the published rules for outliers flag the same rows and the same dimensions?

    Rows, at one layer: `single number` (Sun: |h| > `absolute` and >= `ratio` times the sequence's median), `long vector` (norm above
    mean + `spread` standard deviations of all rows), `phi` (largest size in fixed dimensions over the row's root mean square >=
    `phi`), `energy` (the same as a share of the row's energy, which does not depend on the width) and, where patterns were
    recorded, `sink` (attention received, averaged over all heads and layers, is `epsilon` above uniform). Dimensions, over all
    layers: `single number`, `persistent` and `column` (LLM.int8: 6 or more in 25 % of the layers and 6 % of the rows).

    Args:
        recording: Holds `blocks.*.resid_post`, and `blocks.*.attn.pattern` for the sinks.
        layer: Block at which rows are judged; by default the one with most single numbers, or else with the largest ratio.
        dims: Fixed dimensions of `phi` and `energy`; by default the persistent ones, or else those with single numbers.
        absolute: Smallest size, exclusive, in model units.
        ratio: Smallest multiple of the sequence's median, inclusive.
        phi: Smallest size over root mean square.
        energy: Smallest share of a row's energy; the default is what phi = 20 means at a width of 4096.
        spread: Standard deviations above the mean norm.
        epsilon: Attention above uniform.

    Returns:
        A report with `rows` (ranking: those that some rule flags, by the number of rules, with norm, phi and energy share), `row
        agreement` and `dim agreement` (grids rule × rule: Jaccard index), `dims` (ranking: the flagged dimensions) and `ratio`
        (series: largest size over median per layer, the rule without a threshold). Models with several stacks have each part per stack.

    Raises:
        UnknownSite: The recording holds no `resid_post`.
        UnknownName: There is no such layer.
        InputError: A dimension is not there, or a threshold is not positive.
        NotFinite: NaN or infinite numbers.

    Source:
        Sun et al. 2024, arXiv:2402.17762, section 2 (single number); Kang et al. 2025, See What You Are Told: Visual Attention Sink in
        Large Multimodal Models, arXiv:2503.03321 (phi); Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339 (column); Gu et al. 2024,
        arXiv:2410.10781 (sink).

    Differs:
        phi at most reaches the root of the width, so its cut of 20 can never flag anything below 400 dimensions; the energy share
        stands beside it. The rule of long vectors, the cut of sinks and the agreement are ours.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> recording = model.run(["the cat sat on the book"], read=["blocks.*.resid_post", "blocks.*.attn.pattern"])
        >>> list(act.analyses.massive_rules(recording)["row agreement"].label("rule"))
        ['single number', 'long vector', 'phi', 'energy', 'sink']
    """
    check_thresholds(absolute, ratio)
    cuts = {"phi": phi, "energy": energy, "spread": spread, "epsilon": epsilon}
    for name, value in cuts.items():
        if not value > 0:
            raise InputError(f"{name}={value} would flag everything; give a positive number.")
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, Any] = {"absolute": absolute, "ratio": ratio, **cuts}
    for stack, sites in layer_sites(recording, ("resid_post",), "row d_model").items():
        layers = [layer_of(a, absolute, ratio) for a in sites.values()]
        chosen = _chosen(layers, layer)
        fixed = _fixed(layers, dims, next(iter(sites.values())).shape[1])
        patterns = matching(f"{stack}.blocks.*.attn.pattern".lstrip("."), list(recording))
        made, said = _stack(recording, list(sites.values()), layers, chosen, fixed, patterns, cuts)
        parts |= {f"{stack} {name}".strip(): part for name, part in made.items()}
        notes |= {f"{stack} {name}".strip(): value for name, value in {"layer": layers[chosen].site, "dims": fixed}.items()}
        words += [f"{stack}: {line}" if stack else line for line in said]
    return Report(parts, tuple(words), title="Rules for outliers, side by side", diagnostics=notes)


def _chosen(layers: Sequence[Layer], layer: int | None) -> int:
    """Place of the layer at which rows are judged."""
    if layer is None:
        return max(range(len(layers)), key=lambda i: (len(layers[i].hits["dim"]), layers[i].largest["ratio"].max()))
    numbers = numbers_of(layers).tolist()
    if layer not in numbers:
        raise unknown("layer", str(layer), map(str, numbers))
    return numbers.index(layer)


def _fixed(layers: Sequence[Layer], dims: Sequence[int] | None, width: int) -> list[int]:
    """The fixed dimensions of phi."""
    if dims is not None:
        wrong = [d for d in dims if not 0 <= d < width]
        if wrong:
            raise InputError(f"dims={list(dims)}: there is no dimension {wrong[0]}; the stream has 0 to {width - 1}.")
        return sorted(set(map(int, dims)))
    found = dimensions_of(layers).columns
    lasting = found["dim"][found["persistent"]].tolist()
    return sorted(lasting or found["dim"].tolist())


def _stack(
    recording: Recording,
    streams: list[Activations],
    layers: list[Layer],
    chosen: int,
    dims: list[int],
    patterns: list[str],
    cuts: Mapping[str, float],
) -> tuple[dict[str, Result], list[str]]:
    stream, site = streams[chosen], layers[chosen].site
    measures = row_measures(stream, dims)
    single = np.zeros(len(stream), bool)
    single[layers[chosen].hits["row"]] = True
    rows = {
        "single number": single,
        "long vector": long_vectors(measures["norm"], cuts["spread"]),
        "phi": measures["largest phi"] >= cuts["phi"],
        "energy": measures["energy share"] >= cuts["energy"],
    }
    if patterns:
        rows["sink"] = sink_rows(recording, patterns, stream, cuts["epsilon"])
    found = dimensions_of(layers).columns
    width = stream.shape[1]
    of_dims = {
        "single number": np.isin(np.arange(width), found["dim"]),
        "persistent": np.isin(np.arange(width), found["dim"][found["persistent"]]),
        "column": outlier_columns(streams),
    }
    parts: dict[str, Result] = {
        "rows": _rows(stream, rows, measures, site),
        "row agreement": agreement(rows, f"Which rows the rules flag at {site}: agreement"),
        "dims": _dims(of_dims),
        "dim agreement": agreement(of_dims, "Which dimensions the rules flag: agreement"),
        "ratio": _ratio(layers),
    }
    return parts, _words(rows, of_dims, dims, width, site, cuts["phi"], bool(patterns))


def _rows(stream: Activations, flags: Mapping[str, np.ndarray], measures: Mapping[str, np.ndarray], site: str) -> Ranking:
    count = np.sum(list(flags.values()), axis=0)
    order = np.argsort(-(count + measures["norm"] / (1 + measures["norm"].max())), kind="stable")  # among equals the longest first
    order = order[: min(KEPT, int((count > 0).sum()))]
    columns = {name: flag[order] for name, flag in flags.items()} | {name: m[order] for name, m in measures.items()}
    columns |= {"example": column(stream, "example", 0)[order], "position": column(stream, "position", -1)[order]}
    names = tuple(describe_row(stream, int(row)) for row in order)
    return Ranking(names, count[order], columns, title=f"Rows that some rule flags at {site}", unit="rules")


def _dims(flags: Mapping[str, np.ndarray]) -> Ranking:
    count = np.sum(list(flags.values()), axis=0)
    order = np.argsort(-count, kind="stable")[: int((count > 0).sum())]
    names = tuple(f"dim {d}" for d in order)
    return Ranking(names, count[order], {n: f[order] for n, f in flags.items()}, title="Dimensions that some rule flags", unit="rules")


def _ratio(layers: Sequence[Layer]) -> Series:
    ratios = np.array([np.mean([m.ratio for m in layer.measured]) for layer in layers])
    numbers = np.array([layer_number(layer.site, i) for i, layer in enumerate(layers)])
    return Series(numbers, {"mean": ratios}, "layer", title="Largest size over median, which needs no threshold", unit="times the median")


def _words(
    rows: Mapping[str, np.ndarray],
    of_dims: Mapping[str, np.ndarray],
    dims: Sequence[int],
    width: int,
    site: str,
    phi: float,
    patterns: bool,
) -> list[str]:
    total = len(next(iter(rows.values())))
    said = [
        f"of {total:,} rows at {site}, flagged by: " + ", ".join(f"{n} {int(f.sum()):,} ({f.mean():.1%})" for n, f in rows.items()) + ".",
        f"of {width:,} dimensions, flagged by: " + ", ".join(f"{n} {int(f.sum()):,}" for n, f in of_dims.items()) + ".",
    ]
    if not dims:
        said.append(
            "no dimension has a single massive number, so phi and energy have no fixed dimensions to look at; give dims= to choose some."
        )
    if width < phi**2:
        said.append(
            f"phi cannot reach {phi:g} here: in {width} dimensions it is at most {width**0.5:.1f}, whatever the numbers. Read the energy share instead."
        )
    if not patterns:
        said.append("attention patterns were not recorded (blocks.*.attn.pattern), so sinks are not compared.")
    return said
