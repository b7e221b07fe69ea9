"""The rules by which rows or dimensions are called outliers, each applied to the same stream, and how far they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from activarium.activations import Activations
from activarium.analyses.layer_sites import by_example, column, examples_of
from activarium.analyses.massive.received import received
from activarium.recording import Recording
from activarium.results import Grid

COLUMN_SIZE, COLUMN_LAYERS, COLUMN_ROWS = 6.0, 0.25, 0.06  # LLM.int8: at least this size, in this share of layers and of rows


def row_measures(activations: Activations, dims: Sequence[int]) -> dict[str, np.ndarray]:
    """Per row: `norm` (L2), and over the given dimensions the `largest phi` (size over root mean square) and its `energy share`."""
    norms, energies = [], []
    for batch in activations.batches():
        squares = batch.double() ** 2
        whole = squares.sum(1)
        norms.append(whole.sqrt())
        part = squares[:, list(dims)].amax(1) if len(dims) else whole.new_zeros(len(whole))
        energies.append(part / whole.clamp_min(1e-300))
    norm, energy = (np.concatenate([t.cpu().numpy() for t in parts]) for parts in (norms, energies))
    return {"norm": norm, "largest phi": np.sqrt(energy * activations.shape[1]), "energy share": energy}


def long_vectors(norm: np.ndarray, spread: float) -> np.ndarray:
    """Rows whose length is more than `spread` standard deviations above the mean."""
    return norm > norm.mean() + spread * norm.std()


def outlier_columns(layers: Sequence[Activations]) -> np.ndarray:
    """Dimensions of size 6 or more in a quarter of the layers and in 6 % of the rows: whole columns rather than single numbers."""
    in_layers, in_rows = column_shares(layers)
    return (in_layers >= COLUMN_LAYERS) & (in_rows >= COLUMN_ROWS)


def column_shares(layers: Sequence[Activations]) -> tuple[np.ndarray, np.ndarray]:
    """For each dimension: in which share of the layers is it of size 6 or more anywhere, and in which share of the rows at any layer?"""
    width = layers[0].shape[1]
    in_layers, in_rows, rows = np.zeros((len(layers), width), bool), np.zeros(width, np.int64), 0
    for pieces in zip(*(by_example(layer) for layer in layers), strict=True):
        large = np.stack([(values.abs() >= COLUMN_SIZE).cpu().numpy() for _, _, values in pieces])  # layer row dim
        in_layers |= large.any(1)
        in_rows += large.any(0).sum(0)
        rows += large.shape[1]
    return in_layers.mean(0), in_rows / rows


def sink_rows(recording: Recording, sites: Sequence[str], rows: Activations, epsilon: float) -> np.ndarray:
    """Rows to which heads give `epsilon` more than uniform attention would, averaged over layers and heads of all patterns."""
    examples, position = examples_of(rows), column(rows, "position", 0)
    above = np.zeros(len(examples))
    for site in sites:
        index = recording[site].index
        assert index is not None
        for example in index.examples:
            here = examples == example
            length = int(here.sum())
            (found,) = received(recording, site, [example], length, 0).values()
            above[here] += (found.importance.mean(0) - found.even)[position[here].astype(int)] / len(sites)
    return above > epsilon


def agreement(flags: Mapping[str, np.ndarray], title: str) -> Grid:
    """Rule by rule: flagged by both over flagged by either (Jaccard); NaN where neither flags anything."""
    names = list(flags)
    values = np.full((len(names), len(names)), np.nan)
    for i, a in enumerate(flags.values()):
        for j, b in enumerate(flags.values()):
            either = int((a | b).sum())
            values[i, j] = int((a & b).sum()) / either if either else np.nan
    return Grid(values, ("rule", "other"), {"rule": names, "other": names}, title=title, unit="Jaccard index")
