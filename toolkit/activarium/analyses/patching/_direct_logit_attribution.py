"""Direct logit attribution: how much each head and MLP adds to the answer by itself, through the residual stream alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from activarium.analyses.patching.stream import Stream, Terms, check_heads, stream_of, terms
from activarium.errors import InputError
from activarium.metrics import Metric
from activarium.pairs import Pairs
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.results import Grid, Report, Result

COMPLETE = {torch.float64: 1e-10, torch.float32: 1e-5}  # of the largest term or metric; 16-bit floats get 5e-2
LONG = 8  # batches from which a progress bar is shown


def direct_logit_attribution(
    model: Runner,
    inputs: Any,
    metric: Metric | None = None,
    *,
    heads: bool = True,
    per_source: bool = False,
    batch: int = 32,
    progress: bool = True,
) -> Report:
    """How much does each head and MLP add to the answer by itself, and from which tokens?

    The stream after the last block is the sum of all that was written to it. With the final norm's scale held as it was, the
    metric is linear in that sum, so every term has its own share and the shares add up to the metric: `completeness_error` says
    how exactly. What a term does through later blocks is no part of its share.

    Args:
        model: A loaded model whose blocks add to a stream (not post-norm).
        inputs: Pairs (their clean inputs and metric are used), or inputs as for `model.run`.
        metric: A linear function of the logits, `logit_difference` or `class_logit`; not needed with pairs.
        heads: Follow every head; else each attention is one term.
        per_source: Also split every head's share by the token it attends to.
        batch: Examples in one forward.
        progress: Show a bar when many batches are run.

    Returns:
        A report in the metric's unit, means over examples with `per_example`: `terms`, a grid `term` from bottom to top (embedding,
        heads, each attention's bias, MLPs, the final norm's shift, the unembedding's bias), whose sum is the metric; `heads`, a
        grid `layer head`; `writes`, a grid `layer feature` of whole attentions and MLPs; with `per_source`, `sources`, a grid
        `layer head position` that sums over positions to `heads`. T5 has `cross heads` and `cross sources` as well.

    Raises:
        InputError: The metric is not linear, the blocks are post-norm, the head is not linear, or the terms do not add up.
        MissingSite: A site or weight that is needed is missing; with `heads=False` fewer are.

    Source:
        Elhage et al. 2021, A Mathematical Framework for Transformer Circuits, transformer-circuits.pub: the stream as a sum, read by
        the unembedding. Shares by token follow from each head's mix being `sum_j pattern_j v_j`.

    Differs:
        Soft-capped logits are attributed before the cap, which is no sum; `diagnostics` name the cap. Norms and scales that follow
        an attention or MLP (Gemma-2, DINOv2) are held as they were, too.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> report = direct_logit_attribution(model, ["Anna saw the cat"], act.metrics.logit_difference([60], [61]))
        >>> bool(abs(report["terms"].values.sum() - report.diagnostics["metric"]) < 1e-5)
        True
    """
    given, metric = _given(model, inputs, metric)
    stream = stream_of(model)
    if heads:
        check_heads(model, stream)
    parts = []
    starts = range(0, len(given), batch)
    with progress_bar(progress and len(starts) >= LONG, "attributing", len(given), "examples") as advance:
        for start in starts:
            chosen = np.arange(start, min(start + batch, len(given)))
            parts.append(terms(model, given.select(chosen).numbered(0), metric.select(chosen), stream, heads=heads, sources=per_source))
            advance(len(chosen))
    return _report(model, stream, metric, parts)


def _given(model: Any, inputs: Any, metric: Metric | None) -> tuple[Any, Metric]:
    if isinstance(inputs, Pairs):
        return inputs.clean, metric or inputs.metric
    if metric is None:
        raise InputError("These inputs have no metric: give metric=act.metrics.logit_difference(answers, foils), or pairs.")
    return model.inputs(inputs).numbered(0), metric


def _report(model: Any, stream: Stream, metric: Metric, parts: Sequence[Terms]) -> Report:
    values = np.concatenate([p.values for p in parts])
    metrics = np.concatenate([p.metric for p in parts])
    names = parts[0].names
    gap = float(np.abs(values.sum(1) - metrics).max() / max(float(np.abs(metrics).max()), float(np.abs(values).max()), 1e-30))
    if gap > COMPLETE.get(model.dtype, 5e-2):
        raise InputError(
            f"The {len(names)} terms of {model.name} do not add up to {metric.name!r} (off by {gap:.2g} of the largest). Is the model quantised, "
            "edited, or does something else write to its stream? Use activation_patching."
        )
    unit = metric.unit
    made: dict[str, Result] = {
        "terms": Grid(values.mean(0), ("term",), {"term": names}, per_example=values, title="What each part adds by itself", unit=unit),
        "writes": _writes(stream, names, values, unit),
    }
    for room, title in (("attn", "heads"), ("cross", "cross heads")):
        if parts[0].heads.get(room) is not None:
            found = np.concatenate([p.heads[room] for p in parts])
            made[title] = _grid(stream, room, found, "layer head", "What each head adds by itself", unit)
    for room, title in (("attn", "sources"), ("cross", "cross sources")):
        if parts[0].sources.get(room) is not None:
            found = _padded([p.sources[room] for p in parts])
            made[title] = _grid(stream, room, found, "layer head position", "What each head adds, by the token it attends to", unit)
    cap = parts[0].cap
    notes = {"metric": float(metrics.mean()), "examples": len(values), "completeness_error": gap, "model": model.name}
    notes |= {} if cap is None else {"soft-cap": f"attributed before the cap of {cap:g}"}
    return Report(
        made,
        _words(names, values.mean(0), metrics, gap, unit, cap),
        title=f"Direct logit attribution of {metric.name}",
        unit=unit,
        diagnostics=notes,
    )


def _grid(stream: Stream, room: str, found: np.ndarray, axes: str, title: str, unit: str) -> Grid:
    return Grid(found.mean(0), tuple(axes.split()), {"layer": stream.sites(room, "out")}, per_example=found, title=title, unit=unit)


def _writes(stream: Stream, names: Sequence[str], values: np.ndarray, unit: str) -> Grid:
    """Whole sub-layers: heads and biases of each added up."""
    rooms = stream.rooms
    made = np.stack([np.stack([_of(names, values, stream.stem(i) + room) for room in rooms], -1) for i in range(stream.depth)], 1)
    labels: Mapping[str, Sequence[str]] = {"layer": [stream.stem(i).rstrip(".") for i in range(stream.depth)], "feature": rooms}
    return Grid(made.mean(0), ("layer", "feature"), labels, per_example=made, title="What each attention and MLP adds by itself", unit=unit)


def _of(names: Sequence[str], values: np.ndarray, stem: str) -> np.ndarray:
    return values[:, [i for i, n in enumerate(names) if n.startswith(f"{stem}.")]].sum(1)


def _padded(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Batches under one another; a row that an example lacks adds nothing."""
    width = max(p.shape[-1] for p in parts)
    return np.concatenate([np.pad(p, ((0, 0), (0, 0), (0, 0), (0, width - p.shape[-1]))) for p in parts])


def _words(names: Sequence[str], mean: np.ndarray, metrics: np.ndarray, gap: float, unit: str, cap: float | None) -> tuple[str, ...]:
    order = np.argsort(-np.abs(mean), kind="stable")[:3]
    largest = ", ".join(f"{names[i]} {mean[i]:+.3g}" for i in order)
    before = "" if cap is None else f" before the soft-cap of {cap:g}"
    return (
        f"The metric is {metrics.mean():.4g} {unit} on average{before}; the largest terms are {largest}.",
        f"All {len(names)} terms add up to it within {gap:.1g} of the largest.",
    )
