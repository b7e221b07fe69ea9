"""The layers of one stack, measured sequence by sequence: from a recording at once, or from a model batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from activarium.activations import Activations
from activarium.analyses.changed_answers import AT_ONCE
from activarium.analyses.layer_sites import STACKS, by_example, layer_number, layer_sites, refuse_strange
from activarium.analyses.massive.sequences import COLUMNS, Columns, Measured, describe_hits, measure
from activarium.analyses.massive.verdict import lifetime_words, persistent
from activarium.errors import InputError
from activarium.maths import bootstrap_interval
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.recording import matching
from activarium.results import Ranking, Result, Series

KEPT = 1000  # hits that are listed; all of them are counted


@dataclass(frozen=True, eq=False)
class Layer:
    """What one layer shows in every sequence.

    Attributes:
        site: Where it was read.
        measured: One entry per sequence.
        hits: Its massive numbers as columns, see `COLUMNS`.
        largest: The largest number of each sequence, massive or not, as such columns.
        dtype: Type of the numbers.
    """

    site: str
    measured: tuple[Measured, ...]
    hits: Columns
    largest: Columns
    dtype: str


def check_thresholds(absolute: float, ratio: float) -> None:
    """Both are positive.

    Raises:
        InputError: One is not.
    """
    for name, value in {"absolute": absolute, "ratio": ratio}.items():
        if not value > 0:
            raise InputError(
                f"{name}={value} would call every number massive; give a positive one (Sun et al. use absolute=100, ratio=1000)."
            )


def layer_of(activations: Activations, absolute: float, ratio: float) -> Layer:
    """Apply the criteria to every sequence of one site.

    Raises:
        NotFinite: NaN or infinite numbers.
        InputError: It has no rows.
    """
    found = [measure(example, first, values, absolute, ratio) for example, first, values in by_example(activations)]
    if not all(m.finite for m in found):
        refuse_strange(activations, "No median and no ratio can be taken.")
    if not found:
        raise InputError(f"{activations.site or 'This site'} has no rows. Capture at least one example.")
    hits, largest = describe_hits(activations, found), describe_hits(activations, found, largest=True)
    return Layer(activations.site, tuple(found), hits, largest, str(activations.dtype).removeprefix("torch."))


def layers_of_run(
    model: Runner, inputs: Any, absolute: float, ratio: float, *, read: str | Sequence[str] = (), progress: bool = False
) -> dict[str, list[Layer]]:
    """Stack name → its layers over all inputs, run some examples at a time; what was measured stays, what was read goes.

    Column `row` of the layers counts within a batch.

    Args:
        model: The model.
        inputs: What it runs on.
        absolute: Exclusive lower bound of the size.
        ratio: Inclusive lower bound of the multiple of the median.
        read: The `resid_post` sites to measure; all of them by default.
        progress: Show a bar.
    """
    read = read or matching_sites(model)
    encoded = model.inputs(inputs)
    found: dict[str, list[list[Layer]]] = {}
    with progress_bar(progress, "measuring", len(encoded)) as advance:
        for start in range(0, len(encoded), AT_ONCE):
            here = encoded.select(range(start, min(start + AT_ONCE, len(encoded))))
            for stack, sites in layer_sites(model.run(here, read=read), ("resid_post",), "row d_model").items():
                found.setdefault(stack, []).append([layer_of(a, absolute, ratio) for a in sites.values()])
            advance(len(here))
    return {stack: [_joined(parts) for parts in zip(*batches, strict=True)] for stack, batches in found.items()}


def matching_sites(model: Runner) -> list[str]:
    """The `resid_post` of every block of every stack."""
    return [site for stack in STACKS for site in matching(f"{stack}blocks.*.resid_post", list(model.sites))]


def _joined(parts: Sequence[Layer]) -> Layer:
    hits, largest = ({name: np.concatenate([getattr(p, what)[name] for p in parts]) for name in COLUMNS} for what in ("hits", "largest"))
    return Layer(parts[0].site, tuple(m for p in parts for m in p.measured), hits, largest, parts[0].dtype)


def numbers_of(layers: Sequence[Layer]) -> np.ndarray:
    """Block number of each layer."""
    return np.array([layer_number(layer.site, i) for i, layer in enumerate(layers)])


def dimensions_of(layers: Sequence[Layer]) -> Ranking:
    """Every dimension with a hit: birth, death, sign, persistence."""
    return persistent({layer.site: layer.hits for layer in layers}, numbers_of(layers), len(layers[0].measured))


def stack_answer(
    stack: str, layers: Sequence[Layer], absolute: float, ratio: float, seed: int
) -> tuple[dict[str, Result], list[str], dict[str, Any]]:
    """The parts, the words and the counts of `massive_activations` for one stack."""
    dimensions, largest, ratios = dimensions_of(layers), largest_of(layers), _ratios(layers, seed)
    parts: dict[str, Result] = {
        "hits": _ranking([(layer.site, layer.hits) for layer in layers], "Massive activations"),
        "dimensions": dimensions,
        "largest": largest,
        "sizes": _sizes(layers),
        "ratio": ratios,
    }
    sequences = len(layers[0].measured)
    with_hit = {e for layer in layers for e in layer.hits["example"].tolist()}
    counted = {
        "hits": sum(len(layer.hits["value"]) for layer in layers),
        "sequences": sequences,
        "sequences with a hit": len(with_hit) / sequences,
        "dtype": layers[0].dtype,
        "median zero": sum(m.median == 0 for layer in layers for m in layer.measured),
    }
    return parts, lifetime_words(stack, dimensions, largest, ratios, counted, absolute, ratio), counted


def largest_of(layers: Sequence[Layer]) -> Ranking:
    """The largest number of each layer, massive or not."""
    return _ranking([(layer.site, layer.largest) for layer in layers], "The largest number of each layer, massive or not", per_site=1)


def _ranking(tables: Sequence[tuple[str, Columns]], title: str, per_site: int | None = None) -> Ranking:
    """Numbers of all layers in one list, the largest multiple of the median first."""
    chosen = [np.argsort(-c["ratio"], kind="stable")[: per_site or KEPT] for _, c in tables]
    columns = {name: np.concatenate([c[name][i] for (_, c), i in zip(tables, chosen, strict=True)]) for name in COLUMNS}
    layer = np.concatenate([np.full(len(i), s, dtype=object) for (s, _), i in zip(tables, chosen, strict=True)])
    order = np.argsort(-columns["ratio"], kind="stable")[:KEPT]
    names = tuple(
        f"{layer[i]} · example {columns['example'][i]} · position {columns['position'][i]} {columns['text'][i]!r} · dim {columns['dim'][i]}"
        for i in order
    )
    rest = {"layer": layer[order], **{n: columns[n][order] for n in COLUMNS if n != "ratio"}}
    return Ranking(names, columns["ratio"][order], rest, title=title, unit="times the median")


def _sizes(layers: Sequence[Layer]) -> Series:
    """The standard picture: the three largest sizes and the median of each layer."""
    top = np.array([np.mean([m.top for m in layer.measured], axis=0) for layer in layers])
    curves = {f"top {k + 1}": top[:, k] for k in range(top.shape[1])}
    curves["median"] = np.array([np.mean([m.median for m in layer.measured]) for layer in layers])
    return Series(numbers_of(layers), curves, "layer", title="Largest sizes and median, averaged over sequences", unit="model units")


def _ratios(layers: Sequence[Layer], seed: int) -> Series:
    ratios = np.array([[m.ratio for m in layer.measured] for layer in layers])
    low, high, _ = bootstrap_interval(ratios.T, np.ones_like(ratios.T), seed=seed)
    curves = {"mean": ratios.mean(1), "largest": ratios.max(1)}
    bands = {"mean": np.stack([low, high])}
    return Series(numbers_of(layers), curves, "layer", bands, title="Largest size over median", unit="times the median")
