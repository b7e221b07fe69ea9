"""Massive activations: the few numbers of the residual stream that dwarf all others, where they are born and die."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from activarium.activations import Activations
from activarium.analyses.layer_sites import by_example, layer_number, layer_sites, refuse_strange
from activarium.analyses.massive.sequences import COLUMNS, Measured, describe_hits, measure
from activarium.analyses.massive.verdict import lifetime_words, persistent
from activarium.errors import InputError
from activarium.maths import bootstrap_interval
from activarium.recording import Recording
from activarium.results import Ranking, Report, Result, Series

KEPT = 1000  # hits that are listed; all of them are counted


def massive_activations(recording: Recording | Activations, *, absolute: float = 100.0, ratio: float = 1000.0, seed: int = 0) -> Report:
    """Which numbers of the residual stream are thousands of times larger than the median?

    For each layer and each sequence on its own: m is the lower median of |h| over all rows and dimensions. A number is
    massive if |h| > `absolute` and |h| >= `ratio` · m. Small models hardly ever get there: then the answer is "none", and
    the largest number of each layer is still shown with its ratio |h| / m, which needs no threshold.

    Args:
        recording: A recording with `blocks.*.resid_post`, or such a site or stack itself, axes `row d_model`.
        absolute: Smallest size, exclusive, in model units.
        ratio: Smallest multiple of the sequence's median, inclusive.
        seed: Draws the sequences for the interval of the ratio.

    Returns:
        A report with `hits` (ranking: every massive number with its layer, example, position, token, dimension, signed
        value, multiple of the median and share of its row's energy), `dimensions` (ranking: birth and death layer, sign,
        signed mean, its variation, whether it is persistent), `largest` (ranking: the largest number of each layer, massive
        or not), `sizes` (three largest and median per layer, averaged over sequences) and `ratio` (largest / median per
        layer, averaged over sequences). A model with several stacks has each part once per stack, `encoder hits`. All rows
        count, `bos`, `cls` and `register` included: that is where massive activations live.

    Raises:
        UnknownSite: The recording holds no `resid_post`.
        AxisError: The site has other axes than `row d_model`.
        InputError: A threshold is not positive.
        NotFinite: NaN or infinite numbers, against which nothing can be compared.

    Source:
        Sun et al. 2024, Massive Activations in Large Language Models, arXiv:2402.17762, section 2 (criteria, sizes);
        Gallego-Feliciano et al. 2025, arXiv:2508.03616 (ratio without thresholds).

    Differs:
        The median of an even count is the lower middle value. Sequences are never pooled and pads never enter. "Persistent"
        (in 90 % of the sequences in at least three consecutive layers) and the interval are ours.

    Example:
        >>> import torch
        >>> from activarium.activations import Activations
        >>> h = torch.full((4, 8), 0.5)
        >>> h[1, 3] = -700.0
        >>> massive_activations(Activations(h, "row d_model", site="blocks.0.resid_post"))["hits"].values.tolist()
        [1400.0]
    """
    for name, value in {"absolute": absolute, "ratio": ratio}.items():
        if not value > 0:
            raise InputError(
                f"{name}={value} would call every number massive; give a positive one (Sun et al. use absolute=100, ratio=1000)."
            )
    stacks = layer_sites(recording, ("resid_post",), "row d_model")
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, Any] = {"absolute": absolute, "ratio": ratio, "median": "lower middle value, per sequence and layer"}
    for stack, sites in stacks.items():
        layers = {site: _measured(activations, absolute, ratio) for site, activations in sites.items()}
        made, said, counted = _answer(stack, sites, layers, absolute, ratio, seed)
        parts |= {f"{stack} {name}".strip(): part for name, part in made.items()}
        notes |= {f"{stack} {name}".strip(): value for name, value in counted.items()}
        words += said
    return Report(parts, tuple(words), title="Massive activations", unit="model units", diagnostics=notes)


def _measured(activations: Activations, absolute: float, ratio: float) -> list[Measured]:
    found = [measure(example, first, values, absolute, ratio) for example, first, values in by_example(activations)]
    if not all(m.finite for m in found):
        refuse_strange(activations, "No median and no ratio can be taken.")
    if not found:
        raise InputError(f"{activations.site or 'This site'} has no rows. Capture at least one example.")
    return found


def _answer(
    stack: str, sites: Mapping[str, Activations], layers: Mapping[str, list[Measured]], absolute: float, ratio: float, seed: int
) -> tuple[dict[str, Result], list[str], dict[str, Any]]:
    table = {site: describe_hits(sites[site], measured) for site, measured in layers.items()}
    largest = {site: describe_hits(sites[site], measured, largest=True) for site, measured in layers.items()}
    numbers = np.array([layer_number(site, i) for i, site in enumerate(sites)])
    sequences = len(next(iter(layers.values())))
    dimensions = persistent(table, numbers, sequences)
    biggest = _ranking(largest, "The largest number of each layer, massive or not", per_site=1)
    ratios = _ratios(layers, numbers, seed)
    parts: dict[str, Result] = {
        "hits": _ranking(table, "Massive activations"),
        "dimensions": dimensions,
        "largest": biggest,
        "sizes": _sizes(layers, numbers),
        "ratio": ratios,
    }
    with_hit = {e for columns in table.values() for e in columns["example"].tolist()}
    counted = {
        "hits": sum(len(c["value"]) for c in table.values()),
        "sequences": sequences,
        "sequences with a hit": len(with_hit) / sequences,
        "dtype": str(next(iter(sites.values())).dtype).removeprefix("torch."),
        "median zero": sum(m.median == 0 for found in layers.values() for m in found),
    }
    return parts, lifetime_words(stack, dimensions, biggest, ratios, counted, absolute, ratio), counted


def _ranking(table: Mapping[str, Mapping[str, np.ndarray]], title: str, per_site: int | None = None) -> Ranking:
    """Numbers of all layers in one list, the largest multiple of the median first."""
    chosen = {s: np.argsort(-c["ratio"], kind="stable")[: per_site or KEPT] for s, c in table.items()}
    columns = {name: np.concatenate([table[s][name][i] for s, i in chosen.items()]) for name in COLUMNS}
    layer = np.concatenate([np.full(len(i), s, dtype=object) for s, i in chosen.items()])
    order = np.argsort(-columns["ratio"], kind="stable")[:KEPT]
    names = tuple(
        f"{layer[i]} · example {columns['example'][i]} · position {columns['position'][i]} {columns['text'][i]!r} · dim {columns['dim'][i]}"
        for i in order
    )
    rest = {"layer": layer[order], **{n: columns[n][order] for n in COLUMNS if n != "ratio"}}
    return Ranking(names, columns["ratio"][order], rest, title=title, unit="times the median")


def _sizes(layers: Mapping[str, list[Measured]], numbers: np.ndarray) -> Series:
    """The standard picture: the three largest sizes and the median of each layer."""
    top = np.array([np.mean([m.top for m in found], axis=0) for found in layers.values()])
    curves = {f"top {k + 1}": top[:, k] for k in range(top.shape[1])}
    curves["median"] = np.array([np.mean([m.median for m in found]) for found in layers.values()])
    return Series(numbers, curves, "layer", title="Largest sizes and median, averaged over sequences", unit="model units")


def _ratios(layers: Mapping[str, list[Measured]], numbers: np.ndarray, seed: int) -> Series:
    ratios = np.array([[m.ratio for m in found] for found in layers.values()])
    low, high, _ = bootstrap_interval(ratios.T, np.ones_like(ratios.T), seed=seed)
    curves = {"mean": ratios.mean(1), "largest": ratios.max(1)}
    return Series(numbers, curves, "layer", {"mean": np.stack([low, high])}, title="Largest size over median", unit="times the median")
