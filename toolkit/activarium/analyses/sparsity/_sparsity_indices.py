"""Sparsity indices: how unevenly a row spreads its size over its neurons, with no threshold to choose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from activarium.activations import Activations
from activarium.analyses.layer_sites import column, examples_of, layer_number, layer_sites, refuse_strange
from activarium.analyses.sparsity.indices import INDICES, indices
from activarium.analyses.sparsity.row_kinds import EXCLUDED, kept, left_out, left_out_words, some_kept
from activarium.errors import AxisError
from activarium.maths import bootstrap_interval
from activarium.recording import Recording
from activarium.results import Overlay, Ranking, Report, Result, Series

QUANTILES = (0.05, 0.5, 0.95)
AT_ONCE = 2**22  # numbers that are in float64 at a time, 32 MB for each intermediate


def sparsity_indices(
    recording: Recording | Activations,
    *,
    exclude: Sequence[str] = EXCLUDED,
    example: int | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Report:
    """How unevenly does a token or a patch spread its activation over the neurons of a layer?

    Six numbers of each row a of n neurons, none of which needs a threshold or changes when the row is multiplied, so smooth
    activations (GELU, SiLU) and ReLU can be compared. `hoyer`: (√n − L1/L2) / (√n − 1), from 0 (all equal) to 1 (one neuron).
    `gini` of |a|: from 0 to 1 − 1/n. `participation ratio`: (Σa²)² / Σa⁴, and `entropy count`: exp(−Σ p log p) with
    p = a² / Σa², both as shares of n: 1 if all are equal, 1/n for one neuron. `energy 90`: the smallest share of neurons
    with 90 % of Σa². `kurtosis`: E(a−m)⁴ / var², 3 for Gaussian numbers. Computed in float64, a batch at a time; kept are
    six numbers per row of one layer.

    Args:
        recording: A recording with `blocks.*.mlp.post` (else `mlp.act`), or any site or stack with axes `row` and one more,
            such as `recording["blocks.*.mlp.act"]` or `recording["blocks.*.resid_post"]`. In a gated MLP `act` is the gate
            and `post` the gate times the linear branch; in a plain one they are the same.
        exclude: Row kinds left out. Pads are never rows.
        example: Also show the Hoyer index of each row of this example.
        confidence: Share of resampled sequence sets inside the interval.
        resamples: How many times the sequences are drawn again for the interval.
        seed: Draws the sequences for the interval.

    Returns:
        A report with `indices` (five means per layer with their intervals), `kurtosis` (the same on its own scale), `layers`
        (ranking by Hoyer, the sparsest first: mean, `low`, `high` and quantiles over rows of each index, rows, zero rows),
        `first token` (means over the rows at position 0, excluded or not, where massive activations live) and, if asked
        for, `rows`. A model with several stacks has each part once per stack, `encoder indices`. A row of zeros has no
        index: it is left out of the means and counted, as a row of equal numbers is for the kurtosis. The unweighted mean
        over layers is `diagnostics["hoyer"]`, with `diagnostics["hoyer low"]` and `diagnostics["hoyer high"]`, and so on.

    Raises:
        UnknownSite: The recording holds neither `mlp.post` nor `mlp.act`.
        AxisError: The site has other axes, such as a mixture of experts with its slots, or a single neuron.
        InputError: No row is left, or there is no such example.
        NotFinite: NaN or infinite numbers, of which no index can be taken.

    Source:
        Hurley & Rickard 2009, Comparing Measures of Sparsity, arXiv:0811.4706 (Hoyer, Gini, kurtosis). Interval: Efron &
        Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

    Differs:
        Participation ratio and entropy count are of the squares and divided by n. The indices are of single rows, then
        averaged; an index of the averaged row is something else.

    Example:
        >>> import torch
        >>> from activarium.activations import Activations
        >>> acts = Activations(torch.tensor([[0.0, 2.0, 0.0, 0.0], [1.0, -1.0, 1.0, 1.0]]), "row d_mlp", site="blocks.0.mlp.post")
        >>> sparsity_indices(acts).diagnostics["hoyer"]
        0.5
    """
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, object] = {"confidence": confidence, "seed": seed}
    for stack, sites in _sites(recording).items():
        measured = {site: _measured(activations, exclude) for site, activations in sites.items()}
        table = _Table(stack, measured, confidence, resamples, seed)
        made = table.parts()
        if example is not None:
            made["rows"] = _rows(sites, example, exclude)
        first = next(iter(sites.values()))
        counted = table.notes() | {"excluded": left_out(first, exclude), "dtype": str(first.dtype).removeprefix("torch.")}
        parts |= {f"{stack} {name}".strip(): part for name, part in made.items()}
        notes |= {f"{stack} {name}".strip(): value for name, value in counted.items()}
        words += [*table.words(), *left_out_words(first, exclude)]
    return Report(parts, tuple(words), title="Sparsity without a threshold, layer by layer", diagnostics=notes)


def _sites(source: Recording | Activations) -> dict[str, dict[str, Activations]]:
    endings, width = ("mlp.post", "mlp.act"), "d_mlp"
    if isinstance(source, Activations):
        width = next(iter(source.layers().values())).axes[-1]  # any site of rows will do
    found = layer_sites(source, endings, f"row {width}")
    for sites in found.values():
        for site, activations in sites.items():
            if activations.shape[-1] < 2:
                raise AxisError(
                    f"{site or 'This site'} has shape {activations.shape}: a single number is neither spread nor sparse. Pass a site with at least two per row."
                )
    return found


@dataclass(frozen=True)
class _Measured:
    """The indices of the rows of one layer: `values` of those that count, `first` of those at position 0."""

    values: np.ndarray
    examples: np.ndarray
    first: np.ndarray
    width: int

    @property
    def zero_rows(self) -> int:
        return int(np.isnan(self.values[:, 0]).sum())

    @property
    def equal_rows(self) -> int:
        return int(np.isnan(self.values[:, -1]).sum()) - self.zero_rows

    def sums(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum and number of the defined indices, `sequence index`."""
        place, defined = np.searchsorted(sequences, self.examples), ~np.isnan(self.values)
        above, below = np.zeros((2, len(sequences), len(INDICES)))
        np.add.at(above, place, np.where(defined, self.values, 0))
        np.add.at(below, place, defined)
        return above, below


def _measured(activations: Activations, exclude: Sequence[str]) -> _Measured:
    keep = some_kept(activations, exclude)
    # A table made by hand may hold pads, and one of them may stand at position 0.
    first = (column(activations, "position", -1) == 0) & (column(activations, "kind", "token").astype(str) != "pad")
    wanted = keep | first
    found = np.concatenate(list(_pieces(activations, wanted)))
    return _Measured(found[keep[wanted]], examples_of(activations)[keep], found[first[wanted]], activations.shape[-1])


def _pieces(activations: Activations, wanted: np.ndarray) -> Iterator[np.ndarray]:
    start = 0
    for batch in activations.batches():
        chosen = torch.from_numpy(wanted[start : start + len(batch)].nonzero()[0]).to(batch.device)
        for some in chosen.split(max(1, AT_ONCE // batch.shape[1])):
            values = batch[some]
            if not bool(values.isfinite().all()):
                refuse_strange(activations, "No index can be taken of such a row.")
            yield indices(values).cpu().numpy()
        start += len(batch)


class _Table:
    """The layers of one stack beside one another."""

    def __init__(self, stack: str, layers: Mapping[str, _Measured], confidence: float, resamples: int, seed: int) -> None:
        self.stack, self.layers, self.sites, self.confidence = stack, list(layers.values()), list(layers), confidence
        sequences = np.unique(np.concatenate([m.examples for m in self.layers]))
        sums = [m.sums(sequences) for m in self.layers]
        above, below = (np.concatenate([pair[i] for pair in sums], 1) for i in (0, 1))  # sequence, layer · index
        self.sequences, shape = len(sequences), (len(layers), len(INDICES))
        some = below.any(0)  # a layer of zero rows alone has no mean and no interval
        low, high, chosen = np.full(0, np.nan), np.full(0, np.nan), np.empty((0, 0))
        if some.any():
            low, high, chosen = bootstrap_interval(above[:, some], below[:, some], confidence=confidence, resamples=resamples, seed=seed)
        self.mean, self.low, self.high = (np.full(shape, np.nan) for _ in range(3))
        for table, numbers in ((self.mean, above[:, some].sum(0) / below[:, some].sum(0)), (self.low, low), (self.high, high)):
            table.ravel()[some] = numbers
        self.overall = np.array([_mean(column) for column in self.mean.T])
        self.ends = self._ends(chosen, np.flatnonzero(some) % len(INDICES))

    def _ends(self, chosen: np.ndarray, index: np.ndarray) -> np.ndarray:
        """The interval of the mean over layers, `index end`."""
        tails = [(1 - self.confidence) / 2, (1 + self.confidence) / 2]
        ends = np.full((len(INDICES), 2), np.nan)
        for i in np.unique(index) if len(chosen) else ():
            ends[i] = np.nanquantile(chosen[:, index == i].mean(1), tails)
        return ends

    def parts(self) -> dict[str, Result]:
        x = np.array([layer_number(s, i) for i, s in enumerate(self.sites)])
        curves = {name: self.mean[:, i] for i, name in enumerate(INDICES)}
        bands = {name: np.stack([self.low[:, i], self.high[:, i]]) for i, name in enumerate(INDICES)}
        shares, kurtosis = INDICES[:-1], INDICES[-1:]
        parts: dict[str, Result] = {
            name: Series(x, {k: curves[k] for k in chosen}, "layer", {k: bands[k] for k in chosen}, title=title)
            for name, chosen, title in (("indices", shares, "Sparsity indices per layer"), ("kurtosis", kurtosis, "Kurtosis per layer"))
        }
        parts["layers"] = self._ranking()
        if len(self.layers[0].first):
            first = np.array([[_mean(v) for v in m.first.T] for m in self.layers])
            parts["first token"] = Series(x, {n: first[:, i] for i, n in enumerate(INDICES)}, "layer", title="At position 0")
        return parts

    def _ranking(self) -> Ranking:
        order = np.argsort(-self.mean[:, 0], kind="stable")  # NaN comes last
        columns: dict[str, np.ndarray] = {}
        for i, name in enumerate(INDICES):
            columns |= ({name: self.mean[:, i]} if i else {}) | {f"{name} low": self.low[:, i], f"{name} high": self.high[:, i]}
            spread = np.array([_quantiles(m.values[:, i]) for m in self.layers])
            columns |= {f"{name} {100 * q:g} %": spread[:, k] for k, q in enumerate(QUANTILES)}
        columns["rows"] = np.array([len(m.values) for m in self.layers])
        columns["zero rows"] = np.array([m.zero_rows for m in self.layers])
        columns["equal rows"] = np.array([m.equal_rows for m in self.layers])
        columns["neurons"] = np.array([m.width for m in self.layers])
        names = tuple(self.sites[i] for i in order)
        return Ranking(
            names, self.mean[order, 0], {k: v[order] for k, v in columns.items()}, title="Layers, the sparsest first", unit="Hoyer index"
        )

    def notes(self) -> dict[str, object]:
        means: dict[str, object] = {name: float(v) for name, v in zip(INDICES, self.overall, strict=True)}
        ends: dict[str, object] = {
            f"{n} {end}": float(self.ends[i, k]) for i, n in enumerate(INDICES) for k, end in enumerate(("low", "high"))
        }
        zero = sum(m.zero_rows for m in self.layers)
        ending = self.sites[0].split("blocks.")[-1].partition(".")[2] or self.sites[0]
        return means | ends | {"site": ending, "rows": len(self.layers[0].values), "sequences": self.sequences, "zero rows": zero}

    def words(self) -> list[str]:
        where = f"{self.stack}: " if self.stack else ""
        zero, notes = sum(m.zero_rows for m in self.layers), self.notes()
        if np.isnan(self.overall[0]):
            return [f"{where}all rows are zero in every layer: no index is defined."]
        low, high = self.ends[0]
        interval = f"{100 * self.confidence:g} % interval {low:.3f} to {high:.3f}" if np.isfinite(low) else "one sequence: no interval"
        most, least = int(np.nanargmax(self.mean[:, 0])), int(np.nanargmin(self.mean[:, 0]))
        said = [
            f"{where}the Hoyer index at {notes['site']} is {self.overall[0]:.3f} ({interval}); it is 0.202 for Gaussian numbers, 0.436 for their ReLU.",
            f"{where}the sparsest layer is {self.sites[most]} with {self.mean[most, 0]:.3f}, the least sparse {self.sites[least]} with {self.mean[least, 0]:.3f}.",
            f"{where}90 % of a row's energy lies in {100 * self.overall[4]:.1f} % of its neurons.",
        ]
        return [*said, f"{where}rows of zeros, which have no index and enter no mean: {zero:,}."] if zero else said


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan


def _quantiles(values: np.ndarray) -> np.ndarray:
    defined = values[~np.isnan(values)]
    return np.quantile(defined, QUANTILES) if len(defined) else np.full(len(QUANTILES), np.nan)


def _rows(sites: Mapping[str, Activations], example: int, exclude: Sequence[str]) -> Overlay:
    """Hoyer index of each row of one example, NaN where the row is left out or zero."""
    chosen = [activations.example(example) for activations in sites.values()]
    hoyer = np.stack([indices(a.tensor)[:, 0].cpu().numpy() for a in chosen])
    tokens = tuple(str(t) for t in column(chosen[0], "text", "row"))
    return Overlay(
        np.where(kept(chosen[0], exclude), hoyer, np.nan), tuple(sites), tokens, title=f"Hoyer index at each row of example {example}"
    )
