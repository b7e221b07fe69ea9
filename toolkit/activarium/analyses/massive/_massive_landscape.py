"""Massive landscape: the residual stream of one example, position by dimension."""

from __future__ import annotations

import numpy as np

from activarium.activations import Activations
from activarium.analyses.layer_sites import column, layer_number, layer_sites, refuse_strange
from activarium.analyses.massive.sequences import Measured, measure
from activarium.analyses.massive.stacks import check_thresholds
from activarium.errors import InputError, unknown
from activarium.recording import Recording
from activarium.results import Grid


def massive_landscape(
    recording: Recording | Activations,
    *,
    layer: int | str | None = None,
    example: int | None = None,
    size: bool = False,
    absolute: float = 100.0,
    ratio: float = 1000.0,
) -> Grid:
    """What does the residual stream of one example look like, position by dimension?

    Every number is shown as it is, so that a picture of it may shrink it only in ways that keep the extremes.

    Args:
        recording: A recording with `blocks.*.resid_post`, or such a site or stack itself, axes `row d_model`.
        layer: The block, or its site; by default the one with most massive numbers in this example, or else with the largest multiple
            of the median.
        example: Number of the example; by default the first.
        size: Show |h| instead of the signed numbers.
        absolute: Smallest size, exclusive, of what counts as massive.
        ratio: Smallest multiple of the median, inclusive.

    Returns:
        Position by dimension, in model units; the mask `massive` marks what meets the criteria of `massive_activations`, and
        `diagnostics` name it.

    Raises:
        UnknownSite: The recording holds no `resid_post`.
        UnknownName: There is no such layer.
        InputError: There is no such example, or a threshold is not positive.
        NotFinite: NaN or infinite numbers.

    Source:
        Sun et al. 2024, Massive Activations in Large Language Models, arXiv:2402.17762, figure 1.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> recording = model.run(["the cat sat on the book"], read="blocks.*.resid_post")
        >>> act.analyses.massive_landscape(recording, layer=1).axes
        ('position', 'd_model')
    """
    check_thresholds(absolute, ratio)
    sites = {s: a for sites in layer_sites(recording, ("resid_post",), "row d_model").values() for s, a in sites.items()}
    if layer is not None:
        sites = _layer(sites, layer)
    shown = {s: _example(a, example) for s, a in sites.items()}
    measured = {s: measure(0, 0, a.tensor, absolute, ratio) for s, a in shown.items()}
    for site, found in measured.items():
        if not found.finite:
            refuse_strange(shown[site], "It has no landscape.")
    site = max(measured, key=lambda s: (len(measured[s].hits), measured[s].ratio))
    return _grid(site, shown[site], measured[site], size)


def _layer(sites: dict[str, Activations], layer: int | str) -> dict[str, Activations]:
    chosen = {s: a for i, (s, a) in enumerate(sites.items()) if s == layer or layer_number(s, i) == layer}
    if not chosen:
        raise unknown("layer", str(layer), sites)
    if len(chosen) > 1:
        raise InputError(f"Block {layer} is in several stacks: {', '.join(chosen)}. Give the name of one.")
    return chosen


def _example(activations: Activations, example: int | None) -> Activations:
    if activations.index is None:
        if example not in (None, 0):
            raise InputError(f"{activations.site or 'This site'} has no row table, so all of it is example 0; asked for {example}.")
        return activations
    return activations.example(activations.index.examples[0] if example is None else example)


def _grid(site: str, here: Activations, found: Measured, size: bool) -> Grid:
    values = here.numpy()
    massive = np.zeros(values.shape, bool)
    massive[tuple(found.hits.T)] = True
    position = column(here, "position", -1) if here.index is not None else np.arange(len(values))
    texts = column(here, "text", "").astype(str)
    labels = [f"{p} {t}".strip() for p, t in zip(position, texts, strict=True)]
    names = [
        f"{labels[row]} · dim {dim}: {value:.4g}" for (row, dim), value in zip(found.hits.tolist(), found.values.tolist(), strict=True)
    ]
    number = int(column(here, "example", 0)[0])
    said = f"{len(names)} massive numbers" if names else "no massive number"
    title = f"{'|h|' if size else 'h'} at {site or 'this site'}, example {number}: {said}, the largest {found.ratio:,.0f} times the median"
    notes = {"view": "Landscape", "site": site, "massive": names, "median": found.median, "largest": float(found.top[0])}
    return Grid(
        np.abs(values) if size else values, ("position", "d_model"), {"position": labels}, {"massive": massive}, title=title, unit="model units", diagnostics=notes
    )  # fmt: skip
