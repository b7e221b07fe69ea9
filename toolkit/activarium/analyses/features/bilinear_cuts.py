"""How much of a bilinear layer a few eigenvectors are: the model run with only those, or a layer's own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.changed_answers import changed_answers
from activarium.analyses.features.bilinear_layers import Spectrum
from activarium.analyses.features.bilinear_models import Read
from activarium.edits import Edit, Replace
from activarium.maths import bootstrap_interval
from activarium.results import Result, Series

FIRST, RANDOM = "largest eigenvalues", "eigenvectors drawn at random"


def kept_counts(spectra: Sequence[Spectrum]) -> list[int]:
    """0, 1, 2, 4, 8, … up to all that were computed."""
    total = min(len(s.values) for s in spectra)
    return [0, *(2**n for n in range(total.bit_length()) if 2**n < total), total]


def model_cuts(
    model: Any, inputs: Any, block: int, read: Read, spectra: Sequence[Spectrum], *, seed: int, progress: bool
) -> dict[str, Result]:
    """KL(full ‖ cut) and agreement while the block's output is cut to some eigenvectors along these output directions, all else untouched."""
    counts = kept_counts(spectra)
    places = [(way, count) for way in (FIRST, RANDOM) for count in counts]
    orders = _orders(spectra, seed)
    changes = {
        f"{way} {count}": _cut_edits(f"blocks.{block}.mlp", read, spectra, [o[:count] for o in orders[way]]) for way, count in places
    }
    answers = changed_answers(model, inputs, changes, progress=progress, doing="cutting")
    x = np.array(counts)
    parts: dict[str, Result] = {}
    for name, title, unit in (("kl", "KL(full ‖ cut)", "nats"), ("agrees", "Top answers that stay the same", "share")):
        curves, bands = {}, {}
        for way in (FIRST, RANDOM):
            found = [answers[f"{way} {count}"] for count in counts]
            sums = [f.sums(getattr(f, name).astype(float)) for f in found]
            above, below = (np.stack([s[i] for s in sums], 1) for i in (0, 1))
            curves[way] = above.sum(0) / below.sum(0)
            bands[way] = np.stack(bootstrap_interval(above, below, seed=seed)[:2])
        parts["truncation" if name == "kl" else "agreement"] = Series(
            x, curves, "eigenvectors kept of each output", bands, title=title, unit=unit
        )
    return parts


def layer_cuts(read: Read, spectra: Sequence[Spectrum], labels: np.ndarray | None, *, seed: int) -> dict[str, Result]:
    """Agreement with the whole layer's largest output, and accuracy where labels are known, with some eigenvectors of each output."""
    counts = kept_counts(spectra)
    orders = _orders(spectra, seed)
    x = read.layer.rows(read.x.double())
    full = (read.y.double() @ read.directions.T).argmax(1).numpy()
    same: dict[str, np.ndarray] = {}
    right: dict[str, np.ndarray] = {}
    for way in (FIRST, RANDOM):
        chosen = [np.stack([s(x, o[:c]).numpy() for s, o in zip(spectra, orders[way], strict=True)], 1).argmax(1) for c in counts]
        same[way] = np.array([(c == full).mean() for c in chosen])
        if labels is not None:
            right[way] = np.array([(c == labels).mean() for c in chosen])
    where = "eigenvectors kept of each output"
    parts: dict[str, Result] = {"agreement": Series(np.array(counts), same, where, title="Rows whose largest output stays", unit="share")}
    if labels is not None:
        whole = {"whole layer": np.full(len(counts), (full == labels).mean())}
        parts = {"truncation": Series(np.array(counts), right | whole, where, title="Right answers", unit="share")} | parts
    return parts


def _orders(spectra: Sequence[Spectrum], seed: int) -> dict[str, list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    return {FIRST: [np.arange(len(s.values)) for s in spectra], RANDOM: [generator.permutation(len(s.values)) for s in spectra]}


def _cut_edits(place: str, read: Read, spectra: Sequence[Spectrum], kept: Sequence[np.ndarray]) -> Callable[[Any], Sequence[Edit]]:
    """Edits that give the output these values along its directions, with the smallest change that does."""
    back = torch.linalg.pinv(read.directions)  # `d_model output`

    def edits(_: Any) -> Sequence[Edit]:
        seen: list[Tensor] = []

        def remember(x: Tensor) -> Tensor:
            seen[:] = [x]
            return x

        def cut(y: Tensor) -> Tensor:
            x = read.layer.rows(seen[0].double().cpu())
            wanted = torch.stack([s(x, k) for s, k in zip(spectra, kept, strict=True)], 1)
            moved = (wanted - y.double().cpu() @ read.directions.T) @ back.T
            return (y.double().cpu() + moved).to(y)

        return [Replace(f"{place}.in", remember), Replace(f"{place}.proj", cut)]

    return edits
