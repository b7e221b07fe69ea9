"""The counts of `hidden_dimensions`, layer beside layer, as Results and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from activarium.analyses.layer_sites import layer_number
from activarium.analyses.sparsity.dimension_sets import LONGEST, Occupancy, pooled
from activarium.maths import bootstrap_interval
from activarium.results import Grid, Ranking, Result, Series

SHARED_CUTS = (0.8, 0.85, 0.9, 0.95, 0.99)
SPECIALISED_CUTS = (0.01, 0.02, 0.05, 0.1, 0.2)
LISTED = 1000  # dimensions in the ranking
LOUD = 0.1  # share of a row's energy in a single dimension from which on it is named


@dataclass(eq=False)
class Counted:
    """What one pass over the sequences of a stack counts.

    Attributes:
        layers: Counts of each site.
        sites: Their names.
        patches: Are there patches among the rows?
        overlap: Per pair of neighbouring layers: summed Jaccard overlap of a row's two sets.
        entering: Per pair: summed share of the upper one's energy in dimensions not active in the lower one.
        at_start: Per layer: active dimensions of rows at position 0, excluded or not.
        starts: Number of those rows.
    """

    layers: list[Occupancy]
    sites: list[str]
    patches: bool
    overlap: np.ndarray = field(init=False)
    entering: np.ndarray = field(init=False)
    at_start: np.ndarray = field(init=False)
    starts: int = 0

    def __post_init__(self) -> None:
        self.overlap, self.entering = np.zeros((2, max(len(self.layers) - 1, 0)))
        self.at_start = np.zeros(len(self.layers))

    def flow(self, i: int, below: np.ndarray, above: np.ndarray, values: Tensor) -> None:
        """Add rows of layer i and the one above: their sets `row d_model` and the upper values."""
        together, either = (below & above).sum(1), (below | above).sum(1)
        self.overlap[i] += np.divide(together, either, out=np.ones(len(either)), where=either > 0).sum()
        squares = values.detach().double().square().cpu().numpy()
        total = squares.sum(1)
        self.entering[i] += np.divide((squares * ~below).sum(1), total, out=np.zeros(len(total)), where=total > 0).sum()


class DimensionTable:
    """The layers of one stack as Results and words.

    Attributes:
        kinds: `layer d_model`: shared, specialised, between or never.
        occupancy: `layer d_model` share of rows.
        active: (layer,) share of the dimensions in a row's set.
        lasting: (layer,) persistence over all dimensions.
        chances: (layer, 3) persistence, and what it is if rows are shuffled everywhere or within their sequence.
    """

    def __init__(
        self, name: str, found: Counted, shared: float, specialised: float, confidence: float, seed: int, *, gaussian: bool
    ) -> None:
        self.gaussian = gaussian  # are the settings those for which the share of Gaussian numbers is known?
        self.name, self.found, self.layers, self.sites = name, found, found.layers, found.sites
        self.shared, self.specialised = shared, specialised
        self.x = np.array([layer_number(s, i) for i, s in enumerate(self.sites)])
        self.occupancy = np.stack([state.occupancy for state in self.layers])
        self.kinds = np.full(self.occupancy.shape, "between", dtype=object)
        self.kinds[self.occupancy >= shared] = "shared"
        self.kinds[self.occupancy <= specialised] = "specialised"
        self.kinds[self.occupancy == 0] = "never"
        sums = np.array([state.per_sequence for state in self.layers], dtype=np.float64)  # layer, sequence, four sums
        self.active, self.active_band = self._ratio(sums[..., 0], sums[..., 1], confidence, seed)
        self.lasting, self.lasting_band = self._ratio(sums[..., 2], sums[..., 3], confidence, seed)
        self.chances = np.array([pooled(state) for state in self.layers])

    def _ratio(self, above: np.ndarray, below: np.ndarray, confidence: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if not below.sum(1).all():  # sequences of one row: nothing follows anything
            return np.full(len(above), np.nan), np.full((2, len(above)), np.nan)
        low, high, _ = bootstrap_interval(above.T, below.T, confidence=confidence, seed=seed)
        return above.sum(1) / below.sum(1), np.stack([low, high])

    def share(self, kind: str) -> np.ndarray:
        """Share of the dimensions of each layer that are of a kind."""
        return (self.kinds == kind).mean(1)

    def parts(self) -> dict[str, Result]:
        rows, width = self.layers[0].rows, self.occupancy.shape[1]
        sets = {"active": self.active} | {kind: self.share(kind) for kind in ("shared", "specialised", "never")}
        if self.found.starts:
            sets["active at position 0"] = self.found.at_start / self.found.starts / width
        lasting: dict[str, np.ndarray] = dict(
            zip(("measured", "shuffled everywhere", "shuffled within sequences"), [self.lasting, *self.chances.T[1:]], strict=True)
        )
        labels = {"layer": self.sites}
        lengths = np.stack([state.lengths.sum(0) for state in self.layers])
        parts: dict[str, Result] = {
            "sets": Series(
                self.x, sets, "layer", {"active": self.active_band}, title=f"{self.name}: dimensions in use", unit="share of dimensions"
            ),
            "persistence": Series(
                self.x, lasting, "layer", {"measured": self.lasting_band}, title=f"{self.name}: still active in the next row", unit="share"
            ),
        }
        if len(self.layers) > 1:
            parts["flow"] = Series(self.x[:-1], self._flow(rows), "layer", title=f"{self.name}: from each layer to the next", unit="share")
        parts["occupancy"] = Grid(
            self.occupancy, ("layer", "d_model"), labels, title=f"{self.name}: rows in which a dimension is active", unit="share"
        )
        parts["run lengths"] = Grid(
            lengths / np.maximum(lengths.sum(1, keepdims=True), 1), ("layer", "length"),
            labels | {"length": [*map(str, range(1, LONGEST)), f"{LONGEST}+"]}, title=f"{self.name}: runs by length in rows", unit="share of runs",
        )  # fmt: skip
        parts["shared by cut"] = self._cuts(np.greater_equal, SHARED_CUTS, "shared")
        parts["specialised by cut"] = self._cuts(np.less_equal, SPECIALISED_CUTS, "specialised")
        parts["dimensions"] = self._dimensions()
        return parts

    def _flow(self, rows: int) -> dict[str, np.ndarray]:
        low, high = self.occupancy[:-1], self.occupancy[1:]
        chance = (low * high).sum(1) / np.maximum((low + high - low * high).sum(1), 1e-300)
        return {
            "overlap": self.found.overlap / rows,
            "overlap by occupancy": chance,
            "energy in new dimensions": self.found.entering / rows,
        }

    def _cuts(self, compare: np.ufunc, cuts: Sequence[float], kind: str) -> Grid:
        counts = np.stack([(compare(self.occupancy, cut) & (self.occupancy > 0)).sum(1) for cut in cuts], 1)
        labels = {"layer": self.sites, "cut": [f"{cut:g}" for cut in cuts]}
        return Grid(counts, ("layer", "cut"), labels, title=f"{self.name}: {kind} dimensions by cut", unit="dimensions")

    def _dimensions(self) -> Ranking:
        lasting, within = (np.stack([getattr(s, n) for s in self.layers]) for n in ("persistence", "within"))
        above = (lasting - self.occupancy).ravel()
        order = np.argsort(-np.where(np.isnan(above), -np.inf, above), kind="stable")
        order = order[: min(LISTED, int((~np.isnan(above)).sum()))]
        layer, dim = np.divmod(order, self.occupancy.shape[1])
        runs = np.stack([state.mean_run for state in self.layers])
        columns = {
            "layer": np.array([self.sites[i] for i in layer], dtype=object),
            "dim": dim,
            "kind": self.kinds.ravel()[order],
            "occupancy": self.occupancy.ravel()[order],
            "persistence": lasting.ravel()[order],
            "shuffled within sequences": within.ravel()[order],
            "mean run": runs.ravel()[order],
        }
        names = tuple(f"{self.sites[i]} dim {d}" for i, d in zip(layer, dim, strict=True))
        return Ranking(
            names, above[order], columns, title=f"{self.name}: dimensions that stay on beyond chance", unit="persistence above occupancy"
        )

    def notes(self) -> dict[str, object]:
        sequences = len(self.layers[0].per_sequence)
        counted = {kind: int((self.kinds == kind).sum()) for kind in ("shared", "specialised", "never")}
        means = {"active": float(self.active.mean()), "persistence": float(self.lasting.mean())}
        return {f"{self.name} {k}": v for k, v in (counted | means | {"rows": self.layers[0].rows, "sequences": sequences}).items()}

    def words(self) -> list[str]:
        width, n = self.occupancy.shape[1], len(self.layers)
        counts = {kind: 100 * self.share(kind).mean() for kind in ("shared", "specialised", "never")}
        loud = np.stack([state.shares / state.rows for state in self.layers])
        layer, dim = np.unravel_index(loud.argmax(), loud.shape)
        said = [
            f"{self.name}: a row uses {100 * self.active.mean():.1f} % of the {width} dimensions, averaged over {n} layers{', Gaussian numbers 44 %' if self.gaussian else ''}; {counts['shared']:.1f} % are "
            f"shared (in at least {100 * self.shared:g} % of the rows), {counts['specialised']:.1f} % specialised (in at most {100 * self.specialised:g} %), "
            f"{counts['never']:.1f} % never active."
        ]
        if np.isfinite(self.lasting).all():
            measured, base, within = self.lasting.mean(), *self.chances[:, 1:].mean(0)
            order = " (raster order, line by line)" if self.found.patches else ""
            said.append(
                f"{self.name}: an active dimension is active in the next row{order} in {measured:.1%}; shuffled rows of the same sequence "
                f"give {within:.1%}, of all sequences {base:.1%}."
            )
        if loud[layer, dim] >= LOUD:
            said.append(
                f"{self.name}: dim {dim} alone holds {loud[layer, dim]:.0%} of a row's energy at {self.sites[layer]}, which makes its sets small."
            )
        empty = sum(state.empty for state in self.layers)
        return [*said, f"{self.name}: {empty:,} rows of zeros have an empty set."] if empty else said
