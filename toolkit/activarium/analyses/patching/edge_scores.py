"""Scores of all edges at one point, block by block, and the two sums that they must give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.patching.reader_inputs import Readers
from activarium.analyses.patching.wiring import Wiring
from activarium.analyses.patching.writers import Differences
from activarium.errors import CertificateError

LIMITS = {torch.float64: 1e-5, torch.float32: 2e-3}  # many norms compute in float32 whatever the weights are; 16-bit floats get 5e-2


def edge_scores(readers: Readers, differences: Differences, recording: Any, gradient: Any, only: slice | None = None) -> np.ndarray:
    """`<what a writer adds: source - base, gradient at the reader's input>` summed over rows, `reader writer`; 0 where no edge is.

    Args:
        readers: The readers.
        differences: What the writers add, source less base.
        recording: The run in which the gradient was taken.
        gradient: What `recording.backward` gave.
        only: Score the edges of these writers alone.
    """
    wiring = readers.wiring
    scores = np.zeros(wiring.edges.shape)
    for i, room, place in rooms(wiring):
        before = wiring.readers[place.start].before
        if only is not None and only.start >= before:
            continue
        slopes = readers.gradient(recording, gradient, i, room).flatten(1)
        for block, start in _writing(wiring, before, only):
            change = differences.of(block)[: before - start].flatten(1)
            scores[place, start : start + len(change)] = (slopes @ change.T).double().cpu().numpy()
    if only is not None:
        scores[:, : only.start] = scores[:, only.stop :] = 0
    return scores


def rooms(wiring: Wiring) -> Iterator[tuple[int, str, slice]]:
    """Readers that share a stream: block, `attn` or `mlp`, and their numbers; the logits last."""
    for i in range(len(wiring.layers)):
        places = wiring.inputs_of(i)
        for room, (first, last) in {"attn": ("q", "v"), "mlp": ("mlp", "mlp")}.items():
            if places[last].stop > places[first].start:
                yield i, room, slice(places[first].start, places[last].stop)
    yield len(wiring.layers), "logits", slice(len(wiring.readers) - 1, len(wiring.readers))


def _writing(wiring: Wiring, before: int, only: slice | None) -> Iterator[tuple[int, int]]:
    """Blocks whose writers come before, with the number of their first writer; block -1 is the embedding."""
    for block in range(-1, len(wiring.layers)):
        start = 0 if block < 0 else wiring.first(block)
        stop = 1 if block < 0 else start + wiring.layers[block].writers
        if start < before and (only is None or (start < only.stop and only.start < stop)):
            yield block, start


def sums_at(readers: Readers, differences: Differences, recording: Any, gradient: Any) -> tuple[np.ndarray, np.ndarray]:
    """What the edges must add up to, from other numbers than theirs: out of each writer, and into each reader.

    Out of a writer: its score as a node, by the gradient of the whole stream where it writes. Into a reader: the score of its
    whole input, by the recorded streams of both runs.
    """
    wiring = readers.wiring
    out_of, into = np.zeros(len(wiring.writers)), np.zeros(len(wiring.readers))
    out_of[:1] = _dot(differences.of(-1), gradient["blocks.0.resid_pre"].tensor)
    for i, layer in enumerate(wiring.layers):
        change = differences.of(i)
        if layer.heads:
            out_of[wiring.heads_of(i)] = _dot(change[: layer.heads], gradient[f"blocks.{i}.attn.out"].tensor)
        if layer.mlp:
            out_of[wiring.mlp_of(i)] = _dot(change[-1:], gradient[f"blocks.{i}.mlp.out"].tensor)[0]
    for i, room, place in rooms(wiring):
        change = readers.stream(differences.source, i, room) - readers.stream(differences.base, i, room)
        into[place] = _dot(readers.gradient(recording, gradient, i, room), change)
    return out_of, into


def _dot(many: Tensor, one: Tensor) -> np.ndarray:
    return (many.flatten(1) @ one.to(many.dtype).flatten()).double().cpu().numpy()


def sum_rule_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest gap between two sums, as a share of the largest of them."""
    size = max(float(np.abs(wanted).max()), float(np.abs(found).max()))
    return float(np.abs(found - wanted).max()) / size if size else 0.0


def check_sums(error: float, model: Any) -> None:
    """Refuse edges that do not add up.

    Raises:
        CertificateError: The edges of a node do not add up to the node's own score.
    """
    limit = LIMITS.get(model.dtype, 5e-2)
    if not error <= limit:
        raise CertificateError(
            f"The edges of {model.name} do not add up to the scores of their nodes: they differ by {error:.2g} of the largest, wanted {limit:g} at most. "
            "Something in this model writes to the stream or reads from it that is no head and no MLP. Pass check=False to see the edges all the same."
        )
