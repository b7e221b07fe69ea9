"""Massive origin: the sublayer and the neurons that write a massive activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from activarium.analyses.massive.calibration import Hits
from activarium.analyses.massive.stacks import Layer, check_thresholds, dimensions_of, largest_of, layers_of_run, numbers_of
from activarium.analyses.massive.writes import read_writes
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.results import Report


def massive_origin(
    model: Runner,
    inputs: Any,
    *,
    dim: int | None = None,
    stack: str = "",
    absolute: float = 100.0,
    ratio: float = 1000.0,
    top: int = 20,
    progress: bool = False,
) -> Report:
    """Which sublayer and which neurons write a massive activation where it is born?

    At the block of its birth, the step of the number from block input to block output is split into what attention and MLP add;
    the MLP's part is a sum over neurons, activation times weight, which is listed. All are averages over the massive numbers of
    one dimension at that block, and add up. Without any massive number the largest one is taken apart instead, and the words say so.

    Args:
        model: The model.
        inputs: What it runs on.
        dim: The dimension; by default the one with most massive numbers.
        stack: `encoder` or `decoder`, `vision` or `text`, where there are several.
        absolute: Smallest size, exclusive, in model units.
        ratio: Smallest multiple of the sequence's median, inclusive.
        top: Neurons and heads that are listed.
        progress: Show a bar.

    Returns:
        A report with `writers` (ranking: what stood there before, attention, cross-attention, MLP, and `norm`, the rest where a norm
        follows the sum), `neurons` (ranking: each one's part of the MLP's raw output, with its activation and its weight), `heads` (the
        same for attention) and `life` (series over blocks: the number at these rows, and what attention and MLP add to it).

    Raises:
        InputError: The dimension is not there, or has no massive number.
        UnknownSite: There is no such stack, or the model's sublayers cannot be read.

    Source:
        Sun et al. 2024, Massive Activations in Large Language Models, arXiv:2402.17762, section 2 (where they appear).

    Differs:
        The split into sublayers, heads and neurons is ours.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> report = act.analyses.massive_origin(model, ["the cat sat on the book"])
        >>> sorted(report["writers"].names)
        ['attention', 'before', 'mlp', 'norm']
    """
    check_thresholds(absolute, ratio)
    found = layers_of_run(model, inputs, absolute, ratio, progress=progress)
    if stack not in found:
        raise InputError(f"There is no stack {stack!r}; the model has {', '.join(map(repr, found))}. Choose one with stack=.")
    layer, hits, words = _chosen(found[stack], dim)
    writes = read_writes(model, inputs, layer.site, hits, progress)
    return writes.report(top, words, {"absolute": absolute, "ratio": ratio, "numbers": len(hits), "dim": int(hits.dim[0])})


def _chosen(layers: Sequence[Layer], dim: int | None) -> tuple[Layer, Hits, list[str]]:
    """The layer where a dimension is born, and its numbers there."""
    dimensions = dimensions_of(layers)
    births = dict(zip(dimensions.columns["dim"].tolist(), dimensions.columns["birth"].tolist(), strict=True))
    if not births and dim is None:
        largest = largest_of(layers)
        layer = next(one for one in layers if one.site == largest.columns["layer"][0])
        first = int(layer.largest["ratio"].argmax())
        words = [f"none is massive in {len(layer.measured)} sequences; taken apart is the largest number instead, {largest.names[0]}."]
        return layer, Hits.of({name: c[first : first + 1] for name, c in layer.largest.items()}), words
    chosen = int(dimensions.columns["dim"][0]) if dim is None else dim
    if chosen not in births:
        raise InputError(f"Dimension {chosen} has no massive number here; those that have: {', '.join(map(str, births)) or 'none'}.")
    layer = layers[numbers_of(layers).tolist().index(births[chosen])]
    here = layer.hits["dim"] == chosen
    hits = Hits.of({name: c[here] for name, c in layer.hits.items()})
    return layer, hits, [f"dim {chosen} is born at {layer.site}, in {len(hits):,} rows."]
